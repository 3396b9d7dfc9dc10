"""Theorem 1 on language models: by what factor did a prefix's logit margins grow?

At a prefix with logits z before and z' after, and the sampling distribution q = softmax(z / tau_s), the
theorem says z'_i - z'_j = (tau_t / tau_s) (z_i - z_j) for every pair of tokens. Nothing is said about tokens
that are never drawn, so pairs are weighted by q_i q_j. All pairs are compared without ever forming them:

    sum_ij q_i q_j (a_i - a_j) (b_i - b_j) = 2 Cov_q(a, b)

so the weighted least-squares slope of new on old margins is Cov_q(z, z') / Var_q(z) and its R^2 is
Cov^2 / (Var Var'), both in O(V). Over prefixes the headline is sum Cov / sum Var: a prefix counts by the
spread of its margins, and one that is certain of its next token counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .config import SeptError


def prefix_statistics(
    old: Tensor, new: Tensor, tau_s: float, tau_t: float = 1.0, top_p: float = 0.9, order: bool = True
) -> pd.DataFrame:
    """One row per prefix: how the margins of `new` follow those of `old`, both [N, V] logits.

    Columns: cov, var, var_new (q-weighted, nats^2), slope, r2, intercept (of new on old log-probs at
    temperature 1, nats), kl = KL(q || softmax(new / tau_t)), order_agreement (see `order_agreement`;
    with `order`), slope_unweighted (every token counts the same), slope_top_p (q cut to its nucleus). Slopes
    are NaN where there is no spread. SeptError for shapes that differ, logits that are not finite (-inf, a
    masked token, is left out in both) and temperatures that are not above 0.
    """
    if old.ndim != 2 or old.shape != new.shape:
        raise SeptError(
            f"margins: old logits {tuple(old.shape)} and new logits {tuple(new.shape)} must be [prefixes, "
            "vocabulary] of one vocabulary; compare models that share a tokenizer"
        )
    for name, tau in (("tau_s", tau_s), ("tau_t", tau_t)):
        if not (np.isfinite(tau) and tau > 0):
            raise SeptError(f"{name} = {tau}: must be a finite number above 0")
    masked = torch.isneginf(old) & torch.isneginf(new)
    if (
        not torch.isfinite(old.masked_fill(masked, 0)).all()
        or not torch.isfinite(new.masked_fill(masked, 0)).all()
    ):
        raise SeptError("margins: logits are not finite; a model is damaged")
    if old.dtype not in (torch.float32, torch.float64):
        old, new = old.float(), new.float()
    log_q = torch.log_softmax(old / tau_s, -1)
    q = log_q.exp()
    z, z_new = old.masked_fill(masked, 0), new.masked_fill(masked, 0)
    out = dict(zip(("cov", "var", "var_new"), _moments(q, z, z_new), strict=True))
    out["slope"] = out["cov"] / out["var"]
    out["r2"] = out["cov"].square() / (out["var"] * out["var_new"])
    log_old, log_new = (torch.log_softmax(x, -1).masked_fill(masked, 0) for x in (old, new))
    out["intercept"] = (q * (log_new - out["slope"][:, None] * log_old)).sum(-1)
    fitted = torch.log_softmax(new / tau_t, -1)
    out["kl"] = (q * (log_q - fitted).masked_fill(masked, 0)).sum(-1)
    flat = (~masked).to(q.dtype)
    cov, var, _ = _moments(flat / flat.sum(-1, keepdim=True), z, z_new)
    out["slope_unweighted"] = cov / var
    cov, var, _ = _moments(nucleus(q, top_p), z, z_new)
    out["slope_top_p"] = cov / var
    if order:
        out["order_agreement"] = order_agreement(q, old, new)
    return pd.DataFrame({name: value.double().cpu().numpy() for name, value in out.items()})


def _moments(weights: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cov(a, b), Var(a), Var(b) under `weights` [N, V] that sum to one: [N] each, two passes."""
    a = a - (weights * a).sum(-1, keepdim=True)
    b = b - (weights * b).sum(-1, keepdim=True)
    wa = weights * a
    return (wa * b).sum(-1), (wa * a).sum(-1), (weights * b * b).sum(-1)


