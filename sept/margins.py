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

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import toy
from .config import SeptError
from .policy import Batch, Policy, make_batch, response_logits
from .problems import Problem
from .sampling import Rollouts, Sampler

_BLOCK = 1 << 17
"""Logits worked on at a time by one thread; a longer row goes alone."""
SPREAD = 1e-6
"""q-weighted variance of the old margins, nats^2, from which a prefix has a slope worth a median."""
COLUMNS = ("cov", "var", "var_new", "slope", "r2", "kl", "intercept")
COMPARED = ("slope_unweighted", "slope_top_p", "order_agreement")


def prefix_statistics(
    old: Tensor,
    new: Tensor,
    tau_s: float,
    tau_t: float = 1.0,
    top_p: float = 0.9,
    order: bool = True,
    threads: int = 1,
) -> pd.DataFrame:
    """One row per prefix: how the margins of `new` follow those of `old`, both [N, V] logits.

    Columns: cov, var, var_new (q-weighted, nats^2), slope, r2, kl = KL(q || softmax(new / tau_t)) in nats,
    intercept (of log softmax(new / tau_t) on log q, nats: the theorem says 0) and, with `order`, which takes
    sorts, slope_unweighted (every token counts the same), slope_top_p (q cut to its nucleus) and
    order_agreement (see there). Slopes are NaN where there is no spread. A token that is -inf in both is masked
    and left out. Half precision is worked on in float32, block by block, so memory beyond the logits is a
    few blocks of 2^17 numbers (with `order`, some arrays of [rows of a block, V]). SeptError for shapes that
    differ, logits that are not finite and temperatures that are not above 0.
    """
    if old.ndim != 2 or old.shape != new.shape:
        raise SeptError(
            f"margins: old logits {tuple(old.shape)} and new logits {tuple(new.shape)} must be [prefixes, "
            "vocabulary] of one vocabulary; compare models that share a tokenizer"
        )
    for name, tau in (("tau_s", tau_s), ("tau_t", tau_t)):
        if not (np.isfinite(tau) and tau > 0):
            raise SeptError(f"{name} = {tau}: must be a finite number above 0")
    # Threads take rows, not parts of operations: no barrier after each of them, and no trap on busy cores.
    before, shares = torch.get_num_threads(), np.array_split(np.arange(len(old)), threads)
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            jobs = [
                pool.submit(
                    _share, old[i[0] : i[-1] + 1], new[i[0] : i[-1] + 1], tau_s, tau_t, top_p, order
                )
                for i in shares
                if len(i)
            ]
            parts = [block for job in jobs for block in job.result()]
    finally:
        torch.set_num_threads(before)
    if not parts:
        return pd.DataFrame({c: [] for c in (*COLUMNS, *(COMPARED if order else ()))})
    columns = _derived(torch.cat([totals for totals, _ in parts], 1), tau_s, tau_t)
    for name in COMPARED if order else ():
        columns[name] = torch.cat([compared[name] for _, compared in parts]).double()
    return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})


def _derived(totals: Tensor, tau_s: float, tau_t: float) -> dict[str, Tensor]:
    """COLUMNS from the sums of `_block`, [7, rows] -> [rows] each."""
    largest, sw = totals[0], totals[1]
    me, mf, mee, mef, mff = totals[2:] / sw
    var, cov, var_new = mee - me * me, mef - me * mf, mff - mf * mf
    entropy = -largest.log() - me
    values = [cov * (tau_s * tau_t), var * tau_s**2, var_new * tau_t**2, cov / var * (tau_t / tau_s)]
    values += [cov.square() / (var * var_new), -entropy - mf, mf + cov / var * entropy]
    return dict(zip(COLUMNS, values, strict=True))


