"""Executing notebooks with papermill, with progress and what each of them costs."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .config import SeptError
from .durable import Preempted, locked, sweep
from .experiments import results_dir
from .profiles import profile
from .provenance import read_json, write_json


def notebooks_dir() -> Path:
    """The checkout's notebooks. SeptError when the package runs without a checkout."""
    folder = Path(__file__).parent.parent / "notebooks"
    if not folder.is_dir():
        raise SeptError("the notebooks are not installed with the package: run this in a checkout")
    return folder


def run_notebooks(
    profile_name: str, out: Path, only: str = "", parameters: dict[str, Any] | None = None
) -> list[Path]:
    """Execute the profile's notebooks with papermill; returns the executed copies.

    Parameters that a notebook does not declare are an error: papermill would ignore them. Core-minutes
    of everything that a notebook asked for, done now or earlier, go to `minutes.json` beside the
    figures; the committed file of a profile is what is announced beforehand.
    """
    folder = notebooks_dir()  # without them it does not matter what else is missing
    import papermill
    from nbclient.exceptions import DeadKernelError

    from .regime import place
    from .sampling import parse_engine

    parse_engine(profile(profile_name).engine)  # said now, not by the first notebook that draws
    place(profile_name)  # and what SEPT_BASES asks for
    if out.exists() and not out.is_dir():
        raise SeptError(f"output folder {str(out)!r}: is a file; choose another --out")
    # Kernels run in the checkout; the store stays where the command was given.
    os.environ["SEPT_RESULTS"] = str(results_dir().resolve())
    theirs = profile(profile_name).notebooks
    wanted = tuple(filter(None, (only or theirs).split(",")))
    paths = [p for p in sorted(folder.glob("[0-9]*.ipynb")) if not wanted or p.name.startswith(wanted)]
    for asked in wanted:  # 1 would be all from 10 to 19
        if len(asked) < 2 or not any(p.name.startswith(asked) for p in paths):
            raise SeptError(
                f"notebooks: none begins with {asked!r}; numbers have two digits, see {folder.name}/"
            )
    expected = _read_minutes(folder.parent / "figures" / profile_name / "minutes.json")
    known = {path.stem: expected[path.stem] for path in paths if path.stem in expected}
    for name, cost in known.items():
        print(f"{name:<28}{cost:6.1f} core-minutes from nothing", file=sys.stderr)
    executed, minutes_file = [], out / "minutes.json"
    sweep(out, age=600)
    for number, path in enumerate(paths, 1):
        given = {"profile": profile_name, "out_dir": str(out.resolve()), **(parameters or {})}
        declared = papermill.inspect_notebook(str(path))
        unknown = sorted(set(given) - set(declared))
        if unknown:
            raise SeptError(
                f"notebook {path.name}: parameter {unknown[0]!r} is not declared; it has "
                f"{', '.join(sorted(declared))}"
            )
        target = out / "notebooks" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shown = f"[{number}/{len(paths)}] {path.name}"
        os.environ["SEPT_NOTEBOOK"] = path.stem
        account = results_dir() / f"cost-{path.stem}.json"
        account.unlink(missing_ok=True)
        begun = time.time()
        try:
            with _watched(shown):
                papermill.execute_notebook(
                    str(path),
                    str(target),
                    given,
                    cwd=str(folder.parent),
                    kernel_name="python3",
                    progress_bar=False,
                    extra_arguments=["--log-level=50"],  # it remarks on its own transport and end
                )
        except papermill.PapermillExecutionError as error:
            raise SeptError(
                f"notebook {path.name}: cell {error.exec_count} failed with {error.ename}: "
                f"{error.evalue}; see {target}"
            ) from None
        except Preempted:
            logging.getLogger("asyncio").disabled = True  # it would show the traceback of what is given up
            raise
        except DeadKernelError:
            raise SeptError(
                f"notebook {path.name}: its kernel was killed, perhaps for lack of memory; give the same "
                "command again, what was finished is kept"
            ) from None
        executed.append(target)
        for drawn in sorted(p for p in out.glob("*.png") if p.stat().st_mtime >= begun):
            print(
                f"  wrote {drawn}", file=sys.stderr, flush=True
            )  # the first picture is there to be looked at
        seconds = json.loads(account.read_text()) if account.is_file() else {}
        with locked(results_dir() / ".cost.lock", wait=True):
            minutes = {**_read_minutes(minutes_file), path.stem: round(sum(seconds.values()) / 60, 1)}
            write_json(minutes_file, dict(sorted(minutes.items())))
    return executed


def _read_minutes(path: Path) -> dict[str, float]:
    return read_json(path, "remove it, it only tells what to expect") if path.is_file() else {}


@contextmanager
def _watched(label: str) -> Iterator[None]:
    """Show the time and what the results store says is going on, on one line or, in a log, now and then.

    A notebook's own progress bars stay inside it, so its kernel leaves notes in the store.
    """
    started, begun, stop = time.monotonic(), time.time(), threading.Event()
    live = sys.stderr.isatty()

    def line() -> str:
        parts = [label, f"{time.monotonic() - started:.0f} s"]
        try:
            path = results_dir() / "progress.json"
            if path.stat().st_mtime < begun:  # of a notebook before this one
                return "   ".join(parts)
            note = json.loads(path.read_text())
            left = f", {note['minutes_left']} min left" if "minutes_left" in note else ""
            parts.append(f"{note['label']} {note['done']}/{note['total']}{left}")
            notes = [
                p for p in results_dir().glob("*-*/progress.json") if time.time() - p.stat().st_mtime < 60
            ]
            rounds = [json.loads(p.read_text()) for p in notes]
            rounds = [f"{n['row']['round'] + 1}/{n['rounds']}" for n in rounds if n["seconds_left"]]
            parts += [f"rounds {', '.join(rounds)}"] if rounds else []
        except (OSError, ValueError):
            pass
        return "   ".join(parts)

    def watch() -> None:
        while not stop.wait(1 if live else 20):
            end = "" if live else "\n"
            print(("\r\033[K" if live else "") + line(), end=end, file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        clear = "\r\033[K" if live else ""
        print(f"{clear}{label}   {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
