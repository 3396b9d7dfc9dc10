"""Problem sets: prompt, reference answer, id. The embedded world's sets by name, the hub's, or a file's.

Names: `toy:test`, `toy:dev`, `toy:train`, each optionally followed by families and a number per family,
as in `toy:test:add4+mul3` or `toy:dev:64` or `toy:test:rev+sort:100`. `toy:train` is endless; with a number
it is a finite set, and a second number draws another one: `toy:train:96:7`. Files: JSON lines, JSON, CSV or
parquet with the columns `prompt` and `answer`, optionally `id` and `family`, or in the authors' schema.
Hub sets: `sept.benchmarks.BENCHMARKS`. Files and hub sets may be joined by `+` and followed by options:
a grader (`string`, `math`, `parity`), a number per family, `max=TOKENS` of a prompt, and `prompt=`,
`answer=`, `id=` (columns) or `split=`, as in `math500+aime24:parity:30` or `my.csv:math:prompt=question`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .config import SeptError, digest, notice


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
    """Who grades: `toy` the world's own rule; `file` equal strings; `math`, `parity`: see `grading`."""
    max_prompt: int | None = None
    """Longest prompt in tokens, where it is not the context that limits it."""
    dropped: int = field(default=0, compare=False)
    """Questions left out by `fitting`."""

    @property
    def families(self) -> tuple[str, ...]:
        """Families in order of first appearance."""
        return tuple(dict.fromkeys(p.family for p in self.items))

    def hash(self) -> str:
        """Identifies the content and how it is graded: every item of a list, or the first of a stream."""
        items = self.items or tuple(self.stream(0, i) for i in range(64))  # type: ignore[misc]
        limit = [] if self.max_prompt is None else [self.max_prompt]
        return digest([self.world, *limit, *([p.id, p.family, p.prompt, p.answer] for p in items)])

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
    from .benchmarks import BENCHMARKS, PROMPT_LIMIT, from_hub

    body, options = _options(name)
    problems: list[Problem] = []
    titles: list[str] = []
    mathematical = False  # of a benchmark rather than of a file with plain columns
    parts = [body] if Path(body).is_file() else body.split("+")
    for place, part in enumerate(parts):
        if part in parts[:place]:
            raise SeptError(f"problems {name!r}: {part!r} is named twice; name it once")
        if Path(part).is_file():
            found, authors = _from_table(Path(part), options)
            if {p.id for p in found} & {p.id for p in problems}:  # two files that number their rows
                found = [replace(p, id=f"{Path(part).stem}/{p.id}") for p in found]
        elif part.partition("@")[0] in BENCHMARKS:
            (found, part), authors = from_hub(part, options), True
        else:
            file, _, option = part.rpartition(":")
            if Path(file).is_file() or file.partition("@")[0] in BENCHMARKS:
                raise SeptError(
                    f"problems {part!r}: option {option!r} is unknown; take a grader (string, math, parity), a "
                    "number from 1 on, max=TOKENS, prompt=COLUMN, answer=COLUMN, id=COLUMN or split=NAME"
                )
            if not part and len(parts) > 1:
                raise SeptError(f"problems {name!r}: a name is empty; write name+name")
            what = "is a folder, name a file in it" if part and Path(part).is_dir() else "no such file"
            raise SeptError(
                f"problems {part!r}: {what}; known names are toy:test, toy:dev, toy:train, "
                + ", ".join(BENCHMARKS)
            )
        if not found:
            raise SeptError(f"problems {part!r}: the set is empty; give at least one row")
        problems += found
        titles.append(part)
        mathematical |= authors
    if most := int(options.get("number", 0)):
        of_family: dict[str, list[Problem]] = {}
        for problem in problems:
            of_family.setdefault(problem.family, []).append(problem)
        problems = [p for members in of_family.values() for p in members[:most]]
    for id, times in Counter(p.id for p in problems).items():
        if times > 1:
            raise SeptError(f"problems {name!r}: id {id!r} appears twice; ids must be unique, or left out")
    world = options.get("grader", "math" if mathematical else "file")
    if world in ("math", "parity") and importlib.util.find_spec("math_verify") is None:
        raise SeptError(
            f"problems {name!r}: grader {world} needs math-verify: pip install 'sept[eval]', or put :string "
            "behind the name for equal strings"
        )
    limit = int(options.get("max", PROMPT_LIMIT if mathematical else 0)) or None
    title = "+".join(titles) + name.removeprefix(body)
    return ProblemSet(title, tuple(problems), world=world, max_prompt=limit)


_OPTION = re.compile(
    r"(.+):(?:(?P<grader>string|math|parity)|(?P<number>[1-9]\d*)|max=(?P<max>[1-9]\d*)"
    r"|prompt=(?P<prompt>[^:]+)|answer=(?P<answer>[^:]+)|id=(?P<id>[^:]+)|split=(?P<split>[^:]+))"
)


def _options(name: str) -> tuple[str, dict[str, str]]:
    """What stands before the options of a name, and the options."""
    options: dict[str, str] = {}
    while (match := _OPTION.fullmatch(name)) and not Path(name).is_file():
        options |= {k: v for k, v in match.groupdict().items() if v and k not in options}
        name = match[1]
    if options.get("grader") == "string":
        options["grader"] = "file"
    return name, options


