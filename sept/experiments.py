"""Arms x seeds x bases as content-addressed runs: the results store, the runner, the profiles.

A result's key is made of the config, the hash of the checkpoint, the hash of the problem set and
RESULTS_VERSION: a finished result is never computed twice, and never reused after a change that alters
numbers. Runs go side by side as single-thread processes, which is how small models use a CPU best.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from .config import RESULTS_VERSION, Config, SeptError, digest, preset
from .provenance import environment, write_json, write_text


@dataclass(frozen=True)
class Profile:
    """One scale of the same notebooks. Times are for 2 CPU cores."""

    seeds: tuple[int, ...]
    """Training seeds reported (never used to choose anything)."""
    temperatures: tuple[float, ...]
    """Decoding temperatures of every sweep; 0 is greedy."""
    test: str = "toy:test:100"
    """Questions that are reported on."""
    dev: str = "toy:dev:32"
    """Questions that anything is chosen on."""
    train: str = "toy:train"
    """Questions that are trained on."""
    model: str = "H"
    """Shipped base, folder or hub id."""
    n: int = 32
    """Samples per question."""
    max_new_tokens: int = 56
    """Response limit in tokens, in training and in evaluation."""
    train_overrides: dict[str, Any] = field(default_factory=dict)
    """Config fields that differ from the arm's preset at this scale."""
    tuning_seeds: tuple[int, ...] = (900, 901)
    """Training seeds for choosing learning rates, never reported."""
    rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4)
    """The grid of learning rates, the same for every arm."""
    notebooks: str = ""
    """Comma-separated beginnings of the notebooks that belong to it; empty: all."""

    def label(self) -> str:
        """What figures call the model: `embedded base H, 0.3 M parameters`."""
        from .policy import BASES, load_policy

        size = sum(p.numel() for p in load_policy(self.model).model.parameters())
        shown = f"{size / 1e9:.1f} B" if size > 1e9 else f"{size / 1e6:.1f} M"
        return f"{'embedded base ' * (BASES / self.model).is_dir()}{self.model}, {shown} parameters"

    def runs(
        self, arm: str, count: int | None = None, seeds: tuple[int, ...] = (), **overrides: Any
    ) -> list[Run]:
        """An arm's runs, one per seed: the reported seeds, or the first `count` of them, or `seeds`."""
        overrides = {**self.train_overrides, **overrides}
        if arm == "grpo" and "questions" in overrides:  # as many answers a round, in groups of G
            overrides |= {"questions": overrides["questions"] // 8, "mini_batch": 1}
        pairs = tuple(sorted({"max_new_tokens": self.max_new_tokens, **overrides}.items()))
        return [Run(self.model, arm, seed, self.train, pairs) for seed in (seeds or self.seeds)[:count]]

    def score(self, model: str | Run, tau: float = 1.0, problems: str | None = None) -> Score:
        """A score at this scale, on the test questions unless told otherwise."""
        return Score(model, problems or self.test, tau, self.n, max_new_tokens=self.max_new_tokens)


_TENTHS = tuple(round(0.1 * i, 1) for i in range(17))
_COARSE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
PROFILES = {
    "smoke": Profile(
        seeds=(100,),
        temperatures=(0.0, 0.6, 1.0),
        test="toy:test:2",
        dev="toy:dev:2",
        train_overrides={"rounds": 3, "warmup": 0, "questions": 16, "mini_batch": 8},
        tuning_seeds=(900,),
        rates=(1e-4, 3e-4),
    ),
    "quick": Profile(
        seeds=(100,), temperatures=_COARSE, test="toy:test:24", dev="toy:dev:16", notebooks="00,01,02,03"
    ),
    "laptop": Profile(seeds=(100, 101, 102, 103, 104), temperatures=_TENTHS),
    # The same notebooks on a hub model and on problem files of your own (columns prompt and answer).
    "gpu": Profile(
        seeds=(100,),
        temperatures=(0.0, 0.3, 0.6, 1.0),
        model="Qwen/Qwen2.5-Math-1.5B",
        test="problems/test.jsonl",
        dev="problems/dev.jsonl",
        train="problems/train.jsonl",
        max_new_tokens=1024,
        train_overrides={"rounds": 50, "lr": 1e-6, "micro_batch": 4, "gradient_checkpointing": True},
    ),
    "paper": Profile(
        seeds=(100,),
        temperatures=_TENTHS,
        model="Qwen/Qwen2.5-Math-7B",
        test="problems/test.jsonl",
        dev="problems/dev.jsonl",
        train="problems/train.jsonl",
        max_new_tokens=3072,
        train_overrides={
            "rounds": 942,
            "lr": 1e-7,
            "micro_batch": 4,
            "loss_normalisation": "microbatch-token",
            "tau_s_schedule": "linear",
            "gradient_checkpointing": True,
            "save_every": 50,
        },
    ),
}


def profile(name: str) -> Profile:
    """A profile by name. SeptError on an unknown one."""
    if name not in PROFILES:
        raise SeptError(f"profile {name!r}: unknown, choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


ARM_NAMES = {
    "sept": "SePT",
    "sept-annealed": "SePT (annealed)",
    "offline": "Offline",
    "offline-sft": "Offline (authors' trainer)",
    "coupled": "Coupled",
    "coupled-tau_s": "Coupled (0.6)",
    "coupled-annealed": "Coupled (annealed)",
    "inverted": "Inverted",
    "em-ft": "EM-FT",
    "grpo": "GRPO",
}
"""What figures and tables call an arm."""

# --- runs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A trained model: an arm on a base, with one seed. overrides: config fields, as sorted pairs."""

    base: str
    arm: str
    seed: int
    problems: str = "toy:train"
    overrides: tuple[tuple[str, Any], ...] = ()

    def config(self) -> Config:
        """The full config of this run."""
        return preset(self.arm, **dict(self.overrides), seed=self.seed)

    def key(self) -> str:
        """Content address."""
        return digest(
            [RESULTS_VERSION, self.config().key(), _model_hash(self.base), _set_hash(self.problems)]
        )[:16]


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

    def key(self) -> str:
        """Content address."""
        model = self.model.key() if isinstance(self.model, Run) else _model_hash(self.model)
        set_hash = _set_hash(self.problems)
        drawn = [self.tau, self.n, self.seed, self.max_new_tokens]
        return digest([RESULTS_VERSION, model, set_hash, *drawn])[:16]


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
    wanted = {s.key(): s for s in scores}.values()  # arms may coincide at some scale: once is enough
    runs = {s.model.key(): s.model for s in wanted if isinstance(s.model, Run)}.values()
    todo_runs = [r for r in runs if not (run_folder(r) / "final").is_dir()]
    todo_scores = [s for s in wanted if not score_file(s).is_file()]
    # Long jobs first, so that no core idles at the end.
    todo_scores.sort(key=lambda s: (-s.n, s.tau))
    jobs: list[tuple[str, Callable[[Any], None], list[Any]]] = [
        (f"{label} training".strip(), _train_job, todo_runs),
        (f"{label} evaluating".strip(), _score_job, todo_scores),
    ]
    if workers is None:  # side by side on CPU cores, one after the other on a GPU
        workers = 1 if any(_on_gpu(s.model) for s in todo_scores) else os.cpu_count() or 1
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
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@lru_cache(maxsize=64)
def _on_gpu(model: str | Run) -> bool:
    from .policy import load_policy

    name = model.base if isinstance(model, Run) else model
    return next(load_policy(name).model.parameters()).device.type != "cpu"


def _progress(label: str, total: int, steps: Iterable[Any]) -> None:
    """Run through `steps`, telling a progress bar here and progress.json for whoever else looks."""
    from tqdm.auto import tqdm

    if not total:
        return
    note = results_dir() / "progress.json"
    write_json(note, {"label": label, "done": 0, "total": total})
    for done, _ in enumerate(tqdm(steps, total=total, desc=label, mininterval=1.0), 1):
        write_json(note, {"label": label, "done": done, "total": total})
    note.unlink(missing_ok=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    from transformers.utils import logging

    logging.disable_progress_bar()


def _train_job(run: Run) -> None:
    from .checkpoints import locked
    from .loop import train
    from .policy import load_policy
    from .problems import load_problems

    folder = run_folder(run)

    def tell(row: dict[str, Any]) -> None:
        if row["round"] % 5 == 0:
            write_text(folder / "progress", f"{row['round'] + 1}/{run.config().rounds}")

    with locked(results_dir() / f".{folder.name}.lock", wait=True):  # another notebook may train it now
        if not (folder / "final").is_dir():
            policy = load_policy(run.base)
            train(run.config(), policy, load_problems(run.problems), folder, resume=True, on_round=tell)
        (folder / "progress").unlink(missing_ok=True)


def _score_job(score: Score) -> None:
    from .evaluation import evaluate
    from .policy import load_policy
    from .problems import load_problems
    from .sampling import make_sampler

    name = str(run_folder(score.model) / "final") if isinstance(score.model, Run) else score.model
    policy = load_policy(name)
    table = evaluate(
        policy,
        make_sampler(policy),
        load_problems(score.problems),
        score.tau,
        score.n,
        score.seed,
        score.max_new_tokens,
    )
    path = score_file(score)
    described = {
        "model": score.model if isinstance(score.model, str) else vars(score.model),
        "problems": score.problems,
        "tau": score.tau,
        "n": score.n,
        "seed": score.seed,
        "max_new_tokens": score.max_new_tokens,
        "results_version": RESULTS_VERSION,
        "provenance": environment(),
    }
    write_json(path.parent / "score.json", described)
    write_text(path, table.to_csv(index=False))


# --- notebooks --------------------------------------------------------------------------------------


def record(out_dir: str | Path, name: str, values: dict[str, Any]) -> Path:
    """Write a notebook's headline numbers, for tests and the README to read."""
    path = Path(out_dir) / f"{name}.json"
    write_json(path, {"notebook": name, **values})
    return path


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

    Parameters that a notebook does not declare are an error: papermill would ignore them.
    """
    import papermill

    # Kernels run in the checkout; the store stays where the command was given.
    os.environ["SEPT_RESULTS"] = str(results_dir().resolve())
    wanted = tuple(filter(None, (only or profile(profile_name).notebooks).split(",")))
    paths = [p for p in sorted(notebooks_dir().glob("*.ipynb")) if not wanted or p.name.startswith(wanted)]
    if not paths:
        raise SeptError(f"notebooks: none begins with {only!r}; see {notebooks_dir().name}/")
    executed = []
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
        try:
            with _watched(shown):
                papermill.execute_notebook(
                    str(path),
                    str(target),
                    given,
                    cwd=str(notebooks_dir().parent),
                    kernel_name="python3",
                    progress_bar=False,
                    extra_arguments=["--log-level=50"],  # it remarks on its own transport and end
                )
        except papermill.PapermillExecutionError as error:
            raise SeptError(
                f"notebook {path.name}: cell {error.exec_count} failed with {error.ename}: "
                f"{error.evalue}; see {target}"
            ) from None
        executed.append(target)
    return executed


@contextmanager
def _watched(label: str) -> Iterator[None]:
    """Show the time and what the results store says is going on, on one line or, in a log, now and then.

    A notebook's own progress bars stay inside it, so its kernel leaves notes in the store.
    """
    started, stop = time.monotonic(), threading.Event()
    live = sys.stderr.isatty()

    def line() -> str:
        parts = [label, f"{time.monotonic() - started:.0f} s"]
        try:
            note = json.loads((results_dir() / "progress.json").read_text())
            parts.append(f"{note['label']} {note['done']}/{note['total']}")
            rounds = [p.read_text() for p in results_dir().glob("train-*/progress")]
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


def status_rows() -> list[dict[str, Any]]:
    """One row per run and score in the store: name, state, rounds done, what it is."""
    rows = []
    for folder in sorted(results_dir().glob("*-*")):
        if folder.name.startswith("train-") and (folder / "config.json").is_file():
            described = json.loads((folder / "config.json").read_text())
            total = described["config"]["rounds"]
            note, lines = folder / "progress", folder / "rounds.jsonl"
            done = len(lines.read_text().splitlines()) if lines.is_file() else 0
            done = int(note.read_text().split("/")[0]) if note.is_file() else done
            state = "done" if (folder / "final").is_dir() else "unfinished"
            what = f"{described['model']} {described['config']['objective']} seed {described['config']['seed']}"
            rows.append({"name": folder.name, "state": state, "rounds": f"{done}/{total}", "what": what})
        elif (folder / "score.json").is_file():
            described = json.loads((folder / "score.json").read_text())
            model = described["model"]
            name = (
                model if isinstance(model, str) else f"{model['base']} {model['arm']} seed {model['seed']}"
            )
            state = "done" if (folder / "counts.csv").is_file() else "unfinished"
            what = f"{name} at {described['tau']} on {described['problems']}, n = {described['n']}"
            rows.append({"name": folder.name, "state": state, "rounds": "", "what": what})
    return rows
