"""A sampler whose log-probs are the trainer's, bit for bit: on a CPU, in float32.

A token decoded from cached keys and the same token in a pass over the whole sequence go through other kernels,
and on an ill-conditioned model that shows as up to 1e-4 nats. Two things remove it. Both models use one
attention function, plain products and a softmax. And every matrix product has at least 4 rows and 16 columns:
from there on MKL adds up each element in one order, whatever is computed beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .config import SeptError
from .policy import Policy
from .sampling import TransformersEngine

NAME = "sept-exact"
ROWS, COLUMNS = 4, 16


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **options: Any
) -> tuple[Tensor, None]:
    """softmax(q k' scaling + mask) v: query [B, heads, S, dim], key and value [B, kv, L, dim],
    mask [B, 1, S, L]."""
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise SeptError(
                f"engine exact: this model's attention has more to it ({name}); use another engine"
            )
    S, L, heads = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    rows, columns = max(0, ROWS - S), max(0, COLUMNS - L)
    key, value = (pad(x.repeat_interleave(heads, 1), (0, 0, 0, columns)) for x in (key, value))
    scores = (pad(query, (0, 0, 0, rows)) @ key.transpose(2, 3)) * scaling
    hidden = torch.finfo(scores.dtype).min
    scores = scores + pad(pad(mask[..., :L], (0, columns), value=hidden), (0, 0, 0, rows))
    return (scores.softmax(-1) @ value)[:, :, :S].transpose(1, 2).contiguous(), None


class ExactEngine(TransformersEngine):
    """`TransformersEngine` with that attention; it gives it to the policy's model as well."""

    def refresh(self, policy: Policy) -> None:
        first = self.frozen is None
        if first:
            if policy.compute != torch.float32 or next(policy.model.parameters()).device.type != "cpu":
                raise SeptError("engine exact: for float32 on a CPU; use engine transformers")
            from transformers import AttentionInterface
            from transformers.masking_utils import AttentionMaskInterface, eager_mask

            AttentionInterface.register(NAME, attention)
            AttentionMaskInterface.register(NAME, eager_mask)
            policy.model.set_attn_implementation(NAME)
        super().refresh(policy)
        if (
            first
        ):  # `generate` keeps the last position alone: a strided view, for which there is another kernel
            head = self.frozen.get_output_embeddings()
            head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))

    def _generate(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[str], n: int, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        rows = len(prompts) * n
        times = -(-ROWS // rows)
        tokens, log_probs = super()._generate([*prompts] * times, [*keys] * times, n, *rest)
        return tokens[:rows], log_probs[:rows]
