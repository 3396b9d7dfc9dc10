"""SePT without sampling error: a softmax policy small enough to enumerate every answer it can give.

A policy is a table of logits `z[prefix, token]`, one free row per unfinished prefix. Token A-1 ends
the answer, which otherwise ends at length T. One SePT round draws answers from the old policy at
`tau_s` and minimises, at `tau_t`, the paper's equation 1,

    L(theta) = - E_{o ~ pi_old(.; tau_s)} sum_t log pi_theta(o_t | o_<t; tau_t).

Shapes: P prefixes, A tokens, S complete answers; tables of logits, probabilities, weights and
gradients are float64 [P, A] unless said otherwise. A margin is a difference of two logits of one
prefix, an occupancy the probability that a draw visits a prefix. Bad input raises `ValueError`
naming the argument. Probabilities are kept in linear scale, so answers rarer than about 1e-300
underflow: near tau_s 0.1 keep logits at a spread of 1 to 2 and horizons at 3 or 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, rel_entr, xlogy

Array = np.ndarray
REDUCTIONS = ("sequence-sum", "sequence-mean", "token", "microbatch-token")


@dataclass(frozen=True)
class Tree:
    """Every unfinished prefix and every complete answer; a parent precedes its children."""

    n_tokens: int  # A, the end-of-sequence token included; it is token A-1
    horizon: int  # T, the longest answer in tokens
    parent: Array  # [P], -1 at the root
    token: Array  # [P], the last token of the prefix, -1 at the root
    depth: Array  # [P], length of the prefix in tokens
    seq_prefix: Array  # [S, T], the prefix met at each step, -1 once the answer has ended
    seq_token: Array  # [S, T], the token drawn there, -1 once the answer has ended
    length: Array  # [S], tokens in the answer, end-of-sequence included


def build_tree(n_tokens: int, horizon: int) -> Tree:
    """Enumerate prefixes and answers for A = `n_tokens` >= 2 and T = `horizon` >= 1."""
    if n_tokens < 2 or horizon < 1 or (n_tokens - 1) ** horizon > 200_000:
        raise ValueError("n_tokens, horizon: need >= 2, >= 1 and (n_tokens - 1)**horizon <= 200000")
    branch = n_tokens - 1
    depth = np.repeat(np.arange(horizon), branch ** np.arange(horizon))
    ids = np.arange(depth.size)
    parent = np.where(ids > 0, (ids - 1) // branch, -1)
    token = np.where(ids > 0, (ids - 1) % branch, -1)
    # An answer is named by its last step; from there walk back to the root.
    ends = (np.arange(n_tokens) == branch) | (depth == horizon - 1)[:, None]
    here, drawn = np.nonzero(ends)
    length = depth[here] + 1
    seq_prefix, seq_token = np.full((2, here.size, horizon), -1)
    for _ in range(horizon):
        on = np.flatnonzero(here >= 0)
        at = here[on]
        seq_prefix[on, depth[at]], seq_token[on, depth[at]] = at, drawn[on]
        here[on], drawn[on] = parent[at], token[at]
    return Tree(n_tokens, horizon, parent, token, depth, seq_prefix, seq_token, length)


def random_logits(tree: Tree, seed: int, spread: float = 1.5) -> Array:
    """Independent normal logits [P, A] with standard deviation `spread`."""
    return np.random.default_rng(seed).normal(0.0, spread, (tree.parent.size, tree.n_tokens))


def token_log_probs(logits: Array, tau: float) -> Array:
    """log softmax(logits / tau) over the last axis; `tau` > 0, logits finite."""
    if not (np.ndim(tau) == 0 and np.isfinite(tau) and tau > 0):
        raise ValueError(f"tau: a temperature must be a finite number above 0, got {tau!r}")
    logits = np.asarray(logits, dtype=float)
    if logits.ndim == 0 or not np.isfinite(logits).all():
        raise ValueError("logits: need an array of finite numbers; remove NaN and infinite entries")
    return log_softmax(logits / tau, axis=-1)


def token_probs(logits: Array, tau: float, top_k: int | None = None, top_p: float = 1.0) -> Array:
    """softmax(logits / tau), cut to the `top_k` likeliest or the fewest tokens of mass `top_p`."""
    probs = np.exp(token_log_probs(logits, tau))
    if (top_k is not None and top_k < 1) or not 0 < top_p <= 1:
        raise ValueError("top_k, top_p: need top_k >= 1 (or None) and 0 < top_p <= 1")
    if top_k is None and top_p == 1.0:
        return probs
    order = np.argsort(-probs, axis=-1, kind="stable")
    ranked = np.take_along_axis(probs, order, -1)
    keep = np.cumsum(ranked, -1) - ranked < top_p  # the token that crosses top_p stays
    if top_k is not None:
        keep &= np.arange(probs.shape[-1]) < top_k
    kept = np.zeros_like(probs)
    np.put_along_axis(kept, order, np.where(keep, ranked, 0.0), -1)
    return kept / kept.sum(-1, keepdims=True)


def _table(tree: Tree, table: Array, name: str) -> Array:
    """`table` as float64 [P, A] without NaN (-inf is a legal log-probability)."""
    table, shape = np.asarray(table, dtype=float), (tree.parent.size, tree.n_tokens)
    if table.shape != shape or np.isnan(table).any():
        raise ValueError(f"{name}: need shape {shape} without NaN, got {table.shape}")
    return table


def sequence_log_probs(tree: Tree, log_probs: Array) -> Array:
    """log pi(o) [S] of every complete answer: the sum of its token log-probabilities."""
    steps = _table(tree, log_probs, "log_probs")[tree.seq_prefix, tree.seq_token]
    return np.where(tree.seq_prefix >= 0, steps, 0.0).sum(1)


def sequence_probs(tree: Tree, probs: Array) -> Array:
    """pi(o) [S] of every complete answer under the token probabilities `probs`."""
    with np.errstate(divide="ignore"):
        return np.exp(sequence_log_probs(tree, np.log(_table(tree, probs, "probs"))))


def occupancy(tree: Tree, probs: Array) -> Array:
    """d(prefix) [P], the chance that a draw visits it: a product down the tree, no enumeration."""
    probs, visits = _table(tree, probs, "probs"), np.ones(tree.parent.size)
    for level in range(1, tree.horizon):
        rows = np.flatnonzero(tree.depth == level)
        visits[rows] = visits[tree.parent[rows]] * probs[tree.parent[rows], tree.token[rows]]
    return visits


def length_coefficients(
    tree: Tree, probs: Array, reduction: str = "sequence-sum", batch: int | None = None
) -> Array:
    """What one token of each answer weighs in the expected loss, [S].

    `sequence-sum` 1, `sequence-mean` 1/length. `token` and `microbatch-token` divide by all tokens
    of the b = `batch` answers of an optimizer step or micro-batch, so a token of an answer of
    length l weighs b E[1 / (l + L_2 + ... + L_b)], the other lengths being independent draws:
    exact, by convolving the length distribution. Both share the formula, because a mean over
    micro-batches has the expectation of one. `token` without `batch` is b -> infinity, 1 / E[L].
    """
    if reduction not in REDUCTIONS or (batch is not None and batch < 1):
        raise ValueError(f"reduction, batch: need one of {REDUCTIONS} and batch >= 1 or None")
    if reduction == "sequence-sum":
        return np.ones(tree.length.size)
    if reduction == "sequence-mean":
        return 1.0 / tree.length
    if reduction == "microbatch-token" and batch is None:
        raise ValueError("batch: microbatch-token needs the number of answers in a micro-batch")
    pmf = np.bincount(tree.length, sequence_probs(tree, probs), tree.horizon + 1)  # P(L = l)
    if batch is None:
        return np.full(tree.length.size, 1.0 / (pmf @ np.arange(pmf.size)))
    others: Array = np.ones(1)
    for _ in range(batch - 1):
        others = np.convolve(others, pmf)
    return batch * (others @ (1.0 / (np.arange(others.size)[:, None] + tree.length)))


def token_weights(tree: Tree, probs: Array, coefficients: Array | float = 1.0) -> Array:
    """W[prefix, token] = sum over answers of probability * coefficient * count.

    All that the expected loss, -sum W log pi_theta, knows of the old policy."""
    mass = sequence_probs(tree, probs) * coefficients
    weights, on = np.zeros((tree.parent.size, tree.n_tokens)), tree.seq_prefix >= 0
    per_step = np.broadcast_to(mass[:, None], on.shape)[on]
    np.add.at(weights, (tree.seq_prefix[on], tree.seq_token[on]), per_step)
    return weights


def objective_over_sequences(tree: Tree, probs_old: Array, log_probs_new: Array) -> float:
    """Equation 1 as written, in nats: a sum over complete answers drawn from `probs_old`."""
    mass, log_new = sequence_probs(tree, probs_old), sequence_log_probs(tree, log_probs_new)
    return -float(mass[mass > 0] @ log_new[mass > 0])


def objective_over_prefixes(visits: Array, probs_old: Array, log_probs_new: Array) -> float:
    """Proposition 1, in nats: sum over prefixes of d [H(q) + KL(q || pi_theta)], d = `visits`."""
    entropy = -xlogy(probs_old, probs_old).sum(1)
    return float(visits @ (entropy + rel_entr(probs_old, np.exp(log_probs_new)).sum(1)))


def expected_gradient(
    tree: Tree, probs_old: Array, logits: Array, tau_t: float, coefficients: Array | float = 1.0
) -> Array:
    """Gradient of the round's loss in the logits, token by token over answers (no closed form)."""
    probs = np.exp(_table(tree, token_log_probs(logits, tau_t), "logits"))
    mass, gradient = sequence_probs(tree, probs_old) * coefficients, np.zeros_like(probs)
    for step in range(tree.horizon):
        on = np.flatnonzero(tree.seq_prefix[:, step] >= 0)
        row = tree.seq_prefix[on, step]
        residual = probs[row]
        residual[np.arange(on.size), tree.seq_token[on, step]] -= 1.0
        np.add.at(gradient, row, mass[on, None] * residual / tau_t)
    return gradient


