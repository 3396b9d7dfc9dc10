"""Arms x seeds x bases as content-addressed runs: the results store and what fills it.

A result's key is made of the config, the hash of the checkpoint, the hash of the problem set and
RESULTS_VERSION: a finished result is never computed twice, and never reused after a change that alters
numbers. Runs go side by side as single-thread processes, which is how small models use a CPU best.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from .config import ARM_NAMES, RESULTS_VERSION, Config, SeptError, digest, preset
from .durable import locked, sweep
from .provenance import environment, read_json, write_json, write_text

if TYPE_CHECKING:
    from .policy import Policy
    from .sampling import Sampler


@dataclass(frozen=True)
class Run:
    """A trained model: an arm on a base, with one seed. overrides: config fields, as sorted pairs."""

    base: str
    arm: str
    seed: int
    problems: str = "toy:train"
    overrides: tuple[tuple[str, Any], ...] = ()
    engine: str = "auto"

    def config(self) -> Config:
        """The full config of this run."""
        return preset(self.arm, **dict(self.overrides), seed=self.seed)

    def key(self) -> str:
        """Content address."""
        drawn = [self.config().key(), _model_hash(self.base), _set_hash(self.problems)]
        return digest([RESULTS_VERSION, *drawn, *_own_draws(self.engine)])[:16]


@dataclass(frozen=True)
class Score:
    """A counts table: n answers per question at temperature tau from a base or a trained model."""

    model: str | Run
    problems: str
    tau: float
    n: int
    seed: int = 0
    """Seed of the evaluation's draws; arms and baselines share it."""
    max_new_tokens: int = 56
    at: int | None = None
    """Of a run: the score after so many rounds, measured while it trains; None: of its last weights."""
    engine: str = "auto"

    def key(self) -> str:
        """Content address."""
        model = self.model.key() if isinstance(self.model, Run) else _model_hash(self.model)
        set_hash = _set_hash(self.problems)
        drawn: list[Any] = [self.tau, self.n, self.seed, self.max_new_tokens]
        drawn += [] if self.at is None else [self.at]
        drawn += _own_draws(self.engine)
        return digest([RESULTS_VERSION, model, set_hash, *drawn])[:16]


def _own_draws(engine: str) -> list[str]:
    """What an engine adds to a key: the built-in ones draw the same tokens, vLLM its own."""
    return ["vllm"] if engine.startswith("vllm") else []


@lru_cache(maxsize=64)
def _model_hash(name: str) -> str:
    from .policy import fingerprint, load_policy

    return fingerprint(load_policy(name))


@lru_cache(maxsize=64)
def _set_hash(name: str) -> str:
    from .problems import load_problems

    return load_problems(name).hash()


def results_dir() -> Path:
    """Where results are kept: SEPT_RESULTS, else `results` in the working directory."""
    return Path(os.environ.get("SEPT_RESULTS", "results"))


def run_folder(run: Run) -> Path:
    """Folder of a run in the store."""
    return results_dir() / f"train-{run.key()}"


def score_file(score: Score) -> Path:
    """Counts table of a score in the store."""
    return results_dir() / f"eval-{score.key()}" / "counts.csv"


def rounds_table(run: Run) -> pd.DataFrame:
    """Per-round metrics of a finished run."""
    return pd.read_json(run_folder(run) / "rounds.jsonl", lines=True)


def counts(score: Score) -> pd.DataFrame:
    """Counts table of a score that has been computed. SeptError if it has not."""
    path = score_file(score)
    if not path.is_file():
        raise SeptError(f"result {path.parent.name} is missing: call compute() on it first")
    return pd.read_csv(path, dtype={"id": str, "family": str}, keep_default_na=False)


def scores(score: Score) -> pd.DataFrame:
    """Per-question scores of a computed result (`evaluation.question_scores`)."""
    from .evaluation import question_scores

    return question_scores(counts(score), greedy=score.tau == 0)


def scored(sweep: dict[float, Score]) -> dict[float, pd.DataFrame]:
    """Per-question scores of a computed sweep, by temperature."""
    return {tau: scores(score) for tau, score in sweep.items()}


