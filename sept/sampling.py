"""Drawing answers: the sampler protocol, how a token is drawn, and the engine that any model can use.

The built-in engine for small models is in sampling_static.py, vLLM's in sampling_vllm.py.

Every engine draws from softmax(z / tau) over the whole vocabulary, nothing else: no top_k, top_p,
min_p or repetition penalty (transformers' default top_k = 50 would silently break the theorem's
premise). The uniform number behind each token comes from its coordinates (seed, draw, problem, sample,
position), so one draw can be repeated alone and neither batch order nor batch size matters.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .config import SeptError, digest
from .policy import Policy


@dataclass
class Rollouts:
    """N sampled answers, on the CPU. Rows are ordered by question, then by sample."""

    prompts: list[list[int]]
    """Prompt token ids of each row."""
    tokens: Tensor
    """[N, T] int64: response ids up to and including end-of-sequence, 0 behind it."""
    lengths: Tensor
    """[N] int64: response tokens of each row, end-of-sequence included."""
    finished: Tensor
    """[N] bool: ended by an end-of-sequence token rather than by the length limit."""
    log_probs: Tensor
    """[N, T] float32: log softmax(z / tau)[token] as the sampler computed it."""
    tau: float
    """Temperature they were drawn at; 0 is greedy."""
    version: int
    """Version of the weights that drew them."""

    def __len__(self) -> int:
        return len(self.prompts)


def thinned(rollouts: Rollouts, n: int) -> Rollouts:
    """About n of its rows, evenly over all of them."""
    rows = list(range(0, len(rollouts), max(1, len(rollouts) // n)))
    fields = {f: getattr(rollouts, f)[rows] for f in ("tokens", "lengths", "finished", "log_probs")}
    return dataclasses.replace(rollouts, prompts=[rollouts.prompts[i] for i in rows], **fields)


class Sampler(Protocol):
    """What the loop and the evaluation need of an engine."""

    version: int

    def refresh(self, policy: Policy) -> None:
        """Take over the policy's current weights and version."""

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
        """n answers to each prompt. keys: one stable name per prompt; draw: the round."""


