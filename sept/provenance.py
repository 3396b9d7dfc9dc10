"""What a result was made with: versions, commit, config, hardware, written beside every result."""

from __future__ import annotations

import json
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from .config import SeptError
from .durable import writing

PACKAGES = ("torch", "transformers", "numpy", "vllm", "peft", "math-verify", "lm-eval", "datasets")


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Versions, commit and hardware of this process; no paths, no host name, no user name."""
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "sept": _own_version(),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


def _own_version() -> str:
    from . import __version__

    return __version__


def commit() -> str:
    """Commit of the checkout this package runs from, with `-dirty` if its code was changed since."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "-dirty" if git("status", "--porcelain", "--", ".") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """An object in a JSON file of this package. SeptError that ends in `remedy` where it is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        raise SeptError(f"{str(path)!r}: damaged; {remedy}") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text: whatever happens there is the old file or the new one. The folder is made if need be."""
    with writing(path) as temporary, temporary.open("x", encoding="utf-8") as handle:
        handle.write(text)
