"""One run on several processes: torchrun starts them, torch.distributed connects them, all run the loop.

Two things are shared out. The questions: each rank draws the answers to its own, then all ranks get all of
them. And the micro-batches of an optimizer step: gradients are added up over ranks, by DDP or by FSDP2, which
shards the weights too. Draws come from coordinates and a step's rows are those of one process, so N processes
take the steps of one, to rounding. Nothing is pickled: only tensors travel.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from .config import SeptError, TrainingError
from .policy import Policy
from .sampling import Rollouts, Sampler

TIMEOUT = 600.0
"""Seconds that ranks wait for each other in a step, and longer for a straggler's answers (see `meet`); the
environment variable SEPT_TIMEOUT overrides it. A rank that died is noticed at once."""


@dataclass
class Ranks:
    """This process among those of the run. By default there is one, and everything here does nothing."""

    rank: int = 0
    world: int = 1
    sharding: str = "none"
    timeout: float = TIMEOUT
    talk: Any = None
    """Group for tensors on the CPU (gloo)."""

    @property
    def first(self) -> bool:
        """Whether this rank writes and reports."""
        return self.rank == 0

    def gather(self, value: Tensor) -> Tensor:
        """[world, ...]: `value`, of one shape on all ranks, of every rank. On the CPU."""
        if self.talk is None:
            return value[None]
        parts = [torch.empty_like(value) for _ in range(self.world)]
        torch.distributed.all_gather(parts, value.contiguous(), group=self.talk)
        return torch.stack(parts)

    def meet(self, took: float = 0.0) -> None:
        """Wait for all ranks, `timeout` and ten times what this one `took` at most; names who is missing."""
        if self.talk is not None:
            limit = timedelta(seconds=self.timeout + 10 * took)
            torch.distributed.monitored_barrier(self.talk, timeout=limit, wait_all_ranks=True)

    def agree(self, key: str, what: str) -> None:
        """SeptError unless all ranks have the same hexadecimal key."""
        if len(set(self.gather(torch.tensor(int(key[:15], 16))).tolist())) > 1:
            raise SeptError(f"rank {self.rank}: ranks differ in {what}; give all of them the same command")

    def spread(self, policy: Policy) -> None:
        """Wrap the model for gradients over all ranks; SeptError unless what was asked for is then there."""
        if self.sharding == "none":
            return
        from torch.distributed.tensor import DTensor

        size = sum(p.numel() for p in policy.model.parameters())
        policy.run = (_sharded if self.sharding == "fsdp" else _copied)(policy)
        parts = [p.to_local() if isinstance(p, DTensor) else p for p in policy.model.parameters()]
        sharded = all(
            isinstance(p, DTensor) and p.device_mesh.size() == self.world for p in policy.model.parameters()
        )
        held = int(self.gather(torch.tensor(sum(p.numel() for p in parts))).sum())
        expected = size if self.sharding == "fsdp" else size * self.world
        if sharded != (self.sharding == "fsdp") or held != expected:
            raise SeptError(
                f"sharding = {self.sharding!r} on {self.world} ranks: together they hold {held:,} of {size:,} "
                f"weights instead of {expected:,}; nothing was trained"
            )

    def leave(self) -> None:
        """End the exchange at the end of a run."""
        if self.talk is not None:
            torch.distributed.destroy_process_group()

    def accumulating(self, policy: Policy, more: bool) -> AbstractContextManager:
        """For a micro-batch with `more` of its step to come: DDP adds up over ranks after the last one."""
        return policy.run.no_sync() if more and self.sharding == "ddp" else nullcontext()

    @contextmanager
    def whole(self, policy: Policy) -> Iterator[None]:
        """All of the weights on every rank, in the precision they are computed in. All ranks enter together."""
        sharded = list(policy.run.modules()) if self.sharding == "fsdp" else []
        sharded = [module for module in sharded if hasattr(module, "unshard")]
        for module in sharded:
            module.unshard()
        yield
        for module in sharded:
            module.reshard()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn a failed exchange with other ranks into a TrainingError.

        After a while: the launcher ends the others of a rank that died, and names that one as the first
        cause if they have not spoken before.
        """
        try:
            yield
        except TrainingError:
            raise
        except RuntimeError as error:  # gloo and NCCL raise no type of their own
            line = " ".join(str(error).split())
            if self.talk is None or not any(w in line for w in ("gloo", "monitoredBarrier", "NCCL")):
                raise
            if "Timed out" not in line and "failed to pass" not in line:
                time.sleep(20)
            raise TrainingError(f"rank {self.rank} lost another rank: {line[:200]}") from None


