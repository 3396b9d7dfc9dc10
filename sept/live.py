"""What a run shows while it works: a bar, progress.json for `sept status`, trackers such as TensorBoard."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .config import Config, SeptError
from .durable import locked
from .provenance import read_json, write_json

NOTED = 2.0
"""Seconds between two writings of progress.json."""
COLUMNS = ("tau_s", "nll", "entropy", "accuracy", "length", "grad_norm")
"""Of a round's row, what `sept status` shows."""


class _Lines:
    """Standard error for a bar in a log: each state is a line of its own."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


@contextmanager
def bar(
    total: int, label: str, unit: str, disable: bool = False, every: float = 20.0, **more: Any
) -> Iterator[Any]:
    """A bar that appears after two seconds and keeps its clock going: one line in a terminal, a widget in a
    notebook, elsewhere a line now and `every` seconds later."""
    from tqdm.auto import tqdm

    options: dict[str, Any] = {
        "total": total,
        "desc": label,
        "unit": unit,
        "delay": 2,
        "disable": disable,
        **more,
    }
    log = not sys.stderr.isatty() and not any(c.__module__ == "tqdm.notebook" for c in tqdm.__mro__)
    if log:
        shown = "{desc}: {n_fmt}/{total_fmt}{unit}, {elapsed} gone, {remaining} left{postfix}"
        options |= {"file": _Lines(), "bar_format": shown, "mininterval": 1e9, "maxinterval": 1e9}
    over = threading.Event()
    with tqdm(**options) as shown_bar:

        def tick() -> None:  # the first round of a large model takes minutes
            pause = 2.0
            while not over.wait(pause):
                shown_bar.refresh()
                pause = every if log else 1.0

        if not disable:
            threading.Thread(target=tick, daemon=True).start()
        try:
            yield shown_bar
        finally:
            over.set()


def told(row: dict[str, Any], speed: float) -> dict[str, str]:
    """A row in a few words, for the end of a bar."""
    dev = {k: f"{v:.1f}" for k, v in row.items() if k in ("dev pass@1", "dev AVG")}
    return {"nll": f"{row['nll']:.3f}", "right": f"{row['accuracy']:.1%}", "tok/s": f"{speed:,.0f}", **dev}


def answer_lines(row: dict[str, Any], width: int = 100) -> list[str]:
    """A row's sample answers, a line each, of long ones the end, where the answer stands."""
    out = []
    for a in row.get("answers", []):
        text = " ".join(f"{a['prompt']} {a['answer']}".split())
        shown = text if len(text) <= width else "..." + text[3 - width :]
        out.append(f"  {'right' if a['right'] else 'wrong'}  {shown}")
    return out


def check_trackers(names: str) -> list[str]:
    """Names of accelerate's trackers, as in `tensorboard,wandb`. SeptError for what cannot be had."""
    wanted = [name for name in names.split(",") if name]
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    except ImportError:
        if not wanted:
            return []
        raise SeptError(f"--track {names!r} needs accelerate: pip install 'sept[track]'") from None
    for name in wanted:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise SeptError(f"--track {name!r}: unknown, choose of {known}")
        if name not in [str(t.value) for t in get_available_trackers()]:
            what = "'sept[track]'" if name == "tensorboard" else name
            raise SeptError(f"--track {name!r}: its package is not installed: pip install {what}")
    return wanted