def equation_2(tree: Tree, logits: Array, tau_s: float, tau_t: float) -> Array:
    """The gradient at theta_old in closed form: d (softmax(z/tau_t) - softmax(z/tau_s)) / tau_t."""
    sampled = token_probs(logits, tau_s)
    return occupancy(tree, sampled)[:, None] * (token_probs(logits, tau_t) - sampled) / tau_t


def amplified_logits(logits: Array, tau_s: float, tau_t: float) -> Array:
    """Theorem 1: the round's optimum (tau_t / tau_s) z, up to a constant per prefix."""
    token_log_probs(logits, tau_s), token_log_probs(logits, tau_t)  # refuse bad input
    return np.asarray(logits, dtype=float) * (tau_t / tau_s)


@dataclass(frozen=True)
class Fit:
    """New logits [P, A] and, for each step taken, the largest step and the largest gradient."""

    logits: Array
    converged: bool
    step_sizes: Array
    gradient_norms: Array


_STEP = 1e-10  # a fit has converged when its largest step is no larger


def fit_weights(weights: Array, start: Array, tau_t: float, max_steps: int = 1000) -> Fit:
    """Minimise -sum W log softmax(z / tau_t) from `start`, knowing the weights W and nothing else.

    Each prefix is a convex problem of its own, f(u) = logsumexp(u) - w.u with u = z / tau_t and
    w = W / sum W: the occupancy is only its scale. Gradient and Hessian are g = p - w and
    H = diag(p) - p p', and d = -g / p = w / p - 1 solves H d = -g: Newton's step is the gradient
    scaled by the Hessian's diagonal. Formed as a ratio it stays precise for a token of probability
    1e-50, where p - w is lost to rounding. The run stops on the size of the step, because a tail
    token's gradient vanishes long before its logit is right. Rises are cut at one unit, a trust
    region that needs no line search: as log(1 + x) <= x, f changes by at most
    sum_a p_a (exp(d_a) - 1 - d_a w_a / p_a), every term of which is below -0.28 |g_a d_a|. So f
    falls at every step, a far token moves about one unit a step, and the end is quadratic.
    Accuracy floor: 1e-16 |u|, plus the relative error of W.

    A zero weight at a visited prefix (truncated sampling) has its optimum at minus infinity: that
    logit falls by one unit a step and the fit ends at `max_steps` unconverged. A prefix without
    any weight (never visited) keeps its logits.
    """
    weights, log_probs = np.asarray(weights, dtype=float), token_log_probs(start, tau_t)
    if weights.shape != log_probs.shape or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"weights: need finite values >= 0 of shape {log_probs.shape}")
    if max_steps < 1:
        raise ValueError("max_steps: need max_steps >= 1")
    visited = np.flatnonzero(weights.sum(1) > 0)
    target = weights[visited] / weights[visited].sum(1, keepdims=True)
    u, largest = log_probs[visited], np.inf
    steps: list[float] = []
    gradients: list[float] = []
    while largest > _STEP and len(steps) < max_steps:
        probs = np.exp(u)
        ratio = np.divide(target, probs, out=np.zeros_like(u), where=target > 0)
        step = np.minimum(ratio - 1.0, 1.0)
        largest = float(np.abs(step).max(initial=0.0))
        steps.append(largest)
        gradients.append(float(np.abs(probs - target).max(initial=0.0)))
        u = log_softmax(u + step, axis=1)
    logits = np.array(start, dtype=float)
    logits[visited] = tau_t * u
    return Fit(logits, largest <= _STEP, np.array(steps), np.array(gradients))


