"""Drawing answers: the sampler protocol and its two built-in engines (vLLM's is in sampling_vllm.py).

Every engine draws from softmax(z / tau) over the whole vocabulary, nothing else: no top_k, top_p,
min_p or repetition penalty (transformers' default top_k = 50 would silently break the theorem's
premise). The uniform number behind each token comes from its coordinates (seed, draw, problem, sample,
position), so one draw can be repeated alone and neither batch order nor batch size matters.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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


def _collect(
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
        return _collect(prompts, n, tokens, log_probs, self.policy.eos_ids, tau, self.version)

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


class StaticEngine:
    """The built-in engine for small Qwen2 and Llama models: packed weights and a static cache.

    At 0.3 M parameters `generate` spends its time in Python and small operators. Here norm weights are
    folded into the projections, q, k, v and gate, up are one matrix product each, rotation is one complex
    product, prompts are prefilled once for all their samples, finished rows are dropped, and keys lie
    transposed in the cache. The packed copy is rebuilt at every refresh.
    """

    max_rows = 512
    """Rows decoded side by side by one thread."""
    min_rows = 64
    """Rows that are worth a thread of their own."""

    def __init__(self) -> None:
        self.version = -1

    @staticmethod
    def refuses(model: Any) -> str | None:
        """Why this engine cannot run `model`, or None if it can."""
        c = model.config
        if hasattr(model, "peft_config"):
            return "it carries LoRA adapters"
        if c.model_type not in ("qwen2", "llama"):
            return f"model type {c.model_type} is not qwen2 or llama"
        if c.hidden_act != "silu" or getattr(c, "mlp_bias", False):
            return "only silu MLPs without bias"
        if c.model_type == "llama" and getattr(c, "attention_bias", False):
            return "a bias in the attention output"
        rope = getattr(c, "rope_parameters", None) or {}
        if rope.get("rope_type", "default") != "default":
            return f"rope type {rope['rope_type']}"
        if getattr(c, "use_sliding_window", False):
            return "sliding-window attention"
        if next(model.parameters()).device.type != "cpu":
            return "weights are not on the CPU"
        return None

    @torch.no_grad()
    def refresh(self, policy: Policy) -> None:
        reason = self.refuses(policy.model)
        if reason:
            raise SeptError(f"engine static cannot run this model: {reason}; use engine transformers")
        c, body = policy.model.config, policy.model.model
        self.heads, self.kv = c.num_attention_heads, c.num_key_value_heads
        self.dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.eps, self.eos, self.context = c.rms_norm_eps * c.hidden_size, policy.eos_ids, policy.context
        half, root = self.dim // 2, c.hidden_size**0.5
        # Rotation pairs feature i with i + dim/2; side by side the pair is one complex number. A last pair is
        # not turned: 1 in queries, and in keys 0 or, where a slot of the cache is empty, minus infinity.
        pairs = torch.stack([torch.arange(half), torch.arange(half) + half], 1).flatten()
        angles = torch.outer(torch.arange(self.context).float(), body.rotary_emb.inv_freq.float())
        angles = torch.nn.functional.pad(angles, (0, 1))
        self.rotation = torch.polar(torch.ones_like(angles), angles)  # [context, dim / 2 + 1]
        self.embedding = body.embed_tokens.weight.detach().float().clone()
        self.layers = []
        for layer in body.layers:
            a, m = layer.self_attn, layer.mlp
            weights, biases = [], []
            for proj, count, scale, last in (
                (a.q_proj, self.heads, self.dim**-0.5, 1.0),
                (a.k_proj, self.kv, 1.0, 0.0),
                (a.v_proj, self.kv, None, 0.0),
            ):
                w = proj.weight.detach().float().view(count, self.dim, -1)
                b = proj.bias.detach().float() if proj.bias is not None else torch.zeros(w.shape[:2])
                b = b.view(count, self.dim)
                if scale is not None:
                    w, b = w[:, pairs] * scale, b[:, pairs] * scale
                    w = torch.cat([w, torch.zeros_like(w[:, :2])], 1)
                    b = torch.cat([b, torch.tensor([last, 0.0]).expand(count, 2)], 1)
                weights.append(w.flatten(0, 1))
                biases.append(b.flatten())
            # A norm's weight, and the root that makes a mean square of a sum, go into what follows it.
            norm_in = layer.input_layernorm.weight.detach().float() * root
            norm_mid = layer.post_attention_layernorm.weight.detach().float() * root
            gate_up = torch.cat([m.gate_proj.weight, m.up_proj.weight]).detach().float() * norm_mid
            self.layers.append(
                (
                    (torch.cat(weights) * norm_in).t().contiguous(),
                    torch.cat(biases),
                    a.o_proj.weight.detach().float().t().contiguous(),
                    gate_up.t().contiguous(),
                    m.down_proj.weight.detach().float().t().contiguous(),
                )
            )
        head = policy.model.get_output_embeddings().weight[: policy.vocab].detach().float()
        self.head = (head * body.norm.weight.detach().float() * root).t().contiguous()
        self.version = policy.version

    def _normed(self, x: Tensor) -> Tensor:
        return x * torch.linalg.vecdot(x, x).add_(self.eps).rsqrt_()[:, None]

    def _forward(self, ids: Tensor, start: int, rotation: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Logits behind the last of ids [B, S], which go to the cache's slots start .. start + S.

        rotation [B or 1, S, 1, dim / 2 + 1] complex; keys [layers, B, kv, dim + 2, L] and values
        [layers, B, kv, L, dim], L a multiple of 16.
        """
        B, S = ids.shape
        end, groups, wide = start + S, self.heads // self.kv, self.dim + 2
        seen = -(-end // 16) * 16  # short rows and odd lengths are slow; the empty slots count for nothing
        causal = torch.full((S, seen), -torch.inf).triu_(start + 1) if S > 1 else None
        x = self.embedding[ids.flatten()]
        for layer, (qkv, bias, out, gate_up, down) in enumerate(self.layers):
            y = torch.addmm(bias, self._normed(x), qkv)
            qk = y[:, : (self.heads + self.kv) * wide].view(B, S, -1, wide)
            torch.view_as_complex(qk.unflatten(-1, (-1, 2))).mul_(rotation)
            keys[layer, ..., start:end] = qk[:, :, self.heads :].permute(0, 2, 3, 1)
            v = y[:, -self.kv * self.dim :].view(B, S, self.kv, self.dim)
            values[layer, :, :, start:end] = v.transpose(1, 2)
            if S > 1 and layer == len(self.layers) - 1:  # only the last position's output is asked for
                qk, x, S, causal = qk[:, -1:], x.view(B, S, -1)[:, -1].contiguous(), 1, None
            q = qk[:, :, : self.heads].unflatten(2, (self.kv, groups)).permute(0, 2, 3, 1, 4)
            q = q.reshape(B * self.kv, groups * S, wide)
            scores = q @ keys[layer, ..., :seen].flatten(0, 1)
            if causal is not None:
                scores.view(-1, S, seen).add_(causal)
            mixed = scores.softmax(-1) @ values[layer, :, :, :seen].flatten(0, 1)
            mixed = mixed.view(B, self.kv, groups, S, self.dim).permute(0, 3, 1, 2, 4)
            x.addmm_(mixed.reshape(B * S, -1), out)
            gate, up = (self._normed(x) @ gate_up).chunk(2, -1)
            x.addmm_(torch.nn.functional.silu(gate, inplace=True).mul_(up), down)
        return self._normed(x) @ self.head

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[str],
        n: int,
        tau: float,
        max_new_tokens: int,
        seed: int,
        draw: int = 0,
        logits: Tensor | None = None,
    ) -> Rollouts:
        """logits [N, max_new_tokens, V]: filled with what each token was drawn from."""
        longest = max(map(len, prompts), default=0)
        check_request(prompts, n, tau, longest + max_new_tokens, self.context)
        noise = torch.from_numpy(uniforms(keys, n, max_new_tokens, seed, draw))
        tokens = torch.zeros(len(prompts) * n, max_new_tokens, dtype=torch.long)
        log_probs = torch.zeros(len(prompts) * n, max_new_tokens)
        # Prompts of one length stand together: few empty slots, whatever order they came in.
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        threads = torch.get_num_threads()
        share = max(self.min_rows, min(self.max_rows, -(-len(tokens) // threads)))
        size = max(1, share // n)
        blocks = [order[first : first + size] for first in range(0, len(order), size)]

        def decode(block: list[int]) -> None:
            rows = torch.tensor([i * n + s for i in block for s in range(n)])
            self._decode([prompts[i] for i in block], n, tau, noise, rows, tokens, log_probs, logits)
            for tell in watchers:
                tell(len(rows))

        # Threads take blocks of rows, not parts of operations: these are too small to be split.
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(decode, blocks) if threads > 1 < len(blocks) else map(decode, blocks))
        finally:
            torch.set_num_threads(threads)
        return _collect(prompts, n, tokens, log_probs, self.eos, tau, self.version)

    @torch.inference_mode()
    def _decode(
        self,
        prompts: list[Sequence[int]],
        n: int,
        tau: float,
        noise: Tensor,
        rows: Tensor,
        tokens: Tensor,
        log_probs: Tensor,
        kept: Tensor | None,
    ) -> None:
        """Fill tokens[rows] and log_probs[rows] for a block of prompts, shortest first, n samples each."""
        lengths, limit = [len(p) for p in prompts], tokens.shape[1]
        width, shape = lengths[-1], (len(self.layers), len(rows), self.kv)
        L = -(-(width + limit) // 16) * 16
        keys, values = torch.zeros(*shape, self.dim + 2, L), torch.zeros(*shape, L, self.dim)
        keys[..., self.dim, :] = -torch.inf  # empty slots
        # All answers start at slot `width`: shorter prompts leave the first slots empty. One prefill, in the
        # place of its first sample, serves all n samples of a question.
        by_question = [t.unflatten(1, (len(prompts), n)) for t in (keys, values)]
        parts, first = [], 0
        while first < len(prompts):
            S = lengths[first]
            last = min(bisect_right(lengths, S), first + max(1, 2 * self.max_rows // S))
            own = [t[:, first:last, 0] for t in by_question]
            ids = torch.tensor(prompts[first:last])
            parts.append(self._forward(ids, width - S, self.rotation[None, :S, None], *own))
            first = last
        if n > 1:
            k, v = by_question
            k[:, :, 1:, ..., :width] = k[:, :, :1, ..., :width]
            v[:, :, 1:, :, :width] = v[:, :, :1, :, :width]
        z, offset = (t.repeat_interleave(n, 0) for t in (torch.cat(parts), width - torch.tensor(lengths)))
        going = torch.ones(self.head.shape[1], dtype=torch.bool)
        going[[e for e in self.eos if e < len(going)]] = False
        alive = torch.ones(len(rows), dtype=torch.bool)
        for slot in range(width, width + limit):
            token, log_p = choose(z, noise[rows, slot - width], tau)
            tokens[rows, slot - width], log_probs[rows, slot - width] = token, log_p
            if kept is not None:
                kept[rows, slot - width] = z
            alive &= going[token]
            left = int(alive.sum())
            if left == 0 or slot == width + limit - 1:
                return
            if left <= 0.9 * len(rows):
                # Drop finished rows, so that stragglers hold nobody: the last rows move to their places.
                to, of = (~alive[:left]).nonzero().squeeze(1), alive[left:].nonzero().squeeze(1) + left
                for t in (rows, offset, token):
                    t[to] = t[of]
                keys[:, to, ..., :slot] = keys[:, of, ..., :slot]
                values[:, to, :, :slot] = values[:, of, :, :slot]
                keys, values = keys[:, :left], values[:, :left]
                rows, offset, token, alive = (t[:left] for t in (rows, offset, token, alive))
                alive.fill_(True)
            z = self._forward(
                token[:, None], slot, self.rotation[slot - offset][:, None, None], keys, values
            )