def nucleus(q: Tensor, top_p: float) -> Tensor:
    """q [N, V] cut to the fewest tokens of mass `top_p` and renormalised."""
    ranked, tokens = q.sort(dim=-1, descending=True, stable=True)
    keep = ranked.cumsum(-1) - ranked < top_p  # the token that crosses top_p stays
    cut = torch.zeros_like(q).scatter(-1, tokens, ranked * keep)
    return cut / cut.sum(-1, keepdim=True)


def order_agreement(q: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Share of pairs, weighted by q_i q_j, that `new` puts in the same order as `old`: [N].

    Pairs that `old` ties do not count, pairs that only `new` ties count half. In O(V log V): tokens stand
    in the order of `old`; two of them are swapped in `new` if their ranks there are the other way round.
    Ranks first differ in one bit, so each bit from the highest down collects its swapped pairs by a running
    sum inside the groups that the higher bits form. float64.
    """
    q = q.double()
    rank_old, rank_new = _dense_ranks(old), _dense_ranks(new)
    width = rank_new.shape[-1] + 1
    order = (rank_old * width + rank_new).argsort(-1)  # ties of old in the order of new: never swapped
    weight, rank = q.gather(-1, order), rank_new.gather(-1, order)
    swapped = torch.zeros_like(q[:, 0])
    for bit in reversed(range(int(rank.max()).bit_length())):
        group = rank >> (bit + 1)
        place = group.argsort(dim=-1, stable=True)  # groups together, each still in the order of old
        weight, rank, group = (x.gather(-1, place) for x in (weight, rank, group))
        high = (rank >> bit) & 1
        before = (weight * high).cumsum(-1)
        begins = torch.ones_like(group, dtype=torch.bool)
        begins[:, 1:] = group[:, 1:] != group[:, :-1]
        # What had been summed up before a token's group began, carried along the group.
        offset = torch.where(begins, before - weight * high, 0.0).cummax(-1).values
        swapped += (weight * (1 - high) * (before - offset)).sum(-1)
    total = _tied(q, torch.zeros_like(rank_old)) - _tied(q, rank_old)
    half = _tied(q, rank_new) - _tied(q, rank_old * width + rank_new)
    return (total - swapped - half / 2) / total


def _dense_ranks(values: Tensor) -> Tensor:
    """0, 1, 2, ... by rising value in each row; equal values share a rank."""
    ranked, place = values.sort(dim=-1, stable=True)
    steps = torch.zeros_like(place)
    steps[:, 1:] = (ranked[:, 1:] != ranked[:, :-1]).long()
    return torch.zeros_like(place).scatter(-1, place, steps.cumsum(-1))


def _tied(q: Tensor, labels: Tensor) -> Tensor:
    """sum of q_i q_j over pairs i < j of equal label: ((sum over the group)^2 - sum of squares) / 2."""
    compact = _dense_ranks(labels)
    sums = torch.zeros_like(q).scatter_add(-1, compact, q)
    return (sums.square().sum(-1) - q.square().sum(-1)) / 2


def aggregate(
    table: pd.DataFrame, sequences: Iterable[int], draws: int = 2000, seed: int = 0, level: float = 0.95
) -> dict[str, float]:
    """Headline of many prefixes: sum Cov / sum Var with a bootstrap interval over sequences.

    table: `prefix_statistics`; sequences: which answer each prefix belongs to (prefixes of one answer are not
    independent). Keys: slope, lo, hi, r2 (median over prefixes with spread), order_agreement and kl (means,
    weighted by nothing), prefixes, sequences. SeptError if no prefix has any spread.
    """
    frame = table.assign(sequence=np.asarray(list(sequences)))
    sums = frame.groupby("sequence")[["cov", "var"]].sum().to_numpy()
    if not sums[:, 1].sum() > 0:
        raise SeptError(
            "margins: no prefix has any spread, so there is no slope; lower the temperature less"
        )
    picks = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=draws
    )
    drawn = picks @ sums
    half = (1 - level) / 2
    low, high = np.nanquantile(
        drawn[:, 0] / np.where(drawn[:, 1] > 0, drawn[:, 1], np.nan), [half, 1 - half]
    )
    spread = frame[frame["var"] > 1e-6]
    return {
        "slope": float(sums[:, 0].sum() / sums[:, 1].sum()),
        "lo": float(low),
        "hi": float(high),
        "r2": float(spread["r2"].median()),
        "order_agreement": float(spread["order_agreement"].mean())
        if "order_agreement" in frame
        else np.nan,
        "kl": float(frame["kl"].mean()),
        "prefixes": len(frame),
        "sequences": len(sums),
    }
