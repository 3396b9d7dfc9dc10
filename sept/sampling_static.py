"""The built-in engine for small Qwen2 and Llama models on a CPU, in plain PyTorch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .config import SeptError
from .policy import Policy
from .sampling import Rollouts, check_request, choose, collect, uniforms, watchers


class StaticEngine:
    """The built-in engine for small Qwen2 and Llama models: packed weights and a static cache.

    At 0.3 M parameters `generate` spends its time in Python and small operators. Here norm weights are
    folded into the projections, q, k, v and gate, up are one matrix product each, rotation is one complex
    product, prompts are prefilled once for all their samples, finished rows are dropped, and keys lie
    transposed in the cache. The packed copy is rebuilt at every refresh.
    """

    max_rows = 512
    """Rows decoded side by side."""
    worth = 4_000_000
    """Rows x hidden size^2 that are worth a thread of their own: with less, threads wait for Python's lock."""

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
        turns = -(-len(tokens) // (threads * self.max_rows))  # as many blocks for each thread
        share = -(-len(tokens) // (threads * turns))
        apart = threads > 1 and share * self.embedding.shape[1] ** 2 >= self.worth
        size = max(1, (share if apart else self.max_rows) // n)
        blocks = [order[first : first + size] for first in range(0, len(order), size)]

        def decode(block: list[int]) -> None:
            rows = torch.tensor([i * n + s for i in block for s in range(n)])
            self._decode([prompts[i] for i in block], n, tau, noise, rows, tokens, log_probs, logits)
            for tell in watchers:
                tell(len(rows))

        if apart:  # threads take blocks of rows, not parts of operations: no barrier after each of them
            torch.set_num_threads(1)
            try:
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(decode, blocks))
            finally:
                torch.set_num_threads(threads)
        else:
            for block in blocks:
                decode(block)
        return collect(prompts, n, tokens, log_probs, self.eos, tau, self.version)

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