def sept_round(tree: Tree, logits: Array, tau_s: float, tau_t: float) -> Array:
    """One exact round: enumerate answers at `tau_s`, fit their weights at `tau_t`, new logits."""
    return fit_weights(token_weights(tree, token_probs(logits, tau_s)), logits, tau_t).logits


def margins(logits: Array) -> Array:
    """z_i - z_j for every prefix and pair i < j, [P, A(A-1)/2]."""
    i, j = np.triu_indices(np.shape(logits)[-1], 1)
    return np.asarray(logits)[:, i] - np.asarray(logits)[:, j]


def margin_residual(new: Array, old: Array, ratio: float) -> float:
    """Largest |new margin - ratio * old margin| / (1 + |old margin|), all prefixes and pairs."""
    before = margins(old)
    return float((np.abs(margins(new) - ratio * before) / (1.0 + np.abs(before))).max())


def one_step_margin_change(
    tree: Tree, logits: Array, tau_s: float, tau_t: float, learning_rate: float
) -> Array:
    """Change of every margin [P, A(A-1)/2] in one gradient step, from Equation 2.

    For tau_s < tau_t no margin against a prefix's likeliest token shrinks, and the least-squares
    slope of new on old margins exceeds 1. But margins between unlikely tokens may shrink, and
    growth differs from pair to pair: the uniform factor belongs to the optimum, not to the path.
    """
    return -learning_rate * margins(equation_2(tree, logits, tau_s, tau_t))


