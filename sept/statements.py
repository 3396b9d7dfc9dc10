"""The statements of the theory as tables: what notebooks draw and `sept theorem --exact` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from . import tabular as tb
from .tabular import Array, Tree


def margin_rows(tree: Tree, logits: Array, temperatures: Sequence[float], tau_t: float = 1.0) -> list[dict]:
    """Table of one fitted round: a row per tau_s, prefix and pair i < j, margins old and new."""
    i, j = np.triu_indices(tree.n_tokens, 1)
    rows = []
    for tau_s in temperatures:
        new, ratio = tb.margins(tb.sept_round(tree, logits, tau_s, tau_t)), tau_t / tau_s
        for (prefix, pair), old in np.ndenumerate(tb.margins(logits)):
            row = dict(tau_s=tau_s, tau_t=tau_t, ratio=ratio, prefix=prefix)
            row |= dict(token_i=int(i[pair]), token_j=int(j[pair]), margin_old=float(old))
            after = float(new[prefix, pair])
            rows.append(row | dict(margin_new=after, residual=after - ratio * float(old)))
    return rows


def round_rows(
    tree: Tree, logits: Array, schedules: Mapping[str, Sequence[tuple[float, float]]]
) -> list[dict]:
    """Table of fitted rounds for schedules [(tau_s, tau_t), ...] by name: `growth` of the margins
    since the start (least squares), `product` of tau_t / tau_s, largest relative `residual`."""
    rows, old = [], tb.margins(logits)
    for name, schedule in schedules.items():
        current, product = logits, 1.0
        for number, (tau_s, tau_t) in enumerate([(np.nan, np.nan), *schedule]):
            if number > 0:  # row 0 is the start
                current, product = tb.sept_round(tree, current, tau_s, tau_t), product * tau_t / tau_s
            row = dict(schedule=name, round=number, tau_s=tau_s, tau_t=tau_t, product=product)
            growth = float((tb.margins(current) * old).sum() / (old * old).sum())
            residual = tb.margin_residual(current, logits, product)
            rows.append(row | dict(growth=growth, residual=residual))
    return rows


def finite_sample_rows(
    q: Array, sizes: Sequence[int], tau_t: float = 1.0, repetitions: int = 2000, seed: int = 0
) -> list[dict]:
    """Table of `finite_sample` over several n; `worst_ratio` is |measured / predicted - 1|."""
    rows = []
    for n in sizes:
        result = tb.finite_sample(q, n, tau_t, repetitions, np.random.default_rng([seed, n]))
        rms, predicted = (result[k][np.isfinite(result[k])] for k in ("rms", "predicted"))
        row = dict(n=n, pairs=rms.size // 2, kl=result["kl"], predicted_kl=result["predicted_kl"])
        row |= dict(full_support=result["full_support"], rms=np.nan, predicted_rms=np.nan)
        if rms.size:
            row |= dict(rms=np.sqrt(np.mean(rms**2)), predicted_rms=np.sqrt(np.mean(predicted**2)))
        rows.append(row | dict(worst_ratio=float(np.abs(rms / predicted - 1).max(initial=0.0))))
    return rows


def normalisation_rows(
    tree: Tree, logits: Array, tau_s: float, tau_t: float = 1.0, batches: Sequence[int] = (4, 32)
) -> list[dict]:
    """Table of how each loss reduction bends the theory; `batches` is for the two token means.

    `eq2_norm`: norm of the expected gradient at tau_s = tau_t (theory: 0) over its norm in the
    decoupled round. `slope`: q-weighted slope of the optimum over tau_t / tau_s (theory: 1).
    `max_bend`: largest deviation of a log-odds of the optimum, in nats (theory: 0).
    """
    cases: list[tuple[str, int | None]] = [(name, None) for name in tb.REDUCTIONS[:3]]
    cases += [(name, b) for name in tb.REDUCTIONS[2:] for b in batches]
    sampled, coupled, rows = tb.token_probs(logits, tau_s), tb.token_probs(logits, tau_t), []
    for name, batch in cases:
        decoupled = tb.length_coefficients(tree, sampled, name, batch)
        at_equal = tb.length_coefficients(tree, coupled, name, batch)
        signal = np.linalg.norm(tb.expected_gradient(tree, sampled, logits, tau_t, decoupled))
        bias = np.linalg.norm(tb.expected_gradient(tree, coupled, logits, tau_t, at_equal))
        new = tb.fit_weights(tb.token_weights(tree, sampled, decoupled), logits, tau_t).logits
        slope = tb.weighted_slope(tb.occupancy(tree, sampled), sampled, logits, new) * tau_s / tau_t
        bend = np.abs(tb.margins(new) - tau_t / tau_s * tb.margins(logits)).max() / tau_t
        row = dict(reduction=name, batch=batch, eq2_norm=float(bias / signal))
        rows.append(row | dict(slope=slope, max_bend=float(bend)))
    return rows


def exact_report(seed: int = 0, n_tokens: int = 6, horizon: int = 3, spread: float = 1.5) -> list[dict]:
    """Check every statement on one random policy (n_tokens >= 5, horizon >= 2); a second or less.

    Rows of statement, residual, tolerance, bound, holds, detail. `bound` is "at most" for
    identities and "at least" for controls, where a premise is broken on purpose and must show.
    """
    if n_tokens < 5 or horizon < 2:
        raise ValueError("n_tokens, horizon: the report needs n_tokens >= 5 and horizon >= 2")
    tree, rows = tb.build_tree(n_tokens, horizon), []
    old, theta = (tb.random_logits(tree, s, spread) for s in (seed, seed + 10_000))
    tau_s, tau_t, rate = 0.6, 1.0, 0.5

    def add(statement: str, residual: float, tolerance: float, detail: str, least: bool = False) -> None:
        holds = bool(residual >= tolerance if least else residual <= tolerance)
        row = dict(statement=statement, residual=float(residual), tolerance=tolerance)
        row |= dict(bound="at least" if least else "at most", holds=holds, detail=detail)
        rows.append(row)

    q, log_new = tb.token_probs(old, tau_s), tb.token_log_probs(theta, tau_t)
    left, visits = tb.objective_over_sequences(tree, q, log_new), tb.occupancy(tree, q)
    apart = abs(left - tb.objective_over_prefixes(visits, q, log_new))
    add("Proposition 1", apart, 1e-10, f"{tree.length.size} answers against {tree.parent.size} prefixes")
    wrong = tb.objective_over_prefixes(tb.occupancy(tree, tb.token_probs(old, 1.0)), q, log_new)
    add("Proposition 1, occupancy at tau 1", abs(left - wrong), 1e-3, "wrong on purpose", True)
    coupled = [tb.expected_gradient(tree, tb.token_probs(old, t), old, t) for t in (0.6, 1.0, 1.4)]
    add("Equation 2, coupled: no signal", np.abs(coupled).max(), 1e-12, "tau 0.6, 1 and 1.4")
    gradient = tb.expected_gradient(tree, q, old, tau_t)
    apart = np.abs(gradient - tb.equation_2(tree, old, tau_s, tau_t)).max()
    add("Equation 2, decoupled", apart, 1e-12, "gradient from answers against closed form")

    grid = [(s, t) for s in (0.1, 0.3, 0.6, 0.9, 1.0, 1.4, 2.0) for t in (0.7, 1.0, 1.3)]
    closed = [
        tb.token_log_probs(tb.amplified_logits(old, s, t), t) - tb.token_log_probs(old, s) for s, t in grid
    ]
    add("Theorem 1, closed form", np.abs(closed).max(), 1e-10, "log-probabilities, 21 cases")
    fitted = [tb.margin_residual(tb.sept_round(tree, old, s, t), old, t / s) for s, t in grid]
    add("Theorem 1, optimiser", max(fitted), 1e-9, "all prefixes and pairs, 21 cases")
    cold = tb.token_weights(tree, tb.token_probs(old, 0.1))
    fit = tb.fit_weights(cold, old, 1.0)
    stop = int(np.argmax(fit.gradient_norms < 1e-15)) + 1
    early = tb.margin_residual(tb.fit_weights(cold, old, 1.0, max_steps=stop).logits, old, 10.0)
    detail = f"tau_s 0.1, step {stop} of {fit.step_sizes.size}, wrong on purpose"
    add("Theorem 1, stopped on a gradient of 1e-15", early, 1e-2, detail, True)

    change = tb.one_step_margin_change(tree, old, tau_s, tau_t, rate)
    direct = tb.margins(old - rate * gradient) - tb.margins(old)
    add("One step, margin change", np.abs(direct - change).max(), 1e-12, f"learning rate {rate}")
    growth = (change / tb.margins(old))[0]
    detail = f"relative growth at the root {growth.min():+.3f} to {growth.max():+.3f}"
    add("One step, growth not uniform", np.ptp(growth), 1e-3, detail, True)
    step = np.take_along_axis(-gradient, old.argmax(1)[:, None], 1) + gradient
    detail = f"{(change * tb.margins(old) < 0).mean():.0%} of all margins shrink, none against it"
    add("One step, likeliest token gains", max(0.0, -step.min()), 0.0, detail)
    schedule = [(0.6, 1.0), (0.8, 1.0), (1.4, 1.0), (0.9, 0.7)]
    last = round_rows(tree, old, {"mixed": schedule})[-1]
    add("Product rule over rounds", last["residual"], 1e-9, f"4 rounds, x {last['product']:.4f}")

    mild = tb.token_probs(np.random.default_rng(seed).normal(0, 0.7, n_tokens), 1.0)
    samples = finite_sample_rows(mild, (2000, 4000, 8000, 16000, 32000), 1.0, 2000, seed)
    worst, detail = (
        max(r["worst_ratio"] for r in samples),
        "worst |measured / predicted - 1|, 2000 repetitions",
    )
    add("Finite sample, log-odds error", worst, 0.1, detail)
    sizes, divergence = np.array([(r["n"], r["kl"]) for r in samples]).T
    slope = np.polyfit(np.log(sizes), np.log(divergence), 1)[0]
    add("Finite sample, KL falls like 1/N", abs(slope + 1), 0.1, f"exponent {slope:.3f}")

    for name, top_k, top_p in (("Top-k 3", 3, 1.0), ("Top-p 0.9", None, 0.9)):
        teacher = tb.token_probs(old, tau_s, top_k, top_p)
        weights, seen = tb.token_weights(tree, teacher), tb.occupancy(tree, teacher) > 0
        before, after = (tb.fit_weights(weights, old, tau_t, max_steps=m).logits for m in (100, 200))
        kept = np.where((teacher > 0) & seen[:, None], 1.0, np.nan)
        pairs = tb.margins(after * kept) - tau_t / tau_s * tb.margins(old * kept)
        pairs, fall, lost = pairs[np.isfinite(pairs)], (before - after)[0], teacher[0] == 0
        largest, detail = np.abs(pairs).max(initial=0.0), f"{pairs.size} pairs of kept tokens"
        add(f"{name}, kept tokens obey the theorem", largest, 1e-9, detail)
        apart, detail = (
            fall[lost].min() - fall[~lost].max(),
            "growth at the root over optimiser steps 101 to 200",
        )
        add(f"{name}, margins to removed tokens diverge", apart, 50.0, detail, True)
        moved, detail = (
            np.abs(after - old)[~seen].max(initial=0.0),
            f"{(~seen).sum()} of {seen.size} prefixes",
        )
        add(f"{name}, unvisited prefixes stay", moved, 0.0, detail)

    table = normalisation_rows(tree, old, tau_s, tau_t, (1, 4, 32, 64))
    bends = {(r["reduction"], r["batch"]): r for r in table}
    for name, label in (("sequence-sum", ""), ("token", " of an infinite batch")):
        row = bends[name, None]
        off = max(row["eq2_norm"], row["max_bend"], abs(row["slope"] - 1))
        add(f"Loss {name}{label} keeps both", off, 1e-9, "Equation 2 and Theorem 1")
    for name, batch in (("sequence-mean", None), ("microbatch-token", 4), ("token", 32)):
        row = bends[name, batch]
        detail = f"nats; slope {row['slope']:.4f}, coupled gradient {row['eq2_norm']:.1%}"
        add(f"Loss {name} {batch or ''}".rstrip() + " bends", row["max_bend"], 1e-3, detail, True)
    single = bends["microbatch-token", 1]["max_bend"] - bends["sequence-mean", None]["max_bend"]
    add("Loss microbatch-token 1 is sequence-mean", abs(single), 1e-9, "largest bend")
    factor = bends["token", 32]["max_bend"] / bends["token", 64]["max_bend"]
    detail = f"32 to 64 answers: factor {factor:.3f}"
    add("Token mean, bend falls like 1/batch", abs(np.log2(factor) - 1), 0.1, detail)
    return rows