def training_table(runs: Iterable[Run], metrics: dict[str, str]) -> pd.DataFrame:
    """Long table arm, seed, round, metric, value of finished runs. metrics: column -> shown name."""
    parts = []
    for run in runs:
        rows = rounds_table(run)
        for column, shown in metrics.items():
            part = pd.DataFrame({"round": rows["round"], "value": rows[column]})
            parts.append(part.assign(arm=ARM_NAMES[run.arm], seed=run.seed, metric=shown))
    return pd.concat(parts, ignore_index=True)


def compute(scores: Iterable[Score], workers: int | None = None, label: str = "") -> None:
    """Make every score exist: train what is missing, then evaluate what is missing, side by side.

    Killed and started again it goes on where it stopped; finished results are left alone.
    """
    check_store()
    wanted = {s.key(): s for s in scores}  # arms may coincide at some scale: once is enough
    missing = [s for s in wanted.values() if not score_file(s).is_file()]
    runs = {s.model.key(): s.model for s in wanted.values() if isinstance(s.model, Run)}
    points: dict[str, list[Score]] = {key: [] for key in runs}
    for score in missing:
        if isinstance(score.model, Run) and score.at is not None:
            rounds = score.model.config().rounds
            if not 1 <= score.at <= rounds:
                raise SeptError(f"score after round {score.at}: this run has {rounds} rounds only")
            points[score.model.key()].append(score)
    # Long jobs first, so that no core idles at the end.
    training = [(r, points[k]) for k, r in runs.items() if points[k] or not _trained(r)]
    training.sort(key=lambda job: -_work(job[0]))
    evaluating = sorted((s for s in missing if s.at is None), key=lambda s: (-s.n, s.tau))
    jobs: list[tuple[str, Callable[[Any], None], list[Any]]] = [
        (f"{label} training".strip(), _train_job, training),
        (f"{label} evaluating".strip(), _score_job, evaluating),
    ]
    side_by_side(jobs, [r for r, _ in training] + [s.model for s in evaluating], workers)
    note_cost([run_folder(r) for r in runs.values()] + [score_file(s).parent for s in wanted.values()])


def check_store() -> None:
    """SeptError if the store was written by another version of the numbers."""
    stamp = results_dir() / "results_version"
    first = next(results_dir().glob("eval-*/score.json"), None)
    found: Any = RESULTS_VERSION
    if stamp.is_file():
        text = stamp.read_text(errors="replace").strip()
        found = int(text) if text.isdecimal() else text
    elif first is not None:
        found = read_json(first, "remove its folder").get("results_version")
    if found != RESULTS_VERSION:
        raise SeptError(
            f"results store {str(results_dir())!r} was written by results version {found!r}, this is version "
            f"{RESULTS_VERSION}: move it away, or name another folder in SEPT_RESULTS"
        )
    if not stamp.is_file():
        write_text(stamp, str(RESULTS_VERSION))
    sweep(results_dir(), age=600)  # what killed processes left; a write takes no minutes