@torch.no_grad()
def _share(
    old: Tensor, new: Tensor, tau_s: float, tau_t: float, top_p: float, order: bool
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """`_block`, and with `order` `_compared`, over one thread's rows, in scratch allocated once."""
    rows = max(1, _BLOCK // old.shape[1])
    kind = torch.float64 if old.dtype == torch.float64 else torch.float32
    scratch = torch.empty(4, rows, old.shape[1], dtype=kind, device=old.device)
    out = []
    for a, b in zip(old.split(rows), new.split(rows), strict=True):
        a, b = a.to(kind), b.to(kind)
        totals = _block(a, b, tau_s, tau_t, scratch[:, : len(a)])
        out.append((totals, _compared(a, b, tau_s, top_p) if order else {}))
    return out


def _block(old: Tensor, new: Tensor, tau_s: float, tau_t: float, scratch: Tensor) -> Tensor:
    """Seven numbers a row, [7, rows] float64, of which everything in COLUMNS is made.

    With e = (z - max z) / tau_s, q = softmax(e) and f = log softmax(z' / tau_t) they are the largest q (at
    e = 0, so 1 / normaliser) and the sums of q, qe, qf, qee, qef and qff. Shifting by the maximum, where q
    lives, keeps the differences of these sums exact enough in float32 (slopes to 3e-5 of themselves, KL to
    5e-5 nats at 152,000 tokens). Few operations on long rows, as the interpreter is the bottleneck of
    several threads; softmax and log_softmax take less time than the exponentials that they contain.
    """
    e, f, q, x = scratch
    torch.add(old.amax(-1, keepdim=True) / -tau_s, old, alpha=1 / tau_s, out=e)
    torch.log_softmax(new if tau_t == 1 else torch.mul(new, 1 / tau_t, out=x), -1, out=f)
    torch.softmax(e, -1, out=q)
    totals = torch.stack([q.amax(-1), *_sums(q, e, f, x)]).double()
    if not torch.isfinite(totals).all():  # -inf times 0 is not a number: leave masked tokens out
        both = torch.isneginf(e) & torch.isneginf(f)
        e.masked_fill_(both, 0), f.masked_fill_(both, 0)
        totals = torch.stack([q.amax(-1), *_sums(q, e, f, x)]).double()
        if not torch.isfinite(totals).all():
            raise SeptError("margins: logits are not finite; a model is damaged")
    return totals


def _compared(old: Tensor, new: Tensor, tau_s: float, top_p: float) -> dict[str, Tensor]:
    """The columns of COMPARED, [rows] each."""
    e, f = ((z - z.amax(-1, keepdim=True)).masked_fill(torch.isneginf(z), 0) for z in (old, new))
    q, flat = torch.softmax(old / tau_s, -1), (~torch.isneginf(old)).to(old.dtype)
    out = {}
    for name, weight in zip(COMPARED, (flat, nucleus(q, top_p)), strict=False):
        n, se, sf, see, sef, _ = _sums(weight, e, f, torch.empty_like(e))
        out[name] = (sef - se * sf / n) / (see - se * se / n)
    return out | {COMPARED[2]: order_agreement(q, old, new)}


def _sums(w: Tensor, e: Tensor, f: Tensor, scratch: Tensor) -> list[Tensor]:
    """Sums over tokens of w, we, wf, wee, wef, wff, each [rows]."""
    dot = torch.linalg.vecdot
    if len(w) == 1:  # a long row: the plain dot product makes no array of products
        w, e, f, scratch = w[0], e[0], f[0], scratch[0]
        dot = torch.dot
    we = torch.mul(w, e, out=scratch)
    parts = [w.sum(-1), we.sum(-1), dot(w, f), dot(we, e), dot(we, f)]
    return [x.reshape(-1) for x in (*parts, dot(torch.mul(w, f, out=scratch), f))]


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
    spread = frame[frame["var"] > SPREAD]
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


def headline(table: pd.DataFrame) -> dict[str, Any]:
    """slope, slope_interval, slope_quantiles, r2, order_agreement, kl, prefixes, sequences of a table."""
    got = aggregate(table, table["sequence"])
    quantiles = table.loc[table["var"] > SPREAD, "slope"].quantile([0.1, 0.5, 0.9])
    return {
        "slope": got["slope"],
        "slope_interval": [got["lo"], got["hi"]],
        "slope_quantiles": {str(q): float(v) for q, v in quantiles.items()},
        **{k: got[k] for k in ("r2", "order_agreement", "kl", "prefixes", "sequences")},
    }


def rows_batch(policy: Policy, rollouts: Rollouts, rows: list[int]) -> Batch:
    """Some rows of `rollouts` as a batch where the policy lives."""
    prompts, device = [rollouts.prompts[i] for i in rows], next(policy.model.parameters()).device
    return make_batch(prompts, rollouts.tokens[rows], rollouts.lengths[rows], policy.pad_id, device=device)


@torch.no_grad()
def visited_logits(
    model: Any, rollouts: Rollouts, policy: Policy, rows: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """At every visited prefix: its answer's number [n], the token drawn [n], logits [n, V], float32, CPU.

    `rows` answers at a time. Rows of the embedding beyond the tokenizer's tokens (padding of the
    vocabulary) are left out: they stand for nothing that could be drawn.
    """
    for first in range(0, len(rollouts), rows):
        part = list(range(first, min(first + rows, len(rollouts))))
        batch = rows_batch(policy, rollouts, part)
        mask = batch.mask.cpu()
        logits = policy.run(response_logits, model, batch, policy.vocab)[batch.mask].float().cpu()
        owner = torch.tensor(part)[:, None].expand_as(mask)[mask]
        yield owner, batch.tokens.cpu()[mask], logits


def tail_sums(old: Tensor, new: Tensor, tau_s: float) -> Tensor:
    """Margins against the likeliest token by the other token's probability q: [12, 3], float64.

    Row b is for q in (10^-(b+1), 10^-b]; columns are sum m m', sum m^2 and the number of pairs, with
    m = z_top - z_i before and m' the same margin after. Their ratio is how a margin of that rarity grew.
    """
    log_q = torch.log_softmax(old / tau_s, -1).double()
    top = log_q.argmax(-1, keepdim=True)
    m, after = (x.gather(-1, top).double() - x.double() for x in (old, new))
    row = (-log_q / np.log(10)).floor().clamp(0, 11).long()
    keep = torch.ones_like(row, dtype=torch.bool).scatter(-1, top, False) & torch.isfinite(m + after)
    values = torch.stack([m * after, m * m, torch.ones_like(m)], -1)[keep]
    return torch.zeros(12, 3, dtype=torch.float64).index_add(0, row[keep], values)


class Probe:
    """Fixed prefixes at which a run's margins are measured while it trains.

    They come from the untrained model's own answers at temperature 1 to the run's first questions, so
    that all arms of one seed share them. Up to 64 answers, of their first 64 tokens, and no more than keep
    the logits under 2^26 numbers (256 MiB).
    """

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        questions: Sequence[Problem],
        seed: int,
        limit: int,
        world: str,
    ) -> None:
        """`policy` and `sampler` still hold the untrained weights."""
        room = max(1, (1 << 26) // len(policy.tokenizer) // min(limit, 64))
        chosen = questions[: min(64, room)]
        prompts, keys = [policy.encode(q.prompt) for q in chosen], [q.id for q in chosen]
        self.rollouts = sampler.sample(prompts, keys, 1, 1.0, min(limit, 64), seed, draw=-1)
        parts = list(visited_logits(policy.model, self.rollouts, policy, len(chosen)))
        self.sequence, tokens, self.base = (torch.cat(x) for x in zip(*parts, strict=True))
        self.kinds = []
        if world == "toy":
            self.kinds = [toy.kind(policy.tokenizer.convert_ids_to_tokens(t)) for t in tokens.tolist()]

    def logits(self, policy: Policy) -> Tensor:
        """Logits at the probe's prefixes now, [prefixes, V]."""
        rows = len(self.rollouts)
        return torch.cat([z for *_, z in visited_logits(policy.model, self.rollouts, policy, rows)])

    def measure(self, policy: Policy, before: Tensor, tau_s: float, tau_t: float) -> dict[str, float]:
        """Columns of a round's row, from the logits `before` its steps and those of now (RESULTS.md)."""
        now = self.logits(policy)
        base = prefix_statistics(self.base, now, 1.0, order=False)
        step = prefix_statistics(before, now, tau_s, tau_t, order=False)
        out = {"slope": _ratio(base), "slope r2": float(base["r2"][base["var"] > SPREAD].median())}
        out["slope round"] = _ratio(step)
        for kind, part in base.groupby(self.kinds) if self.kinds else ():
            out[f"slope {kind}"] = _ratio(part)
        return out


def _ratio(table: pd.DataFrame) -> float:
    return float(table["cov"].sum() / table["var"].sum())
