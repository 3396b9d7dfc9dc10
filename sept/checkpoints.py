"""The run folder: claimed once, written atomically, continued after any death to the same result."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import Config, SeptError, notice
from .durable import locked, remove, seal, sweep, unseal, writing
from .policy import Policy
from .problems import ProblemSet
from .provenance import environment, write_json, write_text
from .sampling import Sampler

LEFTOVER = re.compile(r"\.lock|\..*\.part")
"""What a run that was killed before it began may leave."""


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold a run's folder: nobody else writes there meanwhile, and leftovers of a killed run are gone."""
    mine = out.is_dir() and all(LEFTOVER.fullmatch(p.name) for p in out.iterdir())
    if out.exists() and not mine and not (out / "config.json").is_file():
        raise SeptError(f"output folder {str(out)!r} is not empty; choose another --out")
    with locked(out / ".lock", wait=False):
        sweep(out)
        try:
            yield
        finally:
            if [p.name for p in out.glob("*")] == [".lock"]:  # nothing was written, so nothing stays
                remove(out)


def open_folder(
    out: Path,
    config: Config,
    identity: dict[str, Any],
    policy: Policy,
    problems: ProblemSet,
    resume: bool,
    name: str,
) -> list[dict[str, Any]]:
    """Claim `out` for this run and return the rounds already done."""
    record = out / "config.json"
    if record.is_file():
        theirs = _read(record)
        if theirs.get("identity") != identity:
            other = theirs.get("identity", {})
            what = [k for k in {**other, **identity} if other.get(k) != identity.get(k)]
            raise SeptError(
                f"output folder {str(out)!r} belongs to another run (different {', '.join(what)}); "
                "choose another --out or remove it"
            )
        if not resume:
            raise SeptError(f"output folder {str(out)!r} already holds this run; continue it with --resume")
        if (out / "final").is_dir():
            for folder in checkpoints(out):
                shutil.rmtree(folder)
            return read_rows(out)
        return newest_rows(out)
    (first, *_) = problems.items or problems.batch(0, config.questions, config.seed)
    write_json(
        record,
        {
            "identity": identity,
            "name": name,
            "model": policy.name,
            "revision": policy.revision,
            "problems": problems.name,
            "grader": problems.world,
            "dropped": problems.dropped,
            "template": policy.template,
            "prompt": policy.shown(first.prompt),
            "config": json.loads(config.to_json()),
            "provenance": environment(),
        },
    )
    return []


def _read(record: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(record.read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        raise SeptError(f"{str(record)!r}: damaged; remove its folder to run this again") from None


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rounds that a run or a checkpoint holds. SeptError if they cannot be read."""
    path = folder / "rounds.jsonl"
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        raise SeptError(f"{str(path)!r}: damaged; remove its folder to run this again") from None


def newest_rows(out: Path) -> list[dict[str, Any]]:
    """Rounds of the newest whole checkpoint, none where there is none; says which ones are damaged.

    The one before brings the same result, a little later.
    """
    for folder in checkpoints(out)[::-1]:
        try:
            unseal(folder)
            return read_rows(folder)
        except ValueError as error:
            notice(
                f"checkpoint {str(folder)!r}: damaged ({error}); going on from the one before it, if any"
            )
    return []


def write_rows(out: Path, rows: list[dict[str, Any]]) -> None:
    write_text(out / "rounds.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def checkpoints(out: Path) -> list[Path]:
    """Its checkpoints, oldest first."""
    found = [p for p in out.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted((p for p in found if not p.is_symlink()), key=lambda p: int(p.name[11:]))


def last_good(out: Path) -> Path | str:
    folders = checkpoints(out)
    return folders[-1] if folders else "none yet (it starts again from the beginning)"


def save(
    out: Path,
    rows: list[dict[str, Any]],
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    sampler_version: int,
    behind: dict[str, Tensor] | None,
) -> None:
    """Everything that determines the future, in safetensors, atomically; the last two are kept.

    Random numbers come from coordinates, so the number of the round is all their state. `behind` are the
    weights of a sampler that may lag (offline, refresh_every > 1).
    """
    from safetensors.torch import save_file

    with writing(out / f"checkpoint-{len(rows)}") as temporary:
        temporary.mkdir()
        save_file(copy_weights(policy.model), temporary / "policy.safetensors")
        if behind is not None:
            save_file(behind, temporary / "sampler.safetensors")
        moments = {
            f"{name}/{field}": value
            for name, parameter in policy.model.named_parameters()
            for field, value in optimizer.state.get(parameter, {}).items()
        }
        save_file(moments, temporary / "optimizer.safetensors")
        write_rows(temporary, rows)
        seal(temporary, {"version": policy.version, "sampler_version": sampler_version})
    write_rows(out, rows)
    for old in [p for p in checkpoints(out) if int(p.name[11:]) <= len(rows)][:-2]:
        shutil.rmtree(old)


def restore(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, sampler: Sampler
) -> dict[str, Tensor] | None:
    """Load a checkpoint into policy, optimizer and sampler; returns the sampler's weights if they lag."""
    from safetensors.torch import load_file

    try:
        state = json.loads((folder / "state.json").read_text())
        weights = load_file(folder / "policy.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        lagging = folder / "sampler.safetensors"
        behind = load_file(lagging) if lagging.is_file() else None
        versions = int(state["sampler_version"]), int(state["version"])
        shapes = {name: value.shape for name, value in policy.model.state_dict().items()}
        own = {k.rsplit("/", 1)[0]: v for k, v in moments.items() if not k.endswith("/step")}
        for name, value in (*weights.items(), *(behind or {}).items(), *own.items()):
            if value.shape != shapes[name]:
                raise ValueError(f"tensor {name!r} has another shape")
    except Exception as error:  # safetensors raises a type of its own
        raise SeptError(
            f"checkpoint {str(folder)!r}: damaged ({' '.join(str(error).split())[:80]}); remove this folder "
            "and resume again"
        ) from None
    if set(weights) != set(copy_weights(policy.model)):
        raise SeptError(f"checkpoint {str(folder)!r}: holds other tensors than the model; remove it")
    policy.model.load_state_dict(behind or weights, strict=False)
    policy.version = versions[0]
    sampler.refresh(policy)
    policy.model.load_state_dict(weights, strict=False)
    policy.version = versions[1]
    named = dict(policy.model.named_parameters())
    for key, value in moments.items():
        name, field = key.rsplit("/", 1)
        # AdamW keeps its count of steps on the CPU, its moments beside the weights.
        optimizer.state[named[name]][field] = value if field == "step" else value.to(named[name].device)
    return behind


def copy_weights(model: Any) -> dict[str, Tensor]:
    """A copy of the state dict on the CPU, without the aliases of tied weights, which safetensors refuses."""
    seen: set[int] = set()
    out = {}
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            out[name] = value.detach().to("cpu", copy=True).contiguous()
    return out
