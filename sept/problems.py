"""Problem sets: prompt, reference answer, id. The embedded world's sets by name, or a file's.

Names: `toy:test`, `toy:dev`, `toy:train`, each optionally followed by families and a number per family,
as in `toy:test:add4+mul3` or `toy:dev:64` or `toy:test:rev+sort:100`. Files: JSON lines, CSV or parquet
with the columns `prompt` and `answer`, optionally `id` and `family`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .config import SeptError, digest


@dataclass(frozen=True)
class Problem:
    """One question."""

    id: str
    """Unique and stable: it names the question in every seed and every table."""
    family: str
    """Which benchmark or problem family it belongs to; scores are averaged over families."""
    prompt: str
    answer: str


@dataclass(frozen=True)
class ProblemSet:
    """A finite list of problems, or an endless stream of fresh ones."""

    name: str
    items: tuple[Problem, ...] = ()
    stream: Callable[[int, int], Problem] | None = field(default=None, compare=False)
    """(seed, index) -> problem, for endless sets."""
    world: str = "file"
    """`toy` problems are graded by the world's own rule, others by `grading`."""

    @property
    def families(self) -> tuple[str, ...]:
        """Families in order of first appearance."""
        return tuple(dict.fromkeys(p.family for p in self.items))

    def hash(self) -> str:
        """Identifies the content and how it is graded: every item of a list, or the first of a stream."""
        items = self.items or tuple(self.stream(0, i) for i in range(64))  # type: ignore[misc]
        return digest([self.world, *([p.id, p.family, p.prompt, p.answer] for p in items)])

    def batch(self, round: int, size: int, seed: int) -> list[Problem]:
        """The questions of a round: fresh ones, or the next of an order reshuffled every epoch.

        An incomplete last batch of an epoch is dropped, as in the authors' code; a set smaller than
        `size` is an error.
        """
        if self.stream is not None:
            return [self.stream(seed, round * size + i) for i in range(size)]
        per_epoch = len(self.items) // size
        if per_epoch == 0:
            raise SeptError(
                f"problems {self.name!r}: {len(self.items)} of them are fewer than the {size} questions "
                "of a round; lower `questions` or give more problems"
            )
        epoch, place = divmod(round, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(self.items))
        return [self.items[i] for i in order[place * size : (place + 1) * size]]


def load_problems(name: str) -> ProblemSet:
    """A problem set by name or file. SeptError if it is missing, empty, or lacks a column."""
    if name.startswith("toy:"):
        return _toy(name)
    path = Path(name)
    if not path.is_file():
        raise SeptError(f"problems {name!r}: no such file; known names are toy:test, toy:dev, toy:train")
    problems = _from_table(path)
    if not problems:
        raise SeptError(f"problems {name!r}: the set is empty; give at least one row")
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise SeptError(f"problems {name!r}: id {problem.id!r} appears twice; ids must be unique")
        seen.add(problem.id)
    return ProblemSet(name, tuple(problems))


def _from_table(path: Path) -> list[Problem]:
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path).astype(object)
        elif path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        elif path.suffix in (".jsonl", ".json"):  # not by pandas: it would turn an answer 2 into 2.0
            text = path.read_text()
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            table = pd.DataFrame(json.loads(text) if path.suffix == ".json" else lines, dtype=object)
        else:
            raise SeptError(f"problems {str(path)!r}: use a .jsonl, .json, .csv or .parquet file")
    except SeptError:
        raise
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SeptError(f"problems {str(path)!r}: cannot be read ({first})") from None
    missing = [c for c in ("prompt", "answer") if c not in table.columns] if len(table) else []
    if missing:
        raise SeptError(
            f"problems {str(path)!r}: column {missing[0]!r} is missing; columns are "
            f"{', '.join(map(str, table.columns))}, needed are prompt and answer"
        )
    out = []
    for i, cells in enumerate(table.to_dict("records")):
        row = {str(k): str(v) for k, v in cells.items() if not (v is None or v != v)}  # NaN is absent
        if not row.get("prompt", "").strip() or not row.get("answer", "").strip():
            raise SeptError(f"problems {str(path)!r}: row {i + 1} has an empty prompt or answer")
        names = row.get("id", str(i)), row.get("family") or path.stem
        out.append(Problem(*names, row["prompt"], row["answer"]))
    return out


def _toy(name: str) -> ProblemSet:
    from . import toy

    families: tuple[str, ...] = toy.FAMILIES
    split, count = name.split(":")[1], 100
    for part in name.split(":")[2:]:
        if part.isdigit():
            count = int(part)
        else:
            families = tuple(part.split("+"))
    known = (*toy.FAMILIES, *toy.OTHER_TASKS)
    if split not in ("test", "dev", "train") or not set(families) <= set(known):
        raise SeptError(
            f"problems {name!r}: unknown; use toy:test, toy:dev or toy:train, then families from "
            f"{', '.join(known)} joined by +, then a number per family"
        )
    if not 1 <= count <= 500:
        what = "the set is empty" if count < 1 else "a family has no more than 500 questions a split"
        raise SeptError(f"problems {name!r}: {what}; ask for 1 to 500 per family")
    if split != "train":
        items = tuple(Problem(*q) for q in toy.fixed_problems(split, families, count))
        return ProblemSet(name, items, world="toy")

    def fresh(seed: int, index: int) -> Problem:
        return Problem(*toy.make_problem("train", families[index % len(families)], index, seed))

    return ProblemSet(name, stream=fresh, world="toy")


def check_lengths(prompts: Sequence[Sequence[int]], ids: Sequence[str], room: int) -> None:
    """SeptError naming the first prompt of more than `room` tokens."""
    for prompt, id in zip(prompts, ids, strict=True):
        if len(prompt) > room:
            raise SeptError(
                f"prompt of problem {id!r} has {len(prompt)} tokens, but only {room} fit beside "
                "max_new_tokens in the context; drop it or lower max_new_tokens"
            )