def side_by_side(
    jobs: list[tuple[str, Callable[[Any], None], list[Any]]], models: list[Any], workers: int | None = None
) -> None:
    """One kind of job after the other, (label, function, items), each in as many single-thread processes as
    there are cores; on a GPU, where `models` decide that, one at a time."""
    if workers is None:
        workers = 1 if any(map(_on_gpu, models)) else os.cpu_count() or 1
    workers = min(workers, max(len(items) for *_, items in jobs))
    # Threads are chosen, not left to chance: several threads on busy cores are many times slower.
    if workers <= 1:
        import torch

        threads = torch.get_num_threads()
        _one_thread()
        for name, job, items in jobs:
            _progress(name, len(items), (job(item) for item in items))
        torch.set_num_threads(threads)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
        try:
            for name, job, items in jobs:
                futures = [pool.submit(job, item) for item in items]
                _progress(name, len(items), (future.result() for future in as_completed(futures)))
        except BrokenProcessPool:
            raise SeptError(
                "a process that computed results was killed, perhaps for lack of memory; do the same again: "
                "what was finished is kept"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _trained(run: Run) -> bool:
    return (run_folder(run) / "final").is_dir()


def _work(run: Run) -> int:
    """Answers that a run trains on: what its time goes with."""
    config = run.config()
    return config.rounds * config.questions * config.G * config.mu


def note_cost(folders: list[Path]) -> None:
    """Add the seconds of everything asked for to the account of the notebook that is running."""
    account = results_dir() / f"cost-{Path(os.environ.get('SEPT_NOTEBOOK', 'other')).name}.json"
    files = [folder / "seconds" for folder in folders]
    added = {f.parent.name: float(f.read_text()) for f in files if f.is_file()}
    with locked(results_dir() / ".cost.lock", wait=True):
        write_json(account, (json.loads(account.read_text()) if account.is_file() else {}) | added)


@lru_cache(maxsize=64)
def _on_gpu(model: str | Run) -> bool:
    from .policy import load_policy

    name = model.base if isinstance(model, Run) else model
    return next(load_policy(name).model.parameters()).device.type != "cpu"


def _progress(label: str, total: int, steps: Iterable[Any]) -> None:
    """Run through `steps`, telling a progress bar here and progress.json for whoever else looks."""
    from .live import bar

    if not total:
        return
    note, started = results_dir() / "progress.json", time.monotonic()
    write_json(note, {"label": label, "done": 0, "total": total})
    with bar(total, label, "") as shown:
        for done, _ in enumerate(steps, 1):
            shown.update()
            left = (time.monotonic() - started) / done * (total - done) / 60
            write_json(note, {"label": label, "done": done, "total": total, "minutes_left": round(left, 1)})
    note.unlink(missing_ok=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    if parent := parent_process():  # a pool's process would wait for a killed parent for ever

        def follow() -> None:
            parent.join()
            while True:  # a training saves first
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)

        threading.Thread(target=follow, daemon=True).start()
    from transformers.utils import logging

    logging.disable_progress_bar()


def _train_job(job: tuple[Run, list[Score]]) -> None:
    """Train a run; on the way, measure the scores `at` rounds that are missing.

    Weights in between are not kept. So scores missed in a finished run, or before the checkpoint that a
    killed run went on from, are measured in a second pass from its start, which is thrown away. It has to
    be the same run to the byte; on another machine it may not be, which is a SeptError.
    """
    run, points = job
    folder = run_folder(run)
    with locked(results_dir() / f".{folder.name}.lock", wait=True):  # another notebook may train it now
        if not _trained(run):
            _pass_over(run, points, folder)
        if any(not score_file(s).is_file() for s in points):
            again = folder.with_name(f"again-{run.key()}")
            shutil.rmtree(again, ignore_errors=True)
            _pass_over(run, points, again)
            same = _numbers(again) == _numbers(folder)
            if not same:
                for score in points:
                    shutil.rmtree(score_file(score).parent, ignore_errors=True)
            shutil.rmtree(again)
            if not same:
                raise SeptError(
                    f"run {folder.name} comes out differently here than where it was trained, so scores on "
                    "its way cannot be measured: delete its folder to train it again"
                )


def _numbers(folder: Path) -> list[dict[str, Any]]:
    """A run's rows without what is only shown."""
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "answers"} for row in rows]


def _pass_over(run: Run, points: list[Score], folder: Path) -> None:
    """Train `run` in `folder`, or go on with it, measuring `points`; note its seconds without theirs."""
    from .live import Live
    from .loop import train
    from .policy import load_policy
    from .problems import load_problems
    from .sampling import make_sampler

    policy, live = load_policy(run.base), Live(folder, run.config())
    # One vLLM can run at a time, so its engine measures as well. Where it stays behind, a built-in one does.
    shared = make_sampler(policy, run.engine) if _own_draws(run.engine) else None
    started, measuring = time.monotonic(), 0.0

    def tell(row: dict[str, Any]) -> None:
        nonlocal measuring
        done, begun = row["round"] + 1, time.monotonic()
        live(row)
        for score in (s for s in points if s.at == done and not score_file(s).is_file()):
            current = shared if shared and shared.version == policy.version else make_sampler(policy)
            _measure(score, policy, current)
        measuring += time.monotonic() - begun

    train(
        run.config(),
        policy,
        load_problems(run.problems),
        folder,
        resume=True,
        sampler=shared,
        engine=run.engine,
        on_round=tell,
        name=run.arm,
    )
    live.close()
    _release(shared)
    note = run_folder(run) / "seconds"
    before = float(note.read_text()) if note.is_file() else 0.0
    write_text(note, f"{before + time.monotonic() - started - measuring:.1f}")


