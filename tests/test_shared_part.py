"""The shared-part model: closed forms against minimisation, gradient flow and integrals done another way."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq, minimize
from scipy.special import expit, ndtr, softmax
from scipy.stats import norm

from sept import shared_part as sp

RNG = np.random.default_rng(0)
S = RNG.normal(0, 1, 4)
OWN = RNG.normal(0, 1.2, (6, 4))
WEIGHTS = RNG.dirichlet(np.full(6, 3.0))
V = (0.1, 0.5, 4.0, 16.0)


def level(z):
    """Without the constant that a softmax does not see."""
    return z - z.mean(-1, keepdims=True)


@pytest.mark.parametrize(("tau_s", "tau_t"), [(0.6, 1.0), (0.3, 0.8), (1.4, 1.0)])
def test_a_fresh_round_by_three_routes(tau_s, tau_t):
    """Newton on the moments, BFGS on the enumerated loss, exact gradient flow: one and the same shared part."""
    got = sp.fresh_round(S, OWN, WEIGHTS, tau_s, tau_t)
    loss = lambda new: sp.fresh_loss(new, S, OWN, WEIGHTS, tau_s, tau_t)  # noqa: E731
    minimum = minimize(loss, S, jac=True, method="BFGS", options={"gtol": 1e-11}).x
    path, own = sp.flow(S, OWN, WEIGHTS, tau_s, tau_t, 0.0, np.array([0.0, 1000.0]))
    assert level(got) == pytest.approx(level(minimum), abs=1e-8)
    assert level(got) == pytest.approx(level(path[-1]), abs=1e-8)
    assert (own[-1] == OWN).all() and got.sum() == pytest.approx(S.sum())
    old, new = softmax((S + OWN) / tau_s, axis=1), softmax((got + OWN) / tau_t, axis=1)
    assert WEIGHTS @ new == pytest.approx(WEIGHTS @ old, abs=1e-13)
    assert np.abs(new - old).max() > 0.01, "the mean answer is kept, single questions are not"


def test_gradient_of_the_loss():
    at, step = S + 0.3, 1e-6
    gradient = sp.fresh_loss(at, S, OWN, WEIGHTS, 0.6, 0.9)[1]
    for k, e in enumerate(step * np.eye(4)):
        ends = [sp.fresh_loss(at + sign * e, S, OWN, WEIGHTS, 0.6, 0.9)[0] for sign in (1, -1)]
        assert gradient[k] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("own_rate", [0.5, 8.0])
def test_a_fixed_round_by_three_routes(own_rate):
    """Closed form, gradient flow, and the nearest interpolant by least squares."""
    s, own = sp.fixed_round(S, OWN, 0.6, 1.0, own_rate)
    assert level(s + own) == pytest.approx(level(S + OWN) / 0.6, abs=1e-12), (
        "Theorem 1 where it was trained"
    )
    even = np.full(6, 1 / 6)
    path, paths = sp.flow(S, OWN, even, 0.6, 1.0, own_rate, np.array([0.0, 1e5]))
    assert level(s) == pytest.approx(level(path[-1]), abs=1e-8)
    assert level(own) == pytest.approx(level(paths[-1]), abs=1e-8)
    system = np.hstack([np.ones((6, 1)), np.sqrt(own_rate) * np.eye(6)])
    nearest = np.linalg.lstsq(system, (1 / 0.6 - 1) * (S + OWN), rcond=None)[0]
    assert s - S == pytest.approx(nearest[0], abs=1e-12)


def test_many_rounds_on_a_fixed_set_end_in_its_vote():
    """Shared margins go where s + mean u points, so a new question is answered as N old ones vote."""
    m, v, n, sets = 0.3, 1.0, 9, 4000
    margins = np.random.default_rng(1).normal(0, np.sqrt(v), (sets, n))
    right = 0
    for own in margins:
        s, u = np.array([m, 0.0]), np.stack([own, np.zeros(n)], 1)
        for _ in range(12):
            s, u = sp.fixed_round(s, u, 0.6, 1.0, 2.0)
        right += s[0] > s[1]
    # rate 2 leaves some of the old shared part in place, which 12 rounds have outgrown
    assert right / sets == pytest.approx(ndtr(m * np.sqrt(n / v)), abs=0.02)


@pytest.mark.parametrize("v", V)
@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_quadrature(v, tau):
    for m in (-1.0, 0.2, 5.0):
        f = lambda x, m=m: norm.pdf(x) * expit((m + np.sqrt(v) * x) / tau)  # noqa: E731
        exact = quad(f, -14, 14, epsabs=1e-13, epsrel=1e-13, limit=500, points=[-m / np.sqrt(v)])[0]
        assert float(sp.right(m, v, tau)) == pytest.approx(exact, abs=1e-11)
    assert float(sp.right(0.7, v, 0)) == pytest.approx(ndtr(0.7 / np.sqrt(v)))


@pytest.mark.parametrize("v", V)
@pytest.mark.parametrize("tau_s", [0.3, 0.6, 1.4])
def test_a_fresh_margin_by_three_routes(v, tau_s):
    m = np.array([0.1, 1.0, 3.0])
    got = sp.fresh_margin(m, v, tau_s)
    u, w = sp.normal_nodes(v)
    for a, b in zip(m, got, strict=True):
        root = brentq(lambda x, a=a: float(sp.right(x, v, 1.0) - sp.right(a, v, tau_s)), 0, 20, xtol=1e-12)
        assert b == pytest.approx(root, abs=1e-8)
        shared = sp.fresh_round(np.array([a, 0.0]), np.stack([u, 0 * u], 1), w, tau_s, 1.0)
        assert b == pytest.approx(shared[0] - shared[1], abs=1e-8)
    assert sp.fresh_margin(-m, v, tau_s) == pytest.approx(-got), "wrong preferences grow just as fast"
    assert ((got > m) == (tau_s < 1)).all() and float(sp.fresh_margin(0.0, v, tau_s)) == 0


def test_growth_lies_between_all_own_and_all_shared():
    assert sp.growth(0, 0.6) == pytest.approx(1 / 0.6) and sp.growth(1e6, 0.6) == pytest.approx(1, abs=1e-5)
    for v in V:
        m = np.array([0.05, 0.5, 1.0])
        assert sp.fresh_margin(m, v, 0.6) / m == pytest.approx(sp.growth(v, 0.6), rel=0.02)
    far = sp.fresh_margin(np.array([200.0]), 0.5, 0.6)
    assert far / 200 == pytest.approx(1 / 0.6, rel=0.01), "where all own parts agree the theorem is back"


def test_two_camps_break_it():
    """Own parts of +-3 and a shared margin of 1: one camp is right anyhow, the other wins the tug of war."""
    camps, even = np.array([[3.0, 0.0], [-3.0, 0.0]]), np.array([0.5, 0.5])
    new = sp.fresh_round(np.array([1.0, 0.0]), camps, even, 0.6, 1.0)
    assert 0 < new[0] - new[1] < 0.9
    new = sp.fresh_round(np.array([5.0, 0.0]), camps, even, 0.6, 1.0)
    assert new[0] - new[1] > 5, "beyond the camps it grows again"


@pytest.mark.parametrize("v", V)
def test_rounds_until_sept_passes_greedy(v):
    """In the probit model exactly; in the exact one to six percent."""
    m, rounds = 0.4, sp.crossing(v, 0.6)
    after = ndtr(np.sqrt(sp.PROBIT) * m * sp.growth(v, 0.6) ** rounds / np.sqrt(1 + sp.PROBIT * v))
    assert after == pytest.approx(ndtr(m / np.sqrt(v)), abs=1e-12)
    scores, margin = [float(sp.right(m, v, 1.0))], np.array(m)
    for _ in range(6):
        cold = float(sp.right(margin, v, 0.6))
        margin = sp.fresh_margin(margin, v, 0.6)
        scores.append(float(sp.right(margin, v, 1.0)))
        assert scores[-1] == pytest.approx(cold, abs=1e-12), "a round's score is the last one's at tau_s"
    found = np.interp(float(sp.right(m, v, 0)), scores, range(7))
    assert found == pytest.approx(rounds, rel=0.06) and found > 1, "one round never passes greedy"


def test_pass_at_k_turns():
    for mu, s2, v in ((0.9, 0.7, 0.5), (1.5, 1.5, 0.5), (1.0, 1.0, 3.0)):
        m, w = sp.normal_nodes(s2, mu)
        for k in (1, 8, 64):
            rates = [w @ sp.pass_at(m * g, v, 1.0, k) for g in (1.001, 0.999)]
            slope = (rates[0] - rates[1]) / 0.002
            assert sp.slope_at_k(mu, s2, v, k) == pytest.approx(slope, abs=1e-6)
        turn = brentq(lambda log_k: sp.slope_at_k(mu, s2, v, np.exp(log_k)), 0, 8)  # noqa: B023
        assert np.log(sp.turning_k(mu, s2, v)) == pytest.approx(turn, abs=0.55)


def test_entropy_minimisation_is_sept_s_first_order():
    m, h = np.linspace(-3, 3, 7), 1e-5
    em = sp.pull(m, 0.8)
    assert em == pytest.approx(-(sp.entropy(m + h, 0.8) - sp.entropy(m - h, 0.8)) / (2 * h), abs=1e-8)
    assert sp.pull(m, 0.8, 1 / (1 + h)) / h == pytest.approx(em, abs=1e-4)
    cold = np.array([0.5, 6.0])
    ratio = sp.pull(cold, 0.8) / sp.pull(cold, 0.8, 0.6)
    assert ratio[1] > 2 * ratio[0], "EM-FT pushes on where SePT has its target already"


def test_coupled_rounds_rest_and_drift_by_noise_alone():
    assert sp.fresh_round(S, OWN, WEIGHTS, 0.7, 0.7) == pytest.approx(S, abs=1e-12)
    m, rate = np.array([-1.0, 0.3, 2.0]), 1e-3
    u, w = sp.normal_nodes(0.8)
    p = expit(m[:, None] + u)  # one draw: every outcome of one step, by its probability
    up, down = (
        np.stack([sp.right(x, 0.8, 1.0) for x in (m[:, None] + rate * (a - p)).T], 1) for a in (1, 0)
    )
    mean = (p * up + (1 - p) * down) @ w
    assert (mean - sp.right(m, 0.8, 1.0)) / rate**2 == pytest.approx(sp.drift(m, 0.8), abs=1e-4)
    assert (np.sign(sp.drift(m, 0.8)) == -np.sign(m)).all()


def test_rounds_by_interpolation():
    m, got = np.linspace(-6, 8, 301), sp.rounds_of(np.linspace(-6, 8, 301), 0.6, 0.6, 3)
    for before, after in zip(got, got[1:], strict=False):
        assert after == pytest.approx(sp.fresh_margin(before, 0.6, 0.6), abs=1e-6)
    assert got[0] == pytest.approx(m) and len(got) == 4


def test_splits_of_the_variance_are_the_same_at_every_temperature():
    one, two = (sp.answers(1.0, s2, 2.0 - s2, 3, 20_000, 0) for s2 in (0.4, 1.6))
    assert one[0] + one[1] == pytest.approx(two[0] + two[1])
    for (m, u), s2 in ((one, 0.4), (two, 1.6)):
        assert (m.var(), u.var()) == pytest.approx((s2, 2.0 - s2), rel=0.02)
        assert (
            np.corrcoef(m.ravel(), u.ravel())[0, 1] == pytest.approx(0, abs=0.02) and abs(u.mean()) < 0.02
        )
    p = expit((one[0] + one[1]) / 0.7).prod(1)
    assert sp.sampled_pass(*one, 0.7, 8) == pytest.approx((1 - (1 - p) ** 8).mean(), abs=1e-12)
    assert sp.sampled_pass(*one, 0, 8) == pytest.approx(((one[0] + one[1]) > 0).all(1).mean())


def test_coupled_walks_lose_what_the_drift_says():
    at, score = sp.coupled_walks(1.0, 0.6, 0.1, 100, 20_000, 0)
    lost = 0.1**2 * 100 * float(sp.drift(1.0, 0.6))
    assert at[-1] == 100 and score[-1] - score[0] == pytest.approx(lost, rel=0.35) and lost < 0


def test_reading_a_base_recovers_what_made_it():
    taus = np.arange(0, 1.7, 0.1)
    scores = np.array([float(sp.right(1.2, 1.5, t)) ** 3 for t in taus])
    got = sp.read_base(taus, scores, shared=0.6)
    assert (got["mu"], got["s2"], got["v"], got["decisions"]) == pytest.approx((1.2, 0.9, 0.6, 3), rel=1e-4)
    assert got["limit"] == pytest.approx(ndtr(1.2 / np.sqrt(0.9)) ** 3, rel=1e-4) and got["misfit"] < 1e-6
    assert sp.read_base(taus, scores, shared=1.0)["limit"] == pytest.approx(scores[0], rel=1e-4)
    m, u = sp.answers(1.2, 0.9, 0.6, 3, 40_000, 0)
    assert expit(m + u).prod(1).mean() == pytest.approx(scores[10], abs=0.005)
