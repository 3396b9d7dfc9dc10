"""Is this answer right?

Four graders. `toy`: the embedded world's own rule. `file`: equal strings. `math`: math-verify, strictly.
`parity`: as the verifier behind the paper's numbers. The last two want the answer in \\boxed{} and run in
processes of their own (`sept.verify`) with a hard limit on time and memory per answer: a hanging process
is killed and replaced, the answer counts as wrong, the run goes on. Verdicts are kept, in memory and in
the results store.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from multiprocessing.connection import wait
from pathlib import Path

from .config import RESULTS_VERSION, SeptError, digest, is_secret, notice
from .problems import Problem

LIMIT = 5.0
"""Seconds of processor time that one answer may take before it counts as wrong: a verdict must not depend
on what else the machine does."""
PATIENCE = 12
"""Times that by the clock, after which a grading process is killed from outside."""
START_LIMIT = 120.0
"""Seconds that a grading process may take to start."""
LONGEST = 2000
"""Characters of an answer or reference beyond which only equal strings are right."""
COMMAND = [sys.executable, "-P", "-m", "sept.verify"]
PROCESSES = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


def grade(response: str, finished: bool, problem: Problem, world: str) -> bool:
    """True if `response` answers `problem`.

    Embedded world: what follows the last `#`, exactly, and the answer must have ended by itself.
    Files: the last balanced \\boxed{...} if there is one, else the last line, compared as strings
    without surrounding white space. `math` and `parity`: one answer of `grade_all`.
    """
    if world == "toy":
        from .toy import is_correct

        return is_correct(response, finished, problem.answer)
    if world in ("math", "parity"):
        return grade_all([response], [finished], [problem], world)[0]
    boxed = last_boxed(response)
    lines = response.strip().splitlines()
    given = boxed if boxed is not None else (lines[-1] if lines else "")
    return given.strip() == problem.answer.strip()


def grade_all(
    responses: Iterable[str], finished: Sequence[bool], problems: Sequence[Problem], world: str
) -> list[bool]:
    """`grade` of many answers, problems[i] being what responses[i] answers; `math` and `parity` in parallel.

    Equal strings first; what has no box, an empty one or a very long one is wrong without further ado.
    """
    if world not in ("math", "parity"):
        return [grade(*each, world) for each in zip(responses, finished, problems, strict=True)]
    asked: list[bool | _Key] = []
    for text, problem in zip(responses, problems, strict=True):
        given, reference = (last_boxed(text) or "").strip(), problem.answer.strip()
        at_once = given == reference or not given or max(len(given), len(reference)) > LONGEST
        asked.append(given == reference if at_once else (world, given, reference))
    keys = dict.fromkeys(a for a in asked if not isinstance(a, bool))
    _recall([key for key in keys if key not in _verdicts])
    if new := [key for key in keys if key not in _verdicts]:
        found = dict(zip(new, _judge(new), strict=True))
        _verdicts.update({key: bool(right) for key, right in found.items()})
        _keep({key: right for key, right in found.items() if right is not None})
        if cut := [key[1] for key, right in found.items() if right is None]:
            notice(
                f"grading: {len(cut)} answers took more than {LIMIT:g} s or too much memory and count as "
                f"wrong, such as {cut[0][:60]!r}"
            )
    return [a if isinstance(a, bool) else _verdicts[a] for a in asked]


def last_boxed(text: str) -> str | None:
    """Content of the last complete \\boxed{...} with balanced braces, or None. One pass, however nested.

    >>> last_boxed(r"so \\boxed{\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    """
    opened: list[int] = []  # where each open brace's content starts; negative if it is no box
    best, end = -1, -1
    for brace in re.finditer(r"\\boxed\{|[{}]", text):
        if brace[0] != "}":
            opened.append(brace.end() if brace[0] != "{" else -1)
        elif opened and (start := opened.pop()) > best:
            best, end = start, brace.start()
    return text[best:end] if best >= 0 else None


# --------------------------------------------------------------------------------------------- verdicts

_Key = tuple[str, str, str]
"""Grader, answer, reference."""
_verdicts: dict[_Key, bool] = {}


def _store() -> sqlite3.Connection:
    """Verdicts of earlier processes; sqlite keeps writers apart."""
    path = Path(os.environ.get("SEPT_RESULTS", "results")) / "grades.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    store = sqlite3.connect(path, timeout=60)
    store.execute("create table if not exists grades (key text primary key, verdict integer)")
    return store


def _name(key: _Key) -> str:
    return digest([RESULTS_VERSION, importlib.metadata.version("math-verify"), *key])


def _recall(keys: list[_Key]) -> None:
    """Read into memory what the store knows of `keys`."""
    if not keys:
        return
    try:
        with closing(_store()) as store:
            for key in keys:
                row = store.execute("select verdict from grades where key = ?", (_name(key),)).fetchone()
                if row and row[0] in (0, 1):  # others can write there, too
                    _verdicts[key] = bool(row[0])
    except (sqlite3.Error, OSError) as error:
        notice(f"grading: grades.sqlite in the results store cannot be read ({error}); delete it")


def _keep(found: dict[_Key, bool]) -> None:
    """Add verdicts to the store; not those of the clock, which another machine may not share."""
    try:
        rows = [(_name(key), int(right)) for key, right in found.items()]
        with closing(_store()) as store, store:
            store.executemany("insert or ignore into grades values (?, ?)", rows)
    except (sqlite3.Error, OSError) as error:
        notice(f"grading: verdicts cannot be kept in the results store ({error})")


# -------------------------------------------------------------------------------------------- processes


class _Worker:
    """A grading process. task: what it is at work on, None if idle, -1 while it starts."""

    def __init__(self) -> None:
        here, given = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")
        # A fixed hash seed: the order of sets must not decide what sympy tries first.
        env = {name: value for name, value in os.environ.items() if not is_secret(name)}
        env |= {"PYTHONHASHSEED": "0", "PYTHONPATH": f"{here}{os.pathsep}{given}".rstrip(":")}
        self.process = subprocess.Popen(
            COMMAND,
            bufsize=0,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for whoever asked
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests, self.replies = self.process.stdin, self.process.stdout
        self.task: int | None = -1
        self.deadline = time.monotonic() + START_LIMIT
        self.done = 0

    def give(self, task: int, key: _Key) -> bool:
        """Send a request; False if the process is gone."""
        try:
            self.requests.write(json.dumps([LIMIT, *key]).encode() + b"\n")
        except OSError:
            return False
        self.task, self.deadline = task, time.monotonic() + PATIENCE * LIMIT
        return True

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.requests.close()
        self.replies.close()


_workers: list[_Worker] = []
_lock = threading.Lock()


def _judge(keys: list[_Key]) -> list[bool | None]:
    """Verdicts by the grading processes; None where the time or memory limit was hit."""
    out: list[bool | None] = [None] * len(keys)
    todo = list(range(len(keys)))[::-1]
    with _lock:
        try:
            while True:
                while todo and len(_workers) < min(PROCESSES, 1 + len(keys) // 8):
                    _workers.append(_Worker())
                for worker in [w for w in _workers if w.task is None]:
                    if todo and worker.done < 1000 and worker.give(todo[-1], keys[todo[-1]]):
                        todo.pop()
                    elif todo:  # it is gone, or old: sympy's memory grows
                        _retire(worker)
                busy = [w for w in _workers if w.task is not None]
                if not busy and not todo:
                    return out
                if not busy:
                    continue
                until = min(w.deadline for w in busy) - time.monotonic()
                ready = wait([w.replies.fileno() for w in busy], max(0.0, until))
                for worker in busy:
                    _listen(worker, worker.replies.fileno() in ready, out)
        finally:
            for worker in [w for w in _workers if w.task is not None]:
                _retire(worker)  # interrupted: its reply would be taken for the next one's


def _listen(worker: _Worker, spoke: bool, out: list[bool | None]) -> None:
    """Take a worker's reply, or retire it if it died or is late."""
    reply = worker.replies.readline().strip() if spoke else b""
    late = time.monotonic() > worker.deadline
    if reply:
        if worker.task is not None and worker.task >= 0:
            out[worker.task] = None if reply == b"!" else reply == b"1"
        worker.task, worker.done = None, worker.done + 1
        if reply == b"!":
            _retire(worker)
    elif spoke or late:
        if worker.task == -1:
            raise SeptError("the grading process does not start; see why with: python -m sept.verify")
        _retire(worker)


def _retire(worker: _Worker) -> None:
    _workers.remove(worker)
    worker.stop()


@atexit.register
def _stop_all() -> None:
    for worker in list(_workers):
        _retire(worker)