_GOLDEN = 0x9E3779B97F4A7C15


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64 arrays."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(keys: Sequence[str], n: int, length: int, seed: int, draw: int) -> np.ndarray:
    """[len(keys) * n, length] float64 in [0, 1): one number per (seed, draw, key, sample, position)."""
    rows = np.array([int(digest([seed, draw, key])[:16], 16) for key in keys], dtype=np.uint64)
    samples = _mix(rows[:, None] + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
    steps = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    bits = _mix(samples.reshape(-1, 1) + steps)
    return (bits >> np.uint64(11)) * 2.0**-53


def choose(logits: Tensor, uniform: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Tokens drawn by inverting the distribution function, and their log-probs at tau.

    logits [B, V], uniform [B] float64 -> tokens [B], log-probs [B] float32. tau = 0 is greedy, with the
    log-prob at tau = 1. The running sum is float64: over 152,000 tokens float32 would lose the tail.
    """
    log_p = torch.log_softmax(logits.float() / (tau or 1.0), -1)
    if tau == 0:
        tokens = logits.argmax(-1)
    else:
        cdf = log_p.double().exp_().cumsum_(-1)
        reached = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True).squeeze(-1)
        tokens = reached.clamp_max_(logits.shape[-1] - 1)
    return tokens, log_p.gather(-1, tokens[:, None]).squeeze(-1)


watchers: list[Callable[[int], object]] = []
"""Told how many answers a built-in engine has just finished: for progress while one call goes on."""


class EngineError(RuntimeError):
    """An engine that died while it drew."""


def parse_engine(engine: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of an engine, as in vllm:enforce_eager=true. SeptError if it cannot be had."""
    name, *pairs = engine.split(":")
    if name not in ("auto", "static", "transformers", "exact", "vllm") or (pairs and name != "vllm"):
        raise SeptError(
            f"engine {engine!r}: choose auto, static, transformers, exact or vllm[:setting=value...]"
        )
    if name == "vllm" and importlib.util.find_spec("vllm") is None:
        raise SeptError(
            "engine vllm needs vLLM, which is not installed: pip install -c constraints.txt '.[vllm]' on a "
            "machine with a GPU, or use engine transformers"
        )
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise SeptError(f"engine setting {pair!r}: write name=value, a setting of vllm.LLM")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return name, settings


def make_sampler(policy: Policy, engine: str = "auto", training: bool = True) -> Sampler:
    """An engine holding the policy's weights. auto: `static` where it can, else `transformers`.

    `vllm` may carry settings of vLLM, as in vllm:tensor_parallel_size=2:gpu_memory_utilization=0.5.
    training: the device is shared with a training, so an engine gives its memory back between calls.
    """
    from .sampling_static import StaticEngine

    name, settings = parse_engine(engine)
    if name == "auto":
        small = sum(p.numel() for p in policy.model.parameters()) < 50_000_000
        name = "static" if small and StaticEngine.refuses(policy.model) is None else "transformers"
    sampler: Sampler
    if name == "vllm":
        from .sampling_vllm import VllmEngine

        sampler = VllmEngine(**{"sleep": training, **settings})
    elif name == "exact":
        from .exact import ExactEngine

        sampler = ExactEngine()
    else:
        sampler = StaticEngine() if name == "static" else TransformersEngine()
    sampler.refresh(policy)
    return sampler


def collect(
    prompts: Sequence[Sequence[int]],
    n: int,
    tokens: Tensor,
    log_probs: Tensor,
    eos: Sequence[int],
    tau: float,
    version: int,
) -> Rollouts:
    """Rollouts from raw draws: rows are cut behind their first end-of-sequence."""
    ends = torch.isin(tokens, torch.tensor(list(eos)))
    finished = ends.any(1)
    lengths = torch.where(finished, ends.int().argmax(1) + 1, tokens.shape[1])
    keep = torch.arange(tokens.shape[1]) < lengths[:, None]
    rows = [list(p) for p in prompts for _ in range(n)]
    return Rollouts(rows, tokens * keep, lengths, finished, log_probs * keep, tau, version)


def with_end(rollouts: Rollouts, eos: int) -> Rollouts:
    """Cut answers closed by an end-of-sequence token that nobody drew (its log-prob is NaN)."""
    cut = (~rollouts.finished).nonzero().squeeze(1)
    tokens, log_probs = (torch.nn.functional.pad(t, (0, 1)) for t in (rollouts.tokens, rollouts.log_probs))
    tokens[cut, rollouts.lengths[cut]] = eos
    log_probs[cut, rollouts.lengths[cut]] = torch.nan
    lengths = rollouts.lengths + ~rollouts.finished
    return dataclasses.replace(rollouts, tokens=tokens, log_probs=log_probs, lengths=lengths)


def check_request(prompts: Sequence, n: int, tau: float, longest: int, context: int) -> None:
    """SeptError for an empty request, a bad temperature or a prompt that cannot fit the context."""
    if not prompts:
        raise SeptError("no prompts to sample from: the problem set is empty; give at least one")
    if n < 1:
        raise SeptError(f"n = {n}: draw at least one answer per question")
    if not (tau >= 0 and np.isfinite(tau)):
        raise SeptError(f"temperature {tau}: must be a finite number of at least 0 (0 is greedy)")
    if longest > context:
        raise SeptError(
            f"a prompt and its answer may take {longest} tokens but the model's context is {context}: "
            "drop long prompts or lower max_new_tokens"
        )


class TransformersEngine:
    """`generate` of transformers with its own cache and padding; only the draw is ours.

    It runs as greedy search over scores in which our logits processor has left a single token, so
    that none of the truncating defaults of a generation config can touch the distribution.
    """

    max_rows = 256
    """Rows decoded side by side."""

    def __init__(self) -> None:
        self.version = -1
        self.policy: Policy | None = None
        self.frozen: Any = None

    def refresh(self, policy: Policy) -> None:
        """Copy the weights: training must not change a sampler that was not refreshed."""
        import copy

        if self.frozen is None:
            from transformers import GenerationConfig

            # Deep copies of everything but the weights, which are taken over in what they are used in.
            memo: dict[int, Any] = {
                id(p): torch.nn.Parameter(p.detach().to(policy.compute, copy=True), requires_grad=False)
                for p in policy.model.parameters()
            }
            self.frozen = copy.deepcopy(policy.model, memo)
            # `generate` merges what a checkpoint's own config asks for (penalties, suppressed tokens).
            self.frozen.generation_config = GenerationConfig()
        else:
            # Not by state dict: of a sharded model that would be the shards, even while it is whole.
            with torch.no_grad():
                for mine, new in zip(self.frozen.parameters(), policy.model.parameters(), strict=True):
                    mine.copy_(new)
        self.frozen.eval().requires_grad_(False)
        self.policy, self.version = policy, policy.version

    @torch.no_grad()
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
        assert self.policy is not None, "refresh the engine before sampling"
        longest = max(map(len, prompts), default=0)
        check_request(prompts, n, tau, longest + max_new_tokens, self.policy.context)
        size = max(1, self.max_rows // n)
        parts = [
            self._generate(prompts[i : i + size], keys[i : i + size], n, tau, max_new_tokens, seed, draw)
            for i in range(0, len(prompts), size)
        ]
        width = max(tokens.shape[1] for tokens, _ in parts)
        tokens, log_probs = (
            torch.cat([torch.nn.functional.pad(p[i], (0, width - p[i].shape[1])) for p in parts])
            for i in range(2)
        )
        return collect(prompts, n, tokens, log_probs, self.policy.eos_ids, tau, self.version)

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[str],
        n: int,
        tau: float,
        max_new_tokens: int,
        seed: int,
        draw: int,
    ) -> tuple[Tensor, Tensor]:
        """Tokens and log-probs, [len(prompts) * n, T] each, of one batch."""
        from transformers import GenerationConfig, LogitsProcessorList

        assert self.policy is not None
        width = max(map(len, prompts))
        device = next(self.frozen.parameters()).device
        ids = torch.full((len(prompts), width), self.policy.pad_id)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        noise = torch.from_numpy(uniforms(keys, n, max_new_tokens, seed, draw)).to(device)
        vocab = self.policy.vocab
        log_probs: list[Tensor] = []

        def draw_token(_: Tensor, scores: Tensor) -> Tensor:
            token, log_p = choose(scores[:, :vocab], noise[:, len(log_probs)], tau)
            log_probs.append(log_p)
            return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)

        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(self.policy.eos_ids),
            pad_token_id=self.policy.pad_id,
        )
        out = self.frozen.generate(
            ids.repeat_interleave(n, 0).to(device),
            attention_mask=mask.repeat_interleave(n, 0).to(device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([draw_token]),  # type: ignore[list-item]
        )
        for tell in watchers:
            tell(len(out))
        return out[:, width:].cpu(), torch.stack(log_probs, 1).cpu()
