"""Ways to sharpen a policy without a reward, exactly, on tabular policies.

SePT's converged round tempers every next-token distribution (Theorem 1). Its relatives act on whole answers:
the power distribution p^alpha / Z, the best of n by the model's own likelihood, the majority of n; or on
entropies, as EM-FT. Every function returns probabilities of complete answers, [S], so that all can be compared
on one scale. Nothing is sampled.
"""

from __future__ import annotations

from math import comb

import numpy as np
from scipy.special import entr, softmax

from . import tabular as tb
from .tabular import Array, Tree, token_log_probs


def tempered(tree: Tree, logits: Array, alpha: float) -> Array:
    """Every token from softmax(alpha z): one converged round with tau_t / tau_s = alpha, or several whose
    ratios multiply to it."""
    return tb.sequence_probs(tree, np.exp(token_log_probs(logits, 1 / alpha)))


def power(tree: Tree, logits: Array, alpha: float) -> Array:
    """p(answer)^alpha / Z: of all distributions with its entropy, the one with the likeliest answers."""
    return softmax(alpha * tb.sequence_log_probs(tree, token_log_probs(logits, 1.0)))


def best_of(tree: Tree, logits: Array, n: int) -> Array:
    """The likeliest of n independent answers: P = F(up to it)^n - F(below it)^n over the order of p."""
    p = tempered(tree, logits, 1.0)
    order = np.argsort(p, kind="stable")
    upto = np.cumsum(p[order]).clip(max=1.0)
    out = np.empty_like(p)
    out[order] = np.diff(upto**n, prepend=0.0)
    return out


def majority_of(p: Array, n: int) -> Array:
    """Distribution of the majority among n draws from p over answers [K], ties broken evenly.

    Exact: answer by answer a binomial count m, and the chance that the others stay below m or tie with it,
    by a recursion over the other answers that carries (draws left, answers tied).
    """
    K, out = len(p), np.zeros(len(p))
    for k in range(K):
        for m in range(1, n + 1):
            # ways[d, t]: weight of putting d draws on the answers seen so far, t of them tied at m
            ways = np.zeros((n - m + 1, K))
            ways[0, 0] = 1.0
            for j in range(K):
                if j == k:
                    continue
                new = np.zeros_like(ways)
                for c in range(min(m, n - m) + 1):
                    weight, tied = p[j] ** c, int(c == m)
                    for d in range(n - m - c + 1):
                        rows = ways[d, : K - tied] * weight * comb(d + c, c)
                        new[d + c, tied:] += rows
                ways = new
            shares = (ways[n - m] / np.arange(1, K + 1)).sum()
            out[k] += comb(n, m) * p[k] ** m * shares
    return out


def entropy_descent(tree: Tree, logits: Array, steps: int, rate: float) -> Array:
    """EM-FT: gradient steps on the entropies at visited prefixes, occupancy taken as given. New logits.

    d H / d z_a = -p_a (log p_a + H) at each prefix, weighted by how often the prefix is visited.
    """
    z = np.array(logits, dtype=float)
    for _ in range(steps):
        log_p = token_log_probs(z, 1.0)
        p = np.exp(log_p)
        visits = tb.occupancy(tree, p)[:, None]
        z += rate * visits * p * (log_p + entr(p).sum(1, keepdims=True))
    return z


def describe(tree: Tree, logits: Array, q: Array) -> dict[str, float]:
    """entropy of q over answers (nats), likelihood = mean log p of its answers under the base, mode = the
    probability it gives to the base's likeliest answer, gap = how far its mean log p lies below that of the
    power distribution of equal entropy (nats)."""
    log_p = tb.sequence_log_probs(tree, token_log_probs(logits, 1.0))
    entropy = float(entr(q).sum())
    likelihood = float(q @ log_p)
    low, high = 1e-3, 1e3
    for _ in range(80):  # the entropy of the power distribution falls with alpha
        middle = np.sqrt(low * high)
        above = entr(power(tree, logits, middle)).sum() > entropy
        low, high = (middle, high) if above else (low, middle)
    gap = float(power(tree, logits, low) @ log_p) - likelihood
    return {"entropy": entropy, "likelihood": likelihood, "mode": float(q[log_p.argmax()]), "gap": gap}


def family_rows(tree: Tree, logits: Array) -> list[dict]:
    """A row per method and strength: method, strength and what `describe` says."""
    found: list[tuple[str, float, Array]] = []
    for alpha in np.round(np.geomspace(1, 32, 16), 4):
        found.append(("SePT (tempering)", alpha, tempered(tree, logits, alpha)))
        found.append(("power", alpha, power(tree, logits, alpha)))
    found += [("best of n", n, best_of(tree, logits, n)) for n in (1, 2, 4, 8, 16, 32, 64)]
    z, done = logits, 0
    for step in (0, *(2**i for i in range(13))):
        z, done = entropy_descent(tree, z, step - done, 0.5), step
        found.append(("EM-FT", step, tempered(tree, z, 1.0)))
    return [{"method": m, "strength": s, **describe(tree, logits, q)} for m, s, q in found]


def astray(tree: Tree, seeds: int, spread: float) -> float:
    """Share of random policies whose greedy answer, where iterated tempering ends, is not the likeliest."""
    policies = [tb.random_logits(tree, seed, spread) for seed in range(seeds)]
    ends = [[tempered(tree, z, alpha).argmax() for alpha in (1.0, 1e4)] for z in policies]
    return float(np.mean([likeliest != greedy for likeliest, greedy in ends]))
