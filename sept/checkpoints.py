"""The run folder: claimed once, written atomically, continued after any death to the same result."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import Config, SeptError, notice
from .distributed import Ranks
from .durable import cannot_write, locked, part, remove, seal, sweep, to_disk, unseal, writing
from .policy import Policy, full_state, whole
from .problems import ProblemSet
from .provenance import environment, read_json, write_json, write_text
from .sampling import Sampler

LEFTOVER = re.compile(r"\.lock|\..*\.part")
"""What a run that was killed before it began may leave."""


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold a run's folder: nobody else writes there meanwhile, and leftovers of a killed run are gone."""
    mine = out.is_dir() and all(LEFTOVER.fullmatch(p.name) for p in out.iterdir())
    if out.exists() and not mine and not (out / "config.json").is_file():
        what = "is not empty" if out.is_dir() else "is a file"
        raise SeptError(f"output folder {str(out)!r} {what}; choose another --out")
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
        theirs = read_json(record, "remove its folder to run this again")
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
        rows = newest_rows(out)
        write_rows(out, rows)  # for all ranks to read
        return rows
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


@contextmanager
def _together(place: Path, ranks: Ranks) -> Iterator[Path]:
    """`writing` by all ranks: the first one makes the folder and gives it its name."""
    if ranks.first:
        with writing(place, "all") as temporary:
            temporary.mkdir()
            ranks.meet()
            yield temporary
    else:
        ranks.meet()
        with cannot_write(place):
            yield part(place, "all")


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

    end = f"-{ranks.rank + 1}-of-{ranks.world}.safetensors" if ranks.world > 1 else ".safetensors"
    with _together(out / f"checkpoint-{len(rows)}", ranks) as temporary:

        def put(name: str, tensors: dict[str, Tensor]) -> None:
            save_file(tensors, temporary / f"{name}{end}")
            to_disk(temporary / f"{name}{end}")

        put("policy", copy_weights(policy.model, ranks))
        if behind is not None:
            put("sampler", behind)
        moments = (
            (f"{name}/{field}", whole(value))
            for name, parameter in policy.model.named_parameters()
            for field, value in optimizer.state.get(parameter, {}).items()
        )
        put("optimizer", own_share(moments, ranks))
        ranks.meet()
        if ranks.first:
            write_rows(temporary, rows)
            versions = {"version": policy.version, "sampler_version": sampler_version}
            seal(temporary, {**versions, "ranks": ranks.world})
    if not ranks.first:
        return
    write_rows(out, rows)
    for old in [p for p in checkpoints(out) if int(p.name[11:]) <= len(rows)][:-2]:
        shutil.rmtree(old)


def restore(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, sampler: Sampler, ranks: Ranks
) -> dict[str, Tensor] | None:
    """Load a checkpoint into policy, optimizer and sampler; returns the sampler's weights if they lag."""
    from safetensors.torch import load_file

    try:
        state = json.loads((folder / "state.json").read_text())
        files = {p: list(folder.glob(f"{p}*")) for p in ("policy", "optimizer", "sampler")}
        if any(len(files[p]) != state.get("ranks", 1) for p in ("policy", "optimizer")):
            raise FileNotFoundError("a file is missing")
        weights, moments, behind = (
            {name: tensor for path in paths for name, tensor in load_file(path).items()}
            for paths in files.values()
        )
        versions = int(state["sampler_version"]), int(state["version"])
        own = policy.model.state_dict(keep_vars=True)
        whole_moments = {k.rsplit("/", 1)[0]: v for k, v in moments.items() if not k.endswith("/step")}
        for name, value in (*weights.items(), *behind.items(), *whole_moments.items()):
            if value.shape != own[name].shape:
                raise ValueError(f"tensor {name!r} has another shape")
    except Exception as error:  # safetensors raises a type of its own
        raise SeptError(
            f"checkpoint {str(folder)!r}: damaged ({' '.join(str(error).split())[:80]}); remove this folder "
            "and resume again"
        ) from None
    if {id(own.get(name)) for name in weights} != {id(value) for value in own.values()}:
        raise SeptError(f"checkpoint {str(folder)!r}: holds other tensors than the model; remove it")

    @torch.no_grad()
    def put(tensors: dict[str, Tensor], version: int) -> None:
        for name, value in tensors.items():
            own[name].copy_(like(own[name], value))
        policy.version = version

    put(behind or weights, versions[0])
    sampler.refresh(policy)
    put(weights, versions[1])
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
