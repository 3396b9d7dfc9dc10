"""The run folder: claimed once, written atomically, continued after any death to the same result."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import Config, SeptError
from .distributed import Ranks
from .policy import Policy, full_state, whole
from .problems import ProblemSet
from .provenance import environment, write_json, write_text
from .sampling import Sampler


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[None]:
    """Hold a lock file. Without `wait`, SeptError if another process holds it; it dies with its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise SeptError(
                f"another process is at work on {str(path.parent)!r}; wait for it or choose another --out"
            ) from None
        yield


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
        theirs = json.loads(record.read_text())
        if theirs.get("identity") != identity:
            other = theirs.get("identity", {})
            what = [k for k in {**other, **identity} if other.get(k) != identity.get(k)]
            raise SeptError(
                f"output folder {str(out)!r} belongs to another run (different {', '.join(what)}); "
                "choose another --out or remove it"
            )
        if not resume:
            raise SeptError(f"output folder {str(out)!r} already holds this run; continue it with --resume")
        rows = read_rows(out)
        if rows and rows[-1]["round"] == config.rounds - 1 and (out / "final").is_dir():
            return rows
        last = last_good(out)
        if isinstance(last, Path):
            return rows[: int(last.name.split("-")[1])]
        return []
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SeptError(f"output folder {str(out)!r} is not empty; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
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


def read_rows(out: Path) -> list[dict[str, Any]]:
    path = out / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def write_rows(out: Path, rows: list[dict[str, Any]]) -> None:
    write_text(out / "rounds.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))


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
    ranks: Ranks,
) -> None:
    """Everything that determines the future, in safetensors, atomically; the last two are kept.

    Random numbers come from coordinates, so the number of the round is all their state. `behind` are the
    weights of a sampler that may lag (offline, refresh_every > 1). Each rank writes its share of the tensors,
    whole, so that a run of any number of ranks, sharded or not, can go on from them.
    """
    from safetensors.torch import save_file

    temporary = out / f".checkpoint-{len(rows)}.part"
    if ranks.first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    ranks.meet()
    end = f"-{ranks.rank + 1}-of-{ranks.world}.safetensors" if ranks.world > 1 else ".safetensors"
    save_file(copy_weights(policy.model, ranks), temporary / f"policy{end}")
    if behind is not None:
        save_file(behind, temporary / f"sampler{end}")
    moments = (
        (f"{name}/{field}", whole(value))
        for name, parameter in policy.model.named_parameters()
        for field, value in optimizer.state.get(parameter, {}).items()
    )
    save_file(own_share(moments, ranks), temporary / f"optimizer{end}")
    ranks.meet()
    if not ranks.first:
        return
    state = {"version": policy.version, "sampler_version": sampler_version, "ranks": ranks.world}
    write_json(temporary / "state.json", state)
    write_rows(out, rows)
    os.replace(temporary, out / f"checkpoint-{len(rows)}")
    for old in checkpoints(out)[:-2]:
        shutil.rmtree(old)


def restore(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, sampler: Sampler, ranks: Ranks
) -> dict[str, Tensor] | None:
    """Load a checkpoint into policy, optimizer and sampler; returns the sampler's weights if they lag."""
    from safetensors.torch import load_file

    try:
        state = json.loads((folder / "state.json").read_text())
        files = {part: list(folder.glob(f"{part}*")) for part in ("policy", "optimizer", "sampler")}
        if any(len(files[part]) != state.get("ranks", 1) for part in ("policy", "optimizer")):
            raise FileNotFoundError("a file is missing")
        weights, moments, behind = (
            {name: tensor for path in paths for name, tensor in load_file(path).items()}
            for paths in files.values()
        )
    except Exception as error:  # safetensors raises a type of its own
        raise SeptError(
            f"checkpoint {str(folder)!r}: damaged ({str(error).splitlines()[0]}); remove this folder and "
            "resume again from the one before it"
        ) from None
    own = policy.model.state_dict(keep_vars=True)
    if {id(own.get(name)) for name in weights} != {id(value) for value in own.values()}:
        raise SeptError(f"checkpoint {str(folder)!r}: holds other tensors than the model; remove it")

    @torch.no_grad()
    def put(tensors: dict[str, Tensor], version: int) -> None:
        for name, value in tensors.items():
            own[name].copy_(like(own[name], value))
        policy.version = version

    put(behind or weights, state["sampler_version"])
    sampler.refresh(policy)
    put(weights, state["version"])
    named = dict(policy.model.named_parameters())
    for key, value in moments.items():
        name, field = key.rsplit("/", 1)
        # AdamW keeps its count of steps on the CPU, its moments beside the weights.
        optimizer.state[named[name]][field] = value if field == "step" else like(named[name], value)
    return own_share(behind.items(), ranks) if behind else None


def like(parameter: Any, value: Tensor) -> Tensor:
    """`value` where `parameter` is; of a sharded parameter's value, this rank's shard."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def copy_weights(model: Any, ranks: Ranks) -> dict[str, Tensor]:
    """A copy on the CPU of this rank's share of the state dict's tensors, each whole."""
    return own_share(full_state(model), ranks)


def own_share(tensors: Iterable[tuple[str, Tensor]], ranks: Ranks) -> dict[str, Tensor]:
    """Every `world`-th of the tensors, copied to the CPU."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for i, (name, value) in enumerate(tensors)
        if i % ranks.world == ranks.rank
    }