def join(sharding: str) -> Ranks:
    """Join the processes that torchrun started, if it did. sharding: as in Config.

    SeptError where several processes were asked for and are not there.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if {"RANK", "WORLD_SIZE"} <= set(missing):
        if sharding != "auto":
            raise SeptError(
                f"sharding = {sharding!r} but this is a single process; start it with torchrun "
                "--nproc-per-node N -m sept train ..."
            )
        return Ranks()
    if missing:
        raise SeptError(
            f"{missing[0]} is not set but others of {', '.join(names)} are; start with torchrun"
        )
    rank, world, local, _ = (_whole(n) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"))
    from torch import distributed as dist

    timeout = _whole("SEPT_TIMEOUT", TIMEOUT)
    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            if local >= torch.cuda.device_count():
                raise SeptError(
                    f"LOCAL_RANK = {local}: only {torch.cuda.device_count()} GPUs here; start torchrun with "
                    "that many --nproc-per-node"
                )
            torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    if (dist.get_rank(), dist.get_world_size()) != (rank, world):
        raise SeptError(f"torchrun asked for {world} ranks but {dist.get_world_size()} are there")
    talk = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    return Ranks(rank, world, "ddp" if sharding == "auto" else sharding, timeout, talk)


def _whole(name: str, default: float = 0) -> int:
    """A whole number from an environment variable."""
    text = os.environ.get(name, str(int(default)))
    if not text.isdecimal():
        remedy = "of seconds" if name == "SEPT_TIMEOUT" else "as torchrun sets it"
        raise SeptError(f"{name} = {text!r} in the environment: must be a whole number {remedy}")
    return int(text)


class SharedSampler:
    """A sampler whose work is shared out: each rank draws the answers to its questions, all get all."""

    def __init__(self, sampler: Sampler, ranks: Ranks) -> None:
        self.sampler, self.ranks, self.version = sampler, ranks, sampler.version

    def refresh(self, policy: Policy) -> None:
        """Give this rank's engine all of the weights."""
        with self.ranks.whole(policy):
            self.sampler.refresh(policy)
        self.version = self.sampler.version

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[str],
        n: int,
        tau: float,
        max_new_tokens: int,
        seed: int,
        draw: int = 0,
    ) -> Rollouts:
        """n answers to each prompt, as one process would draw them."""
        rank, world = self.ranks.rank, self.ranks.world
        if world == 1 or not prompts:
            return self.sampler.sample(prompts, keys, n, tau, max_new_tokens, seed, draw)
        started = time.monotonic()
        rows, T = math.ceil(len(prompts) / world) * n, max_new_tokens
        whole = torch.zeros(rows, T + 3, dtype=torch.long)
        log_probs = torch.zeros(rows, T)
        mine = slice(rank, None, world) if rank < len(prompts) else slice(1)  # no share: drawn for nothing
        own = self.sampler.sample(prompts[mine], keys[mine], n, tau, T, seed, draw)
        N, width = own.tokens.shape
        whole[:N, :width], log_probs[:N, :width] = own.tokens, own.log_probs
        whole[:N, T], whole[:N, T + 1], whole[:N, T + 2] = own.lengths, own.finished, own.version
        self.ranks.meet(time.monotonic() - started)
        # Rank r drew questions r, r + world, ...: put them back in order.
        parts = [
            x.view(world, -1, n, x.shape[-1]).transpose(0, 1).flatten(0, 2)[: len(prompts) * n]
            for x in (self.ranks.gather(whole), self.ranks.gather(log_probs))
        ]
        (tokens, lengths, finished, versions), log_probs = parts[0].split([T, 1, 1, 1], -1), parts[1]
        if len(set(versions.flatten().tolist())) > 1:
            raise TrainingError(
                f"ranks drew from weights versions {sorted(set(versions.flatten().tolist()))}"
            )
        asked = [list(p) for p in prompts for _ in range(n)]
        version = int(versions[0])
        return Rollouts(asked, tokens, lengths[:, 0], finished[:, 0].bool(), log_probs, tau, version)


class _Step(torch.nn.Module):
    """What is wrapped: any computation with the model. Up to the loss, so that the output layer's weight is
    whole where a loss is made from it in chunks."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Any, *arguments: Any) -> Any:
        return compute(*arguments)


def _copied(policy: Policy) -> Any:
    """DDP: every rank holds all weights."""
    from torch.nn.parallel import DistributedDataParallel

    with warnings.catch_warnings():  # of the option's new name, which older versions don't know
        warnings.simplefilter("ignore")
        return DistributedDataParallel(_Step(policy.model), broadcast_buffers=False)


def _sharded(policy: Policy) -> Any:
    """FSDP2: weights, gradients and moments in float32 shards; layers are gathered in what they compute in."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = next(policy.model.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    lower = policy.compute if policy.compute != torch.float32 else None
    precision = MixedPrecisionPolicy(lower, reduce_dtype=torch.float32, cast_forward_inputs=False)
    layers = set(policy.model._no_split_modules or [])
    for module in [m for m in policy.model.modules() if type(m).__name__ in layers]:
        fully_shard(module, mesh=mesh, mp_policy=precision)
    # Not left whole after a forward pass: between two uses the model's parameters are always the shards.
    return fully_shard(_Step(policy.model), mesh=mesh, mp_policy=precision, reshard_after_forward=True)