class Live:
    """What becomes of each round's row while a run goes on; give it to `loop.train` as on_round.

    It measures tokens a second (drawn, over all the time that passes), leaves progress.json in the run's
    folder, and hands every number to accelerate's trackers, which start with the first row. A round that a
    tracker has seen before a run was cut off is not told again: it would be the same.
    """

    def __init__(self, out: Path, config: Config, track: str = "") -> None:
        self.out, self.config, self.names = out, config, check_trackers(track)
        self.trackers: list[Any] = []
        self.started, self.noted = time.monotonic(), 0.0
        self.done = self.tokens = 0
        self.speed = 0.0

    def __call__(self, row: dict[str, Any]) -> None:
        now, rounds = time.monotonic(), self.config.rounds
        self.done, self.tokens = self.done + 1, self.tokens + row["tokens"]
        taken, left = now - self.started, rounds - row["round"] - 1
        self.speed = self.tokens / taken
        if now - self.noted > NOTED or not left:
            speed = {"tokens_per_second": self.speed, "seconds_left": taken / self.done * left}
            write_json(self.out / "progress.json", {"rounds": rounds, **speed, "row": row})
            self.noted = now
        if self.names:
            self._track(row)

    def _track(self, row: dict[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        note = self.out / "tracked" / "last.json"
        last = read_json(note, "remove it")["round"] if note.is_file() else -1
        if not self.trackers:
            for name in self.names:
                kind = LOGGER_TYPE_TO_CLASS[name]
                place = [str(note.parent)] if kind.requires_logging_directory else []
                # A round written but not noted: TensorBoard drops it, the new one takes its place.
                more = {"purge_step": last + 1} if name == "tensorboard" and last >= 0 else {}
                self.trackers.append(kind("sept", *place, **more))
                self.trackers[-1].start()
                if last < 0:
                    fields = json.loads(self.config.to_json())
                    self.trackers[-1].store_init_configuration({k: str(v) for k, v in fields.items()})
        if row["round"] > last:
            numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "round"}
            for tracker in self.trackers:
                tracker.log({**numbers, "tokens a second": self.speed}, step=row["round"])
            write_json(note, {"round": row["round"]})

    def close(self) -> None:
        """End the trackers; a finished run's folder says the same however often it was cut off."""
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = []
        if (self.out / "final").is_dir():
            (self.out / "progress.json").unlink(missing_ok=True)


def state_of(folder: Path) -> dict[str, Any]:
    """A run as its folder shows it: name, state, round (done), rounds, row (the newest), speed, seconds_left,
    answers. SeptError where there is no run."""
    if not (folder / "config.json").is_file():
        raise SeptError(f"{str(folder)!r} holds no run: name a folder that `sept train --out` made")
    record = read_json(folder / "config.json", "remove its folder to run this again")
    path, rows = folder / "rounds.jsonl", []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise SeptError(f"{str(path)!r}: damaged; continue the run with --resume") from None
    answers: list[dict[str, Any]] = next((r["answers"] for r in rows[::-1] if r.get("answers")), [])
    out: dict[str, Any] = {
        "name": str(folder),
        "rounds": record["config"]["rounds"],
        "row": rows[-1] if rows else {},
    }
    out |= {"record": record, "speed": None, "seconds_left": None}
    if (folder / "progress.json").is_file():
        note = read_json(folder / "progress.json", "remove it")
        if note["row"]["round"] >= out["row"].get("round", -1):
            answers = note["row"].get("answers") or answers
            out |= {"row": note["row"], "speed": note["tokens_per_second"]}
            out["seconds_left"] = note["seconds_left"]
    state = "done" if (folder / "final").is_dir() else "running" if _held(folder) else "stopped"
    return out | {"state": state, "round": out["row"].get("round", -1) + 1, "answers": answers}


def _held(folder: Path) -> bool:
    if not (folder / ".lock").is_file():
        return False
    try:
        with locked(folder / ".lock", wait=False):
            return False
    except SeptError:
        return True


def _cells(state: dict[str, Any]) -> dict[str, str]:
    """What is known of a run, shown."""
    row, left = state["row"], state["seconds_left"]
    out = {"state": state["state"], "round": f"{state['round']}/{state['rounds']}"}
    out |= {c: f"{row[c]:.4g}" for c in COLUMNS if row.get(c) is not None}
    out |= {k: f"{v:.1f}" for k, v in row.items() if k.startswith("dev ")}
    if state["speed"] is not None:
        out["tokens/s"] = f"{state['speed']:,.0f}"
    if state["state"] == "running" and left is not None:
        out["time left"] = f"{left / 60:.1f} min" if left > 60 else f"{left:.0f} s"
    return out


def table_lines(states: list[dict[str, Any]]) -> list[str]:
    """Runs side by side, a column each, then the newest sample answers of each."""
    cells = {s["name"]: _cells(s) for s in states}
    width = max(10, *(len(n) for n in cells)) + 2
    out = [f"{'':<12}" + "".join(f"{n:>{width}}" for n in cells)]
    heads = dict.fromkeys(h for c in cells.values() for h in c)
    out += [f"{h:<12}" + "".join(f"{c.get(h, '-'):>{width}}" for c in cells.values()) for h in heads]
    for s in states:
        lines = answer_lines(s)
        out += [f"{s['name']}:", *lines] if lines else []
    return out


def follow(folders: list[Path], every: float = 1.0) -> Iterator[str]:
    """A line for each new round that is seen of each run, until none of them is running."""
    seen: dict[Path, int] = {}
    while True:
        states = {folder: state_of(folder) for folder in folders}
        for folder, s in states.items():
            if s["round"] != seen.get(folder):
                seen[folder] = s["round"]
                parts = [f"{k} {v}" for k, v in _cells(s).items() if k != "state"]
                yield f"{s['name']}: {s['state']}, {', '.join(parts)}"
        if not any(s["state"] == "running" for s in states.values()):
            return
        time.sleep(every)
