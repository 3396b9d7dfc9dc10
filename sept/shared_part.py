"""A policy small enough to solve: logits that are one part shared by all questions, one part a question's own.

At question x the logits over K answers are z_x = s + u_x. The shared part s [K] is what the model holds of a
type of question; the own parts u_x [X, K] are what it memorised, or failed to, about single questions. Several
types are several such models. With K = 2 only margins of the right answer count: m of the shared part,
u ~ N(0, v) of the own one, p = sigmoid(m + u).

What a round of SePT makes of the two parts depends on which of them can move: on a fixed set of questions both
(`fixed_round`), on fresh questions at every step the shared one alone (`fresh_round`, `fresh_margin`). All is
float64 and exact up to quadrature; nothing is sampled but `answers`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicSpline
from scipy.optimize import least_squares
from scipy.special import expit, log_expit, log_softmax, logsumexp, ndtr, softmax

Array = NDArray[np.float64]
PROBIT = np.pi / 8
"""sigmoid(x) is about Phi(sqrt(PROBIT) x), with the same slope at 0."""


def normal_nodes(variance: float, mean: float = 0.0, n: int = 801) -> tuple[Array, Array]:
    """Nodes and weights [n] of N(mean, variance): equal steps over 13 standard deviations to either side.

    For functions that are smooth on the scale of a step its error falls exponentially, unlike that of
    Gauss-Hermite nodes, which a sigmoid's poles disturb.
    """
    x = np.linspace(-13, 13, n)
    weights = np.exp(-(x**2) / 2)
    return mean + np.sqrt(variance) * x, weights / weights.sum()


# ------------------------------------------------------------------------------- K answers, any own parts


def fresh_loss(
    new: Array, s: Array, own: Array, weights: Array, tau_s: float, tau_t: float
) -> tuple[float, Array]:
    """SePT's expected loss of the shared part `new` when sampled from s, and its gradient [K].

    Mean over questions (own [X, K], weights [X]) of the cross-entropy of softmax((new + u)/tau_t) under
    softmax((s + u)/tau_s). Convex in `new`.
    """
    q, log_p = softmax((s + own) / tau_s, axis=1), log_softmax((new + own) / tau_t, axis=1)
    return float(-weights @ (q * log_p).sum(1)), weights @ (np.exp(log_p) - q) / tau_t


def fresh_round(s: Array, own: Array, weights: Array, tau_s: float, tau_t: float) -> Array:
    """The shared part after a converged round on fresh questions, by Newton's method; its sum is kept.

    It solves E softmax((s' + u)/tau_t) = E softmax((s + u)/tau_s): the mean answer is kept, not the margins.
    """
    new = s.copy()
    for _ in range(200):
        loss, gradient = fresh_loss(new, s, own, weights, tau_s, tau_t)
        p = softmax((new + own) / tau_t, axis=1)
        curvature = (np.diag(weights @ p) - (p * weights[:, None]).T @ p) / tau_t**2
        step = -np.linalg.solve(curvature + 1 / len(s), gradient)  # the constant direction made regular
        size = 1.0
        while (
            size > 1e-6 and fresh_loss(new + size * step, s, own, weights, tau_s, tau_t)[0] > loss + 1e-15
        ):
            size /= 2
        new = new + size * step
        if np.abs(step).max() < 1e-13 * (1 + np.abs(new).max()):
            break
    return new


def fixed_round(s: Array, own: Array, tau_s: float, tau_t: float, own_rate: float) -> tuple[Array, Array]:
    """Shared and own parts after a converged round on these N questions, in closed form.

    Of one gradient, s takes a step of rate 1 and each u_x one of rate own_rate. Then own_rate * s minus the sum
    of u_x never changes, and every s + u_x ends times c = tau_t/tau_s (Theorem 1), so
    s' = s + (c - 1) N / (N + own_rate) (s + mean u).
    """
    grown = (tau_t / tau_s - 1) * (s + own)
    shift = grown.sum(0) / (len(own) + own_rate)
    return s + shift, own + grown - shift


def flow(
    s: Array, own: Array, weights: Array, tau_s: float, tau_t: float, own_rate: float, times: Array
) -> tuple[Array, Array]:
    """Exact gradient flow of one round, from its start: s [T, K] and own parts [T, X, K] at `times`.

    own_rate 0 is fresh questions with these own parts: the shared part alone moves.
    """
    q, (X, K) = softmax((s + own) / tau_s, axis=1), own.shape

    def velocity(_: float, state: Array) -> Array:
        parts = state.reshape(X + 1, K)
        pull = weights[:, None] * (q - softmax((parts[0] + parts[1:]) / tau_t, axis=1)) / tau_t
        return np.concatenate([pull.sum(0), (own_rate * pull).ravel()])

    start = np.concatenate([s, own.ravel()])
    span = (0.0, float(times[-1]))
    found = solve_ivp(velocity, span, start, method="LSODA", t_eval=times, rtol=1e-11, atol=1e-12)
    parts = found.y.T.reshape(len(times), X + 1, K)
    return parts[:, 0], parts[:, 1:]


# ------------------------------------------------------------------- two answers, own margins u ~ N(0, v)


def right(m: Array | float, v: float, tau: float) -> Array:
    """Chance of the right answer to an unseen question at temperature tau, E sigmoid((m + u)/tau), like m."""
    m = np.asarray(m, dtype=float)
    if tau == 0:
        return ndtr(m / np.sqrt(v)) if v else np.heaviside(m, 0.5)
    u, w = normal_nodes(v)
    return expit((m[..., None] + u) / tau) @ w


def fresh_margin(m: Array | float, v: float, tau_s: float, tau_t: float = 1.0) -> Array:
    """Shared margins after a converged round on fresh questions: right(m', v, tau_t) = right(m, v, tau_s).

    Newton's method on the logarithm of the chance of the less likely answer. It is concave, so the steps come
    from one side, and nothing is lost where that chance is tiny.
    """
    u, w = normal_nodes(v)
    old = np.abs(np.asarray(m, dtype=float))[..., None]
    wanted = logsumexp(log_expit(-(old + u) / tau_s), axis=-1, b=w)
    new = old * max(1.0, tau_t / tau_s)
    for _ in range(100):
        log_wrong = log_expit(-(new + u) / tau_t)
        total = logsumexp(log_wrong, axis=-1, b=w)
        slope = np.exp(logsumexp(log_wrong + log_expit((new + u) / tau_t), axis=-1, b=w) - total) / tau_t
        step = ((total - wanted) / slope)[..., None]
        new = new + step
        if np.abs(step).max(initial=0.0) < 1e-14 * (1 + new.max(initial=0.0)):
            break
    return np.sign(m) * new[..., 0]


def growth(v: float, tau_s: float, tau_t: float = 1.0) -> float:
    """Growth of a shared margin per round on fresh questions, in the probit approximation."""
    return float(np.sqrt((tau_t**2 + PROBIT * v) / (tau_s**2 + PROBIT * v)))


def crossing(v: float, tau_s: float) -> float:
    """Rounds until SePT at T = 1 is as often right as its greedy base (probit; the same for every m)."""
    return float(np.log1p(1 / (PROBIT * v)) / (2 * np.log(growth(v, tau_s)))) if v else np.inf


def pass_at(m: Array | float, v: float, tau: float, k: int) -> Array:
    """Chance that one of k answers to an unseen question is right, E[1 - (1 - p)^k], like m. tau above 0."""
    u, w = normal_nodes(v)
    return -np.expm1(k * log_expit(-(np.asarray(m, dtype=float)[..., None] + u) / tau)) @ w


def pull(m: Array | float, v: float, tau_s: float | None = None) -> Array:
    """Speed of the shared margin in gradient flow on fresh questions, like m: SePT's E[q - p] at tau_s, sampler
    always fresh; without tau_s EM-FT's, -dE[H(p)]/dm = E[(m + u) p (1 - p)]."""
    u, w = normal_nodes(v)
    M = np.asarray(m, dtype=float)[..., None] + u
    p = expit(M)
    return (M * p * (1 - p) if tau_s is None else expit(M / tau_s) - p) @ w


def entropy(m: Array | float, v: float, tau: float = 1.0) -> Array:
    """Mean entropy of an answer at temperature tau in nats, like m."""
    u, w = normal_nodes(v)
    M = (np.asarray(m, dtype=float)[..., None] + u) / tau
    return -(expit(M) * log_expit(M) + expit(-M) * log_expit(-M)) @ w


# -------------------------------------------------- many types, m ~ N(mu, s2): how much is known, how evenly


def drift(m: Array | float, v: float) -> Array:
    """What coupled training does to `right` per step, by sampling noise alone, times draws / rate^2, like m.

    A step moves m by rate (a - p), averaged over the draws a: no drift, variance rate^2 E[p (1 - p)] / draws.
    `right` is concave above 0, so right types lose half of that times its second derivative, wrong types gain.
    """
    u, w = normal_nodes(v)
    p = expit(np.asarray(m, dtype=float)[..., None] + u)
    return 0.5 * ((p * (1 - p)) @ w) * ((p * (1 - p) * (1 - 2 * p)) @ w)


def turning_k(mu: float, s2: float, v: float) -> float:
    """The k above which a small round lowers pass@k of fresh questions, about exp(mu (1 + v) / s2).

    More draws look at questions that are answered ever more rarely: p (1 - p)^k is nearly a Gaussian of the
    margin with mean -log k and variance 1. Given that margin, the shared part is below 0 from here on.
    """
    return float(np.exp(np.minimum(mu * (1 + v) / s2, 700.0)))


def slope_at_k(mu: float, s2: float, v: float, k: int) -> float:
    """d pass@k / d log g at g = 1 over all types, E[m k p (1 - p)^k], exact. `turning_k` says its sign."""
    total = s2 + v
    M, w = normal_nodes(total, mu, 2001)
    kernel = k * np.exp(log_expit(M) + k * log_expit(-M))
    return float(w @ (kernel * (mu + s2 / total * (M - mu))))


def read_base(temperatures: Array, scores: Array, shared: float, tau_s: float = 0.6) -> dict[str, float]:
    """A base through the eyes of this model, from its pass@1 (shares) at the temperatures up to 1.

    An answer is right if D independent decisions are. mu, the variance s2 + v and D are fitted to the curve,
    which cannot tell s2 from v; `shared`, the share of s2, comes from how much of a round's growth carries over
    to other questions. Returns mu, s2, v, decisions, misfit (the largest), limit = Phi(mu/s)^D, the score after
    infinitely many rounds, growth and crossing (a round's factor on shared margins; rounds to pass greedy).
    """
    use = np.asarray(temperatures) <= 1
    taus, wanted = np.asarray(temperatures)[use], np.asarray(scores)[use]

    def curve(log_fit: Array) -> Array:
        mu, total, decisions = np.exp(log_fit)
        return np.array([float(right(mu, total, t)) ** decisions for t in taus])

    fit = least_squares(lambda f: curve(f) - wanted, np.log([1.5, 1.5, 4.0]), bounds=(-7, 7))
    mu, total, decisions = (float(x) for x in np.exp(fit.x))
    s2, v = shared * total, (1 - shared) * total
    limit = float(ndtr(mu / np.sqrt(s2)) ** decisions) if s2 else 1.0
    found = {"mu": mu, "s2": s2, "v": v, "decisions": decisions, "misfit": float(np.abs(fit.fun).max())}
    return found | {"limit": limit, "growth": growth(v, tau_s), "crossing": crossing(v, tau_s)}


def answers(
    mu: float, s2: float, v: float, decisions: int, questions: int, seed: int
) -> tuple[Array, Array]:
    """Shared and own margins [questions, decisions] of answers that take several decisions, drawn. Their sum is
    the same for every split of s2 + v, so splits can be compared without noise."""
    x = np.random.default_rng(seed).standard_normal((2, questions, decisions))
    share = s2 / (s2 + v)
    off = np.sqrt(s2 + v) * x[0]
    shared = mu + share * off + np.sqrt(share * v) * x[1]
    return shared, mu + off - shared


def rounds_of(m: Array, v: float, tau_s: float, rounds: int) -> list[Array]:
    """Shared margins before and after each of `rounds` converged rounds on fresh questions, interpolated."""
    found = [np.asarray(m, dtype=float)]
    for _ in range(rounds):
        grid = np.linspace(0, np.abs(found[-1]).max(), 121)
        grown = CubicSpline(grid, fresh_margin(grid, v, tau_s))
        found.append(np.sign(found[-1]) * grown(np.abs(found[-1])))
    return found


def sampled_pass(m: Array, u: Array, tau: float, k: int) -> float:
    """pass@k at temperature tau over drawn answers whose decisions (`answers`) must all be right; a share."""
    log_p = log_expit((m + u) / tau).sum(1) if tau else np.where(((m + u) > 0).all(1), 0.0, -np.inf)
    with np.errstate(divide="ignore"):
        return float(-np.expm1(k * np.log1p(-np.exp(log_p))).mean())


def coupled_walks(
    m: float, v: float, rate: float, steps: int, walks: int, seed: int
) -> tuple[Array, Array]:
    """(steps done, mean of `right`) at 11 times of coupled training with one draw a step: noise alone."""
    rng, margins = np.random.default_rng(seed), np.full(walks, float(m))
    at, found = np.linspace(0, steps, 11).round().astype(int), []
    for step in range(steps + 1):
        if step in at:
            found.append(right(margins, v, 1.0).mean())
        p = expit(margins + np.sqrt(v) * rng.standard_normal(walks))
        margins = margins + rate * ((rng.random(walks) < p) - p)
    return at.astype(float), np.array(found)