def _from_table(path: Path, options: dict[str, str]) -> tuple[list[Problem], bool]:
    """Problems of a file, and whether it is in the authors' schema."""
    import pandas as pd

    from .benchmarks import Source, columns_of, read

    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path).astype(object)
        elif path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        elif path.suffix in (".jsonl", ".json"):  # not by pandas: it would turn an answer 2 into 2.0
            text = path.read_text(encoding="utf-8-sig")
            rows = _json_lines(text) if path.suffix == ".jsonl" else json.loads(text)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ValueError("needed are a list of objects, one per problem")
            table = pd.DataFrame(rows, dtype=object)
        else:
            raise SeptError(f"problems {str(path)!r}: use a .jsonl, .json, .csv or .parquet file")
    except SeptError:
        raise
    except UnicodeDecodeError:
        lines = path.read_bytes().split(b"\n")
        number = next(
            (i for i, line in enumerate(lines, 1) if "\ufffd" in line.decode(errors="replace")), 1
        )
        raise SeptError(
            f"problems {str(path)!r}: line {number} is not UTF-8; save the file as UTF-8"
        ) from None
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        first = first.removeprefix("Error tokenizing data. C error: ")
        raise SeptError(f"problems {str(path)!r}: cannot be read ({first}); correct the file") from None
    if not len(table):
        return [], False
    source, names = Source(**columns_of(options)), [str(c) for c in table.columns]
    table.columns = pd.Index(names)
    problems = read(str(path), table.to_dict("records"), names, source, strict=True)
    return problems, "reward_model" in names and source.answer not in names


def _json_lines(text: str) -> list[dict]:
    """The objects of a file with one a line. ValueError that names a line which is none."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(rows[-1], dict):
                raise ValueError(f"line {number} is not a JSON object")
    return rows


def _toy(name: str) -> ProblemSet:
    from . import toy

    families: tuple[str, ...] = toy.FAMILIES
    split, numbers = name.split(":")[1], []
    for part in name.split(":")[2:]:
        if part.isdecimal() and len(part) < 9:
            numbers.append(int(part))
        else:
            families = tuple(part.split("+"))
    known = (*toy.FAMILIES, *toy.OTHER_TASKS)
    if set(families) & {"string", "math", "parity"}:
        raise SeptError(f"problems {name!r}: the embedded world has a grader of its own; name none")
    if split not in ("test", "dev", "train") or not set(families) <= set(known):
        raise SeptError(
            f"problems {name!r}: unknown; use toy:test, toy:dev or toy:train, then families from "
            f"{', '.join(known)} joined by +, then a number per family"
        )
    if len(numbers) > 1 + (split == "train"):
        raise SeptError(f"problems {name!r}: only a finite toy:train takes a second number, its seed")
    count, set_seed = (*numbers, *(100, 0)[len(numbers) :])
    if not 1 <= count <= 500:
        what = "the set is empty" if count < 1 else "a family has no more than 500 questions a split"
        raise SeptError(f"problems {name!r}: {what}; ask for 1 to 500 per family")
    if split != "train":
        items = tuple(Problem(*q) for q in toy.fixed_problems(split, families, count))
        return ProblemSet(name, items, world="toy")

    def fresh(seed: int, index: int) -> Problem:
        return Problem(*toy.make_problem("train", families[index % len(families)], index, seed))

    if split == "train" and numbers:
        items = tuple(fresh(set_seed, i) for i in range(count * len(families)))
        return ProblemSet(name, items, world="toy")
    return ProblemSet(name, stream=fresh, world="toy")


def fitting(problems: ProblemSet, encode: Callable[[str], Sequence[int]], room: int) -> ProblemSet:
    """`problems` without the prompts of more than `room` tokens or than the set allows; says how many.

    The embedded world's are all kept: there, and where nothing is left, it is a SeptError.
    """
    room = min(room, problems.max_prompt or room)
    sizes = [len(encode(p.prompt)) for p in problems.items]
    kept = tuple(p for p, size in zip(problems.items, sizes, strict=True) if size <= room)
    if len(kept) == len(problems.items):
        return problems
    if problems.world == "toy" or not kept:
        check_lengths([encode(p.prompt) for p in problems.items], [p.id for p in problems.items], room)
    lost = [p.id for p, size in zip(problems.items, sizes, strict=True) if size > room]
    notice(
        f"problems {problems.name!r}: {len(lost)} of {len(sizes)} prompts have more than {room} tokens and "
        f"were dropped: {', '.join(lost[:3])}{', ...' * (len(lost) > 3)}"
    )
    return replace(problems, items=kept, dropped=problems.dropped + len(lost))


def check_lengths(prompts: Sequence[Sequence[int]], ids: Sequence[str], room: int) -> None:
    """SeptError naming the first prompt of more than `room` tokens."""
    if room < 1:
        raise SeptError(
            f"max_new_tokens leaves no room for a prompt: the model's context is {1 - room} tokens too short; "
            "lower it"
        )
    for prompt, id in zip(prompts, ids, strict=True):
        if len(prompt) > room:
            raise SeptError(
                f"prompt of problem {id!r} has {len(prompt)} tokens, but only {room} fit beside "
                "max_new_tokens in the context; drop it or lower max_new_tokens"
            )
