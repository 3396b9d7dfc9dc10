"""The optimizer steps of a round: losses, their gradient, and what is measured on the way.

Logits of a whole micro-batch are held in memory only where they are few. Beyond that the last hidden
states go through the output layer in chunks, and a chunk's logits are gone before the next one's are made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import objectives
from .config import Config
from .distributed import Ranks
from .policy import Batch, Policy, make_batch, output_layer, response_logits, response_states, whole
from .sampling import Rollouts
from .sampling_static import StaticEngine

CHUNK = 2**25
"""Logits held at once, in elements (128 MiB in float32). A micro-batch of fewer takes the plain path."""

SMALL = 10_000_000
"""Parameters up to which a micro-batch is better off on one thread."""

FEW_CHANGED = 0.1
"""A first step that changes a smaller share of the weights is warned about: they are stored too coarsely."""


class NonFiniteError(Exception):
    def __init__(self, batch: int, what: str) -> None:
        self.batch, self.what = batch, what


class HeadLoss(torch.autograd.Function):
    """A loss that is a sum over positions, from hidden states and the output layer, chunk by chunk.

    states [N, hidden], weight [rows, hidden], of(logits [n, 1, V], slice) -> scalar of those n positions.
    Gradients are made in the forward pass (so that logits are made once), in `dtype` like the model's own;
    the backward pass can run once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        vocab: int | None,
        dtype: torch.dtype,
        of: Callable[[Tensor, slice], Tensor],
    ) -> Tensor:
        x, head = states.to(dtype), weight[:vocab].to(dtype)
        to_states = torch.zeros_like(states)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), device=states.device)
        size = max(1, CHUNK // head.shape[0])
        for first in range(0, len(x), size):
            chunk = slice(first, first + size)
            logits = (x[chunk] @ head.t()).requires_grad_()
            with torch.enable_grad():
                loss = of(logits[:, None], chunk)
            (gradient,) = torch.autograd.grad(loss, logits)
            total += loss.detach()
            to_states[chunk] = gradient @ head
            if to_weight is not None and weight.dtype == dtype:
                to_weight[:vocab].addmm_(gradient.t(), x[chunk])
            elif to_weight is not None:
                to_weight[:vocab] += gradient.t() @ x[chunk]
        ctx.gradients = to_states, to_weight
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        to_states, to_weight = ctx.gradients
        del ctx.gradients
        if to_weight is not None:
            to_weight.mul_(outer[0])
        return to_states.mul_(outer[0]), to_weight, None, None, None


Shares = tuple[str, int, int, int]
"""How a step's loss is normalised: the rule, then its tokens, sequences and micro-batches."""


class MicroBatches:
    """The loss of any rows of a round's rollouts, and what the same logits tell beside it."""

    def __init__(
        self, config: Config, policy: Policy, rollouts: Rollouts, tau_t: float, rewards: Tensor
    ) -> None:
        self.config, self.policy, self.rollouts, self.tau_t = config, policy, rollouts, tau_t
        grpo = config.objective == "grpo"
        self.advantages = objectives.group_advantages(rewards, config.G) if grpo else None
        self.head = _large_head(config, policy, rollouts)

    def loss(
        self, rows: list[int], shares: Shares, gap: bool, counts: bool = True
    ) -> tuple[Tensor, dict[str, float]]:
        """A micro-batch's share of its step's loss, and sums over its tokens.

        gap: the weights are those that drew the answers, so compare log-probs; counts: False for rows that
        are only there to keep other ranks company.
        """
        rollouts, device = self.rollouts, next(self.policy.model.parameters()).device
        batch = make_batch(
            [rollouts.prompts[i] for i in rows],
            rollouts.tokens[rows],
            rollouts.lengths[rows],
            self.policy.pad_id,
            device=device,
        )
        batch.mask &= counts
        drawn = rollouts.log_probs[rows, : batch.tokens.shape[1]].to(device)
        gain = None if self.advantages is None else self.advantages[rows].to(device)
        note = dict.fromkeys(("nll", "entropy", *(("sampler_gap", "largest_gap") if gap else ())), 0.0)
        loss = self.policy.run(self._loss, batch, drawn, gain, shares, note)
        note["tokens"] = int(batch.mask.sum())
        return loss, note | ({"gap_tokens": note["tokens"]} if gap else {})

    def gradient(
        self, weights: list[Tensor], shares: Shares, gap: bool, rows: list[int]
    ) -> tuple[Tensor, tuple[Tensor | None, ...], dict[str, float]]:
        """`loss` with its gradient, which is added to nobody's: for a thread of its own."""
        loss, note = self.loss(rows, shares, gap)
        return loss.detach(), torch.autograd.grad(loss, weights, allow_unused=True), note

    def _loss(
        self, batch: Batch, drawn: Tensor, gain: Tensor | None, shares: Shares, note: dict[str, float]
    ) -> Tensor:
        measured = partial(self._measured, note)
        with self.policy.autocast():
            if self.head is not None:
                return _chunked_loss(self.policy, self.head.weight, batch, drawn, gain, measured, shares)
            logits = response_logits(self.policy.model, batch, self.policy.vocab)
            losses = measured(logits, batch.tokens, batch.mask, drawn, gain)
            return objectives.normalise(losses, batch.mask, *shares)

    def _measured(
        self, note: dict[str, float], logits: Tensor, tokens: Tensor, mask: Tensor, drawn: Tensor, gain: Any
    ) -> Tensor:
        """Loss per token [B, T] of logits [B, T, V]; what else they tell is added to `note`.

        drawn [B, T]: the sampler's log-probs; gain [B]: GRPO's advantages.
        """
        config = self.config
        with torch.no_grad():
            at_one = objectives.token_log_probs(logits, tokens)
            note["nll"] -= (at_one * mask).sum().item()
            note["entropy"] += (objectives.entropy(logits) * mask).sum().item()
            if "sampler_gap" in note:
                now = objectives.token_log_probs(logits, tokens, self.rollouts.tau or 1.0)
                gaps = ((now - drawn).abs() * mask).nan_to_num(0.0)
                note["sampler_gap"] += gaps.sum().item()
                note["largest_gap"] = max(note["largest_gap"], gaps.max().item())
        if config.objective == "nll":
            return objectives.nll(logits, tokens, self.tau_t)
        if config.objective == "entropy":
            return objectives.entropy(logits, self.tau_t)
        # Drawn at tau_s; the GRPO arm draws and trains at one temperature.
        return objectives.grpo(logits, tokens, self.tau_t, drawn, gain, config.clip)


@contextmanager
def _threads(config: Config, policy: Policy, batches: MicroBatches, ranks: Ranks) -> Iterator[Any]:
    """A `map` that gives each of torch's threads a micro-batch of its own, or None where they share one.

    For models that the static engine knows: their operations are too small to be split over threads, and
    one forward pass does not disturb another. Elsewhere several passes at once would not fit into memory.
    """
    threads = torch.get_num_threads()
    shared = ranks.world > 1 or batches.head is not None or config.gradient_checkpointing
    if (
        threads == 1
        or shared
        or StaticEngine.refuses(policy.model) is not None
        or _size(policy.model) > SMALL
    ):
        yield None
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:

            def some(work: Callable[[Any], Any], parts: list[Any]) -> Iterator[Any]:
                for first in range(0, len(parts), threads):  # no more gradients at once than threads
                    yield from pool.map(work, parts[first : first + threads])

            yield some
    finally:
        torch.set_num_threads(threads)


def take_steps(
    config: Config,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    weights: list[Tensor],
    rollouts: Rollouts,
    tau_t: float,
    rewards: Tensor,
    ranks: Ranks,
) -> dict[str, float]:
    """All optimizer steps of a round: mu passes over the mini-batches. Returns the round's metrics.

    The micro-batches of a step are shared out over the ranks, which all return the same, or, of a small model
    on a CPU, over torch's threads: gradients are added in the order of the micro-batches, so the result has
    the same bits with any number of threads.
    """
    size = config.mini_batch * config.G
    sums = dict.fromkeys(("nll", "entropy", "tokens", "sampler_gap", "gap_tokens"), 0.0)
    largest_gap, step_losses, norms = 0.0, [], []
    starts = list(range(0, len(rollouts), size)) * config.mu
    totals = [len(p) + n for p, n in zip(rollouts.prompts, rollouts.lengths.tolist(), strict=True)]
    # The first step at a learning rate above 0: warm-up begins with a round at 0.
    telling = len(starts) if config.warmup else 0
    changed: float | None = None
    batches = MicroBatches(config, policy, rollouts, tau_t, rewards)
    policy.model.train(config.gradient_checkpointing)  # eval mode otherwise: no dropout, ever

    def of_one(parts: list[list[int]], how: tuple[Shares, bool], first: int) -> Iterable[Any]:
        """Losses and notes of this rank's micro-batches, one after the other; gradients go to the weights."""
        own, turns = parts[ranks.rank :: ranks.world], math.ceil(len(parts) / ranks.world)
        for turn in range(turns):
            # All ranks exchange gradients equally often: one without work left takes a row that does not count.
            part = own[turn] if turn < len(own) else [first]
            with ranks.accumulating(policy, more=turn + 1 < turns):
                loss, note = batches.loss(part, *how, turn < len(own))
                (loss * ranks.world).backward()  # DDP and FSDP take the mean over ranks
            yield loss, note

    def of_many(side_by_side: Any, parts: list[list[int]], how: tuple[Shares, bool]) -> Iterable[Any]:
        """The same, with a micro-batch a thread."""
        for loss, gradients, note in side_by_side(partial(batches.gradient, weights, *how), parts):
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
            yield loss, note

    with _threads(config, policy, batches, ranks) as side_by_side:
        for batch_number, first in enumerate(starts):
            step_rows = range(first, min(first + size, len(rollouts)))
            step_tokens = int(rollouts.lengths[step_rows.start : step_rows.stop].sum())
            most, ordered = part_size(config, len(step_rows), ranks.world), list(step_rows)
            if config.loss_normalisation != "microbatch-token":
                ordered.sort(key=totals.__getitem__)  # rows of like length together: less padding
            parts = [ordered[i : i + most] for i in range(0, len(ordered), most)]
            shares = config.loss_normalisation, step_tokens, len(step_rows), len(parts)
            how = shares, batch_number == 0  # then the weights are still those of the round's start
            optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), dtype=torch.float64)
            done = of_many(side_by_side, parts, how) if side_by_side else of_one(parts, how, first)
            for loss, note in done:
                total += loss.item()
                largest_gap = max(largest_gap, note.pop("largest_gap", 0.0))
                for name, value in note.items():
                    sums[name] += value
            step_losses.append(ranks.gather(total).sum().item())
            if not math.isfinite(step_losses[-1]):
                raise NonFiniteError(batch_number, "the loss")
            limit = config.grad_clip or math.inf
            norms.append(whole(torch.nn.utils.clip_grad_norm_(weights, limit)).item())
            if not math.isfinite(norms[-1]):
                raise NonFiniteError(batch_number, "the gradient")
            before = _some_of(weights) if policy.version == telling else []
            optimizer.step()
            if before:
                changed = _share_changed(weights, before, ranks)
            policy.version += 1
    optimizer.zero_grad(set_to_none=True)  # nobody needs gradients while answers are drawn
    policy.model.eval()
    everyone = ranks.gather(torch.tensor([*sums.values(), largest_gap], dtype=torch.float64))
    nll, entropy, tokens, gap, gap_tokens, _ = everyone.sum(0).tolist()
    return {
        "loss": sum(step_losses) / len(step_losses),
        "nll": nll / tokens,
        "entropy": entropy / tokens,
        "sampler_gap": gap / max(gap_tokens, 1),
        "sampler_gap_max": everyone[:, -1].max().item(),
        "grad_norm": sum(norms) / len(norms),
        "version": policy.version,
        **({} if changed is None else {"changed": changed}),
    }


