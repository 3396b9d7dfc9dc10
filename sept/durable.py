"""What is written is whole or not there: after a kill, a power cut or a full disk; and stops by SIGTERM.

Files and folders are made under another name (`.NAME.PID.part`), brought to the disk, and only then renamed.
A sealed folder carries a SHA-256 of each of its files, so that damage shows before anything is used.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .config import SeptError, digest

STOPPED = 143
"""Exit code after SIGTERM, 128 + 15: not 0, or a cluster would take the work for finished."""


class Preempted(KeyboardInterrupt):
    """Stopped by SIGTERM with everything saved. An interrupt, so that no `except Exception` swallows it."""


class Sigterm:
    """Whether SIGTERM has come. It only takes a note, but inside `at_once` it raises Preempted."""

    def __init__(self) -> None:
        self.asked = self._now = False

    def __call__(self, *_: Any) -> None:
        self.asked = True
        if self._now:
            self._now = False
            raise Preempted("stopped by SIGTERM; what was finished is kept")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        self._now = True
        try:
            if self.asked:
                self()
            yield
        finally:
            self._now = False


@contextmanager
def sigterm() -> Iterator[Sigterm]:
    """Listen to SIGTERM, in the main thread; elsewhere nothing is heard, and the process ends as usual."""
    stop = Sigterm()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[None]:
    """Hold a lock file. Without `wait`, SeptError if another process holds it; it dies with its holder."""
    with cannot_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise SeptError(
            f"another process is at work on {str(path.parent)!r}; wait for it or choose another --out"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def cannot_write(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into one line that says where and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = getattr(error, "errno", None)
        if found := re.search(r"os error (\d+)", str(error)):  # safetensors tells it in words only
            code = int(found[1])
        reason = os.strerror(code) if code else str(error).splitlines()[0]
        full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "make room there" if full else "make it writable or choose another place"
        raise SeptError(
            f"cannot write {str(path)!r} ({reason}); {remedy}, then give the same command again "
            "(sept train: with --resume)"
        ) from None


def part(path: Path, by: str = "") -> Path:
    """The name under which this process (or several, of one name) makes `path`."""
    return path.with_name(f".{path.name}.{by or os.getpid()}.part")


@contextmanager
def writing(path: Path, by: str = "") -> Iterator[Path]:
    """A name for a file or folder that becomes `path` at the end, or nothing of it does.

    SeptError where it cannot be written. An existing `path` is replaced, a folder as the last step but one.
    """
    temporary = part(path, by)
    with cannot_write(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(temporary)
            yield temporary
            inside = temporary.rglob("*") if temporary.is_dir() else ()
            for each in (*inside, temporary):
                to_disk(each)
            if path.is_dir() and not path.is_symlink():
                remove(path)
            os.replace(temporary, path)
            to_disk(path.parent)
        except BaseException:
            remove(temporary)
            raise


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # of folders, not every file system can
            raise
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it points to) or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, age: float = 0) -> None:
    """Remove what a killed process left half-written `age` seconds ago or earlier."""
    for path in folder.glob(".*.part"):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime >= age:
                remove(path)


def seal(folder: Path, state: dict[str, Any]) -> None:
    """Write state.json: `state`, the SHA-256 of every other file of the folder, and its own."""
    whole = {**state, "sha256": _hashes(folder)}
    (folder / "state.json").write_text(json.dumps({**whole, "seal": digest(whole)}, indent=1) + "\n")


def unseal(folder: Path) -> dict[str, Any]:
    """state.json of a sealed folder. ValueError that names the first file that is damaged, missing or new."""
    try:
        whole = dict(json.loads((folder / "state.json").read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"state.json: {str(error).splitlines()[0][:80]}") from None
    if whole.pop("seal", None) != digest(whole):
        raise ValueError("state.json: its checksum differs")
    found, promised = _hashes(folder), whole["sha256"]
    for name in sorted({*found, *promised}):
        if found.get(name) != promised.get(name):
            what = "is missing" if name not in found else "differs from its checksum"
            raise ValueError(f"{name} {what}")
    return whole


def _hashes(folder: Path) -> dict[str, str]:
    out = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / "state.json":
            with path.open("rb") as handle:
                out[path.relative_to(folder).as_posix()] = hashlib.file_digest(handle, "sha256").hexdigest()
    return out
