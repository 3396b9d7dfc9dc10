"""Questions from data sets on the hub and from files of other schemas, brought into one form.

A data set is declared by a few column names (`Source`). The authors' schema is known by its column
`reward_model`. What is dropped or ignored is counted and said in one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .config import SeptError, notice, shipped
from .grading import last_boxed
from .problems import Problem

_COMMIT = re.compile("[0-9a-f]{40}")
PROMPT_LIMIT = 1024
"""Tokens: longer prompts are dropped from all sets of this file, as in the paper's runs."""


@dataclass(frozen=True)
class Source:
    """A data set on the hub (or a folder in its layout): which columns hold what."""

    repo: str = ""
    family: str = ""
    """What tables call it; empty: the column `family`, else the file's name."""
    prompt: str = "prompt"
    """A text, or a list of messages of which one is the user's."""
    answer: str = "answer"
    """A text, a list of texts, messages that end in a boxed answer, or a record with `ground_truth`."""
    id: str = "id"
    split: str = "test"
    config: str | None = None
    revision: str | None = None
    """Commit of the data set. None: the newest, which is reported and recorded."""
    only: Sequence[str] | None = None
    """A column and a value: keep the rows that have it there."""
    behind: str = ""
    """The answer is what follows this mark."""


_DATA = shipped("benchmarks.toml")
BENCHMARKS = {name: Source(**fields) for name, fields in _DATA["sets"].items()}
AUTHORS: dict[str, str] = _DATA["authors"]
"""`data_source` in the authors' files: what tables call it."""


def from_hub(name: str, options: Mapping[str, str]) -> tuple[list[Problem], str]:
    """Questions of a named set, and the name with the commit they are from (`name@commit` asks for one)."""
    name, _, commit = name.partition("@")
    source = replace(BENCHMARKS[name], **columns_of(options))
    revision = commit or source.revision
    try:
        from datasets import load_dataset
    except ImportError:
        raise SeptError(f"problems {name!r}: data sets need datasets: pip install 'sept[eval]'") from None
    try:
        table = load_dataset(source.repo, source.config, split=source.split, revision=revision)
    except Exception as error:  # it raises many types of its own
        raise SeptError(
            f"problems {name!r}: {source.repo} (split {source.split}, commit {revision or 'newest'}) cannot "
            f"be loaded ({_line(error)}); check the network, or name a file of your own"
        ) from None
    # The cache keeps each commit in a folder of its name; without the hub `datasets` takes the newest of them,
    # whatever was asked for.
    parts = [part for file in table.cache_files for part in Path(file["filename"]).parts]
    found = next((part for part in parts if _COMMIT.fullmatch(part)), None)
    pinned = _COMMIT.fullmatch(revision or "") is not None
    if pinned and found not in (revision, None):
        raise SeptError(
            f"problems {name!r}: commit {revision} cannot be had without the hub, only the newest in the local "
            f"cache, {found}; go online, or ask for {name}@{found}"
        )
    if not pinned:
        notice(f"problems {name!r}: no commit is pinned, took {found or source.repo}; pin {name}@COMMIT")
    problems, revision = read(name, table, table.column_names, source), found or revision
    return problems, f"{name}@{revision}" if revision else name


def columns_of(options: Mapping[str, str]) -> dict[str, Any]:
    """Those options of a problem set's name that are fields of a `Source`."""
    return {k: options[k] for k in ("prompt", "answer", "id", "split") if k in options}


def read(
    name: str, rows: Iterable[Mapping[str, Any]], columns: list[str], source: Source, strict: bool = False
) -> list[Problem]:
    """Problems from rows. strict: an empty cell is an error that names its row, not dropped and counted."""
    authors = "reward_model" in columns and source.answer not in columns
    if authors:
        source = replace(source, answer="reward_model")
    only = source.only[0] if source.only else source.prompt
    wanted = (source.prompt, source.answer, only)
    if missing := [c for c in wanted if c not in columns]:
        raise SeptError(
            f"problems {name!r}: column {missing[0]!r} is missing; columns are "
            f"{', '.join(map(str, columns))}, needed are {source.prompt} and {source.answer}"
        )
    used = {*wanted, source.id, "data_source" if authors else "family"}
    if ignored := sorted(set(columns) - used):
        notice(f"problems {name!r}: columns that are not used: {', '.join(ignored)}")
    out: list[Problem] = []
    answers: dict[str, str] = {}
    empty = again = otherwise = 0
    for i, row in enumerate(rows):
        if source.only and row[only] != source.only[1]:
            continue
        try:
            prompt, answer = _prompt(row[source.prompt]), _answer(row[source.answer], source.behind)
            id, family = _cell(row.get(source.id)) or str(i), source.family or _cell(row.get("family"))
            if authors:
                family = AUTHORS.get(str(row.get("data_source")), _cell(row.get("data_source")))
        except UnicodeEncodeError:
            raise SeptError(
                f"problems {name!r}: row {i + 1} has half a character, which is no text; correct it"
            ) from None
        if not prompt.strip() or not answer.strip():
            if strict and not authors:
                raise SeptError(f"problems {name!r}: row {i + 1} has an empty prompt or answer; fill it in")
            empty += 1
            continue
        if prompt in answers:
            again += 1
            otherwise += answers[prompt] != answer
            continue
        answers[prompt] = answer
        if not strict or authors:
            id = f"{family}/{id}"  # sets that are joined number their questions alike
        out.append(Problem(id, family or Path(name).stem, prompt, answer))
    if empty:
        notice(f"problems {name!r}: {empty} rows have no prompt or no answer and were dropped")
    if again:
        notice(
            f"problems {name!r}: {again} rows repeat an earlier prompt and were dropped, "
            f"{otherwise} of them with another answer"
        )
    return out


def _cell(value: Any) -> str:
    """Text of a cell; absent and NaN are empty. UnicodeEncodeError where it is half a character."""
    import pandas as pd

    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    text = str(value)
    text.encode()
    return text


def _messages(value: Any) -> Iterator[tuple[str, str]]:
    """(role, content) of each message; hub sets name these keys in two ways."""
    for turn in value:
        if isinstance(turn, Mapping):
            yield _cell(turn.get("role", turn.get("from"))), _cell(turn.get("content", turn.get("value")))


def _prompt(value: Any) -> str:
    if value is None or isinstance(value, (str, float, int)):
        return _cell(value)
    turns = [content for role, content in _messages(value) if role in ("user", "human")]
    return turns[0] if len(turns) == 1 else ""


def _answer(value: Any, behind: str) -> str:
    if isinstance(value, Mapping):
        return _cell(value.get("ground_truth"))
    if value is None or isinstance(value, (str, float, int)):
        text = _cell(value)
        return text.rpartition(behind)[2].strip().replace(",", "") if behind else text
    parts = list(value)
    if parts and isinstance(parts[0], Mapping):
        return last_boxed(list(_messages(parts))[-1][1]) or ""
    return ", ".join(map(_cell, parts))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