def weighted_slope(visits: Array, probs: Array, old: Array, new: Array) -> float:
    """sum_prefix d Cov_q(z_old, z_new) / sum_prefix d Var_q(z_old); d = `visits`, q = `probs`."""
    centred, mass = old - (probs * old).sum(1, keepdims=True), visits[:, None] * probs
    return float((mass * centred * new).sum() / (mass * centred * centred).sum())


def finite_sample(q: Array, n: int, tau_t: float, repetitions: int, rng: np.random.Generator) -> dict:
    """Fit z' = tau_t log(counts) to `n` draws from `q` [A] at one prefix, `repetitions` times.

    Returns the RMS error of each margin [A, A] (NaN unless n q >= 50 for both tokens) and its
    prediction tau_t sqrt((1/q_i + 1/q_j) / n); the mean KL(q || fit) in nats over repetitions in
    which every token was drawn (their share: `full_support`) and its prediction (A - 1) / (2 n).
    """
    q = np.asarray(q, dtype=float)
    if q.ndim != 1 or not (q > 0).all() or abs(q.sum() - 1) > 1e-9:
        raise ValueError("q: need one row of positive probabilities that sum to 1")
    if n < 1 or repetitions < 1 or not tau_t > 0:
        raise ValueError("n, repetitions, tau_t: need n >= 1, repetitions >= 1, tau_t > 0")
    counts = rng.multinomial(n, q, repetitions)
    full, eligible = (counts > 0).all(1), n * q >= 50
    with np.errstate(divide="ignore", invalid="ignore"):  # a tail token may not be drawn at all
        error = tau_t * (np.log(counts / n) - np.log(q))
        rms = np.sqrt(((error[:, :, None] - error[:, None, :]) ** 2).mean(0))
    pairs = eligible[:, None] & eligible & ~np.eye(q.size, dtype=bool)
    predicted = tau_t * np.sqrt((1 / q[:, None] + 1 / q) / n)
    kl = rel_entr(q, counts[full] / n).sum(1).mean() if full.any() else np.nan
    return {
        "rms": np.where(pairs, rms, np.nan),
        "predicted": np.where(pairs, predicted, np.nan),
        "kl": float(kl),
        "predicted_kl": (q.size - 1) / (2 * n),
        "full_support": float(full.mean()),
    }