def _size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def part_size(config: Config, rows: int, world: int) -> int:
    """Most sequences of a micro-batch, of a step's `rows`, where `world` ranks are to have work."""
    if config.loss_normalisation == "microbatch-token":  # a loss that depends on what is in one
        return config.micro_batch
    most = min(config.micro_batch, math.ceil(rows / world))
    return min(most, max(16, most // 2)) if world == 1 else most  # half a batch of like lengths pads less


def _large_head(config: Config, policy: Policy, rollouts: Rollouts) -> torch.nn.Linear | None:
    """The output layer if this round's micro-batches have too many logits to be held at once."""
    longest = max(map(len, rollouts.prompts)) + int(rollouts.lengths.max())
    rows = min(config.micro_batch, config.mini_batch * config.G, len(rollouts))
    V = policy.vocab or policy.model.get_input_embeddings().weight.shape[0]
    if rows * longest * V <= CHUNK:
        return None
    head = output_layer(policy)
    if head is None:
        warnings.warn(
            f"model {policy.name!r}: its logits are more than one matrix product, so all {rows} x {longest} x "
            f"{V} of them are held in memory; lower micro_batch if that is too much",
            stacklevel=2,
        )
    return head


def _chunked_loss(
    policy: Policy,
    head: Tensor,
    batch: Batch,
    drawn: Tensor,
    gain: Tensor | None,
    measured: Callable[..., Tensor],
    shares: tuple[str, int, int, int],
) -> Tensor:
    """The same loss as from whole logits, through `HeadLoss`. Every normalisation is a factor."""
    mask = batch.mask
    factor = objectives.normalise(mask.float(), mask, *shares) / mask.sum()
    tokens, drawn = batch.tokens[mask], drawn[mask]
    gains = None if gain is None else gain[:, None].expand_as(mask)[mask]

    def of(logits: Tensor, chunk: slice) -> Tensor:
        one = tokens[chunk, None]
        own = None if gains is None else gains[chunk]
        return factor * measured(logits, one, torch.ones_like(one).bool(), drawn[chunk, None], own).sum()

    states = response_states(policy.model, batch)
    return HeadLoss.apply(states, head, policy.vocab, policy.compute, of)


def _local(weights: list[Tensor]) -> list[Tensor]:
    """What this rank holds of them."""
    return [getattr(w, "_local_tensor", w).detach() for w in weights]


def _some_of(weights: list[Tensor]) -> list[Tensor]:
    """Copies of at most 65,536 evenly spaced entries of each tensor."""
    return [w.flatten()[:: max(1, -(-w.numel() // 65536))].clone() for w in _local(weights)]


def _share_changed(weights: list[Tensor], before: list[Tensor], ranks: Ranks) -> float:
    """Share of all weights that a step changed, by a sample of each tensor; warns where it is near zero."""
    shares = [(new != old).double().mean() for new, old in zip(_some_of(weights), before, strict=True)]
    sizes = [w.numel() for w in _local(weights)]
    changed = sum(float(s) * n for s, n in zip(shares, sizes, strict=True) if n)
    changed, size = ranks.gather(torch.tensor([changed, sum(sizes)], dtype=torch.float64)).sum(0).tolist()
    share = changed / size
    if share < FEW_CHANGED:
        warnings.warn(
            f"the first optimizer step changed {share:.2%} of the weights: steps of this size are lost in "
            f"{str(weights[0].dtype)[6:]}; use float32 weights or a larger lr",
            stacklevel=2,
        )
    return share