def _score_job(score: Score) -> None:
    from .policy import load_policy
    from .sampling import make_sampler

    name = str(run_folder(score.model) / "final") if isinstance(score.model, Run) else score.model
    policy = load_policy(name)
    sampler = make_sampler(policy, score.engine, training=False)
    _measure(score, policy, sampler)
    _release(sampler)


def _release(sampler: Sampler | None) -> None:
    """Let vLLM, which holds its memory until then, give it back."""
    if sampler is not None and hasattr(sampler, "close"):
        sampler.close()


def _measure(score: Score, policy: Policy, sampler: Sampler) -> None:
    """Evaluate `policy` and write the counts table that `score` names, unless it is there."""
    path = score_file(score)
    with locked(path.parent / ".lock", wait=True):  # another notebook may measure it now
        if path.is_file():
            return
        sweep(path.parent)
        _write_score(score, policy, sampler, path)


def _write_score(score: Score, policy: Policy, sampler: Sampler, path: Path) -> None:
    from .evaluation import evaluate
    from .problems import load_problems

    started = time.monotonic()
    problems, limit = load_problems(score.problems), score.max_new_tokens
    table = evaluate(policy, sampler, problems, score.tau, score.n, score.seed, limit)
    described = {**vars(score), "results_version": RESULTS_VERSION, "provenance": environment()}
    described |= {"grader": problems.world, "dropped": len(problems.items) - len(table)}
    described |= {"template": policy.template, "prompt": policy.shown(problems.items[0].prompt)}
    described["model"] = score.model if isinstance(score.model, str) else vars(score.model)
    write_json(path.parent / "score.json", described)
    write_text(path.parent / "seconds", f"{time.monotonic() - started:.1f}")
    write_text(path, table.to_csv(index=False))


def record(
    out_dir: str | Path, name: str, values: dict[str, Any], claims: dict[str, Any] | None = None
) -> Path:
    """Write a notebook's headline numbers, for tests and the README to read.

    claims: the statistics of `sept.claims` that it measured, name -> (value, lo, hi) or a row of
    `evaluation.summarise`.
    """
    path = Path(out_dir) / f"{name}.json"
    given = {
        key: [float(v[c]) for c in ("value", "lo", "hi")] if hasattr(v, "index") and "lo" in v else list(v)
        for key, v in (claims or {}).items()
    }
    write_json(path, {"notebook": name, **values, **({"claims": given} if given else {})})
    return path


def status_rows() -> list[dict[str, Any]]:
    """One row per run and score in the store: name, state, rounds done, what it is."""
    from .live import state_of

    rows = []
    for folder in sorted(results_dir().glob("*-*")):
        if folder.name.startswith("train-") and (folder / "config.json").is_file():
            found = state_of(folder)
            described = found["record"]
            state = "done" if found["state"] == "done" else "unfinished"
            what = f"{described['model']} {described['config']['objective']} seed {described['config']['seed']}"
            rounds = f"{found['round']}/{found['rounds']}"
            rows.append({"name": folder.name, "state": state, "rounds": rounds, "what": what})
        elif (folder / "score.json").is_file():
            described = read_json(folder / "score.json", "remove its folder to measure it again")
            model = described["model"]
            name = (
                model if isinstance(model, str) else f"{model['base']} {model['arm']} seed {model['seed']}"
            )
            state = "done" if (folder / "counts.csv").is_file() else "unfinished"
            what = f"{name} at {described['tau']} on {described['problems']}, n = {described['n']}"
            rows.append({"name": folder.name, "state": state, "rounds": "", "what": what})
    return rows
