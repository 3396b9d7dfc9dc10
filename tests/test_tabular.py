"""The exact theory, statement by statement; each identity has a control that breaks its premise."""

import itertools
import json

import numpy as np
import pytest
from scipy.special import logsumexp

from sept import statements as st
from sept import tabular as tb

TAUS_S = (0.1, 0.3, 0.6, 0.9, 1.0, 1.4, 2.0)
TAUS_T = (0.7, 1.0, 1.3)


@pytest.fixture(scope="module")
def tree():
    return tb.build_tree(6, 3)


POLICIES = {"mild": (0, 1.0), "plain": (1, 1.5), "steep": (2, 2.0)}  # seed, spread of the logits


@pytest.fixture(scope="module", params=POLICIES.values(), ids=POLICIES)
def logits(request, tree):
    seed, spread = request.param
    return tb.random_logits(tree, seed, spread)


# ---- enumeration ------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tokens, horizon", [(2, 1), (2, 4), (3, 2), (5, 3), (8, 3)])
def test_tree_counts_every_answer_once(n_tokens, horizon):
    tree, branch = tb.build_tree(n_tokens, horizon), n_tokens - 1
    prefixes = sum(branch**t for t in range(horizon))
    assert tree.parent.size == prefixes
    assert tree.length.size == prefixes + branch**horizon  # one ending each, plus the cut ones
    answers = {tuple(row) for row in tree.seq_token}
    assert len(answers) == tree.length.size
    for tokens, length in zip(tree.seq_token, tree.length, strict=True):
        assert (tokens[:length] >= 0).all() and (tokens[length:] == -1).all()
        assert (tokens[: length - 1] != branch).all()  # nothing follows the end of sequence
        assert tokens[length - 1] == branch or length == horizon


def test_tree_agrees_with_recursion():
    tree = tb.build_tree(4, 3)
    probs = tb.token_probs(tb.random_logits(tree, 3), 0.8)
    paths = [()]
    for parent, token in zip(tree.parent[1:], tree.token[1:], strict=True):
        paths.append(paths[parent] + (token,))
    ids = {path: prefix for prefix, path in enumerate(paths)}

    def expand(path, p):
        for token in range(4):
            here = p * probs[ids[path], token]
            if token == 3 or len(path) == 2:
                yield path + (token,), here
            else:
                yield from expand(path + (token,), here)

    wanted = dict(expand((), 1.0))
    got = tb.sequence_probs(tree, probs)
    for tokens, length, p in zip(tree.seq_token, tree.length, got, strict=True):
        assert p == pytest.approx(wanted[tuple(tokens[:length])], rel=1e-12)


@pytest.mark.parametrize("tau", [0.1, 0.6, 1.0, 2.0])
def test_probabilities_sum_to_one_and_occupancy_counts_visits(tree, logits, tau):
    probs = tb.token_probs(logits, tau)
    mass = tb.sequence_probs(tree, probs)
    assert mass.sum() == pytest.approx(1, abs=1e-12)
    visits = np.zeros(tree.parent.size)
    on = tree.seq_prefix >= 0
    np.add.at(visits, tree.seq_prefix[on], np.broadcast_to(mass[:, None], on.shape)[on])
    np.testing.assert_allclose(tb.occupancy(tree, probs), visits, rtol=1e-11)
    weights = tb.token_weights(tree, probs)
    np.testing.assert_allclose(weights, visits[:, None] * probs, rtol=1e-11)


# ---- Proposition 1 ----------------------------------------------------------------------------


@pytest.mark.parametrize("tau_s", TAUS_S)
@pytest.mark.parametrize("tau_t", TAUS_T)
def test_proposition_1(tree, logits, tau_s, tau_t):
    q = tb.token_probs(logits, tau_s)
    log_new = tb.token_log_probs(tb.random_logits(tree, 77), tau_t)
    left = tb.objective_over_sequences(tree, q, log_new)
    right = tb.objective_over_prefixes(tb.occupancy(tree, q), q, log_new)
    assert left == pytest.approx(right, abs=1e-10)


@pytest.mark.parametrize("tau_s", [0.3, 0.6, 1.4])
def test_proposition_1_needs_the_occupancy_at_tau_s(tree, logits, tau_s):
    q, log_new = tb.token_probs(logits, tau_s), tb.token_log_probs(tb.random_logits(tree, 77), 1.0)
    left = tb.objective_over_sequences(tree, q, log_new)
    wrong = tb.objective_over_prefixes(tb.occupancy(tree, tb.token_probs(logits, 1.0)), q, log_new)
    assert abs(left - wrong) > 0.01


# ---- Equation 2 -------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.3, 0.6, 1.0, 1.7])
def test_equation_2_coupling_gives_no_signal(tree, logits, tau):
    gradient = tb.expected_gradient(tree, tb.token_probs(logits, tau), logits, tau)
    assert np.abs(gradient).max() < 1e-12


@pytest.mark.parametrize("tau_s, tau_t", [(0.6, 1.0), (0.1, 1.3), (1.4, 1.0), (2.0, 0.7)])
def test_equation_2_decoupled(tree, logits, tau_s, tau_t):
    gradient = tb.expected_gradient(tree, tb.token_probs(logits, tau_s), logits, tau_t)
    np.testing.assert_allclose(gradient, tb.equation_2(tree, logits, tau_s, tau_t), atol=1e-12)
    assert np.abs(gradient).max() > 0.01  # the test above is not about a zero gradient


def test_gradient_is_the_derivative_of_equation_1(tree, logits):
    q, tau_t, h = tb.token_probs(logits, 0.6), 1.3, 1e-5
    gradient = tb.expected_gradient(tree, q, logits, tau_t)
    for prefix, token in [(0, 0), (0, 5), (3, 2), (30, 4)]:
        values = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[prefix, token] += sign * h
            log_new = tb.token_log_probs(moved, tau_t)
            values.append(tb.objective_over_sequences(tree, q, log_new))
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(gradient[prefix, token], abs=1e-8)


# ---- Theorem 1 --------------------------------------------------------------------------------


@pytest.mark.parametrize("tau_s", TAUS_S)
@pytest.mark.parametrize("tau_t", TAUS_T)
def test_theorem_1(tree, logits, tau_s, tau_t):
    closed = tb.amplified_logits(logits, tau_s, tau_t)
    np.testing.assert_allclose(
        tb.token_log_probs(closed, tau_t), tb.token_log_probs(logits, tau_s), atol=1e-10
    )
    fit = tb.fit_weights(tb.token_weights(tree, tb.token_probs(logits, tau_s)), logits, tau_t)
    assert fit.converged
    assert tb.margin_residual(fit.logits, logits, tau_t / tau_s) < 1e-9
    if tau_s != tau_t:
        assert tb.margin_residual(fit.logits, logits, tau_s / tau_t) > 0.1  # not the inverse


def test_theorem_1_on_a_larger_tree():
    tree = tb.build_tree(8, 4)
    logits = tb.random_logits(tree, 5, 1.5)
    for tau_s in (0.1, 0.6, 1.4):
        new = tb.sept_round(tree, logits, tau_s, 1.0)
        assert tb.margin_residual(new, logits, 1.0 / tau_s) < 1e-9


@pytest.mark.parametrize("start_spread", [0.0, 3.0])
def test_optimum_depends_on_the_weights_not_on_the_start(tree, logits, start_spread):
    start = tb.random_logits(tree, 9, start_spread)
    weights = tb.token_weights(tree, tb.token_probs(logits, 0.6))
    for scale in (1.0, 1e-6):
        fit = tb.fit_weights(scale * weights, start, 1.0)
        assert tb.margin_residual(fit.logits, logits, 1 / 0.6) < 1e-9


def test_every_step_is_the_scaled_newton_step_and_descends(tree, logits):
    weights = tb.token_weights(tree, tb.token_probs(logits, 0.3))
    target = weights / weights.sum(1, keepdims=True)
    total = tb.fit_weights(weights, logits, 1.0).step_sizes.size
    points = [tb.fit_weights(weights, logits, 1.0, max_steps=m).logits for m in range(1, total + 1)]
    old = tb.token_log_probs(logits, 1.0)
    for new in (tb.token_log_probs(z, 1.0) for z in points):
        p = np.exp(old)
        moved = np.minimum(target / p - 1, 1.0)
        change = new - old - (new - old)[:, :1] - (moved - moved[:, :1])
        assert np.abs(change).max() < 1e-9
        fall = np.log1p((p * np.expm1(moved)).sum(1)) - (target * moved).sum(1)
        assert (fall <= -0.28 * np.abs((p - target) * moved).sum(1) + 1e-15).all()
        free = np.flatnonzero((target / p - 1 <= 1).all(1))
        for row in free[:3]:
            hessian = np.diag(p[row]) - np.outer(p[row], p[row])
            np.testing.assert_allclose(hessian @ moved[row], target[row] - p[row], atol=1e-14)
        old = new


def test_a_small_gradient_is_no_proof_of_convergence(tree):
    logits = tb.random_logits(tree, 1, 2.0)
    weights = tb.token_weights(tree, tb.token_probs(logits, 0.1))
    fit = tb.fit_weights(weights, logits, 1.0)
    stop = int(np.flatnonzero(fit.gradient_norms < 1e-15)[0]) + 1
    early = tb.fit_weights(weights, logits, 1.0, max_steps=stop)
    assert not early.converged
    assert tb.margin_residual(early.logits, logits, 10.0) > 1
    assert tb.margin_residual(fit.logits, logits, 10.0) < 1e-9


def test_leaving_end_of_sequence_out_of_the_loss_bends_the_theorem(tree, logits):
    q = tb.token_probs(logits, 0.6)
    weights = tb.token_weights(tree, q)
    weights[:, -1] = 0.0
    fit = tb.fit_weights(weights, logits, 1.0, max_steps=300)
    assert not fit.converged
    assert tb.margin_residual(fit.logits, logits, 1 / 0.6) > 1
    assert tb.margin_residual(fit.logits[:, :-1], logits[:, :-1], 1 / 0.6) < 1e-9


# ---- one step, many rounds --------------------------------------------------------------------


@pytest.mark.parametrize("tau_s", [0.3, 0.6, 1.4])
def test_one_step_changes_margins_as_equation_2_says_and_not_uniformly(tree, logits, tau_s):
    gradient = tb.expected_gradient(tree, tb.token_probs(logits, tau_s), logits, 1.0)
    old, rate = tb.margins(logits), 0.5
    change = tb.one_step_margin_change(tree, logits, tau_s, 1.0, rate)
    np.testing.assert_allclose(tb.margins(logits - rate * gradient) - old, change, atol=1e-12)
    relative = (change / old)[0]
    assert np.ptp(relative) > 0.01
    # The sign sharpens (tau_s < tau_t) or flattens where the theory says so: the slope of new on
    # old margins, and every margin against the likeliest token.
    sign = np.sign(1.0 - tau_s)
    assert (sign * (change * old).sum(1) > 0).all()
    top = logits.argmax(1)[:, None]
    assert (sign * (gradient - np.take_along_axis(gradient, top, 1)) >= 0).all()


def test_one_step_may_shrink_a_margin_between_unlikely_tokens():
    tree = tb.build_tree(3, 1)
    logits = np.log(np.array([[0.69, 0.30, 0.01]]))
    change = tb.one_step_margin_change(tree, logits, 0.6, 1.0, 0.1)[0]
    assert change[0] > 0 and change[1] > 0 and change[2] < 0  # pairs (0,1), (0,2), (1,2)


SCHEDULES = {
    "constant": [(0.6, 1.0)] * 3,
    "annealed": [(0.6, 1.0), (0.8, 1.0), (1.0, 1.0)],
    "both temperatures": [(1.4, 0.7), (0.5, 1.3)],
    "coupled": [(0.6, 0.6)] * 4,
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_product_rule_over_rounds(tree, logits, schedule):
    rows = st.round_rows(tree, logits, {"s": schedule})
    product = np.prod([t / s for s, t in schedule])
    assert rows[-1]["product"] == pytest.approx(product)
    assert rows[-1]["growth"] == pytest.approx(product, rel=1e-9)
    assert max(r["residual"] for r in rows) < 1e-9
    assert [r["round"] for r in rows] == list(range(len(schedule) + 1))


# ---- finite samples ---------------------------------------------------------------------------


@pytest.mark.parametrize("n, tau_t", [(1000, 1.0), (8000, 1.0), (8000, 0.7)])
def test_finite_sample_margin_error(n, tau_t):
    q = tb.token_probs(np.random.default_rng(0).normal(0, 1, 6), 0.6)
    result = tb.finite_sample(q, n, tau_t, 3000, np.random.default_rng(n))
    pairs = np.isfinite(result["predicted"])
    often = n * q >= 50
    assert (pairs == (often[:, None] & often & ~np.eye(6, dtype=bool))).all() and pairs.any()
    ratio = (result["rms"] / result["predicted"])[pairs]
    assert ((ratio > 0.9) & (ratio < 1.1)).all()
    i, j = np.argwhere(pairs)[0]
    assert result["predicted"][i, j] == pytest.approx(tau_t * np.sqrt((1 / q[i] + 1 / q[j]) / n))


def test_finite_sample_divergence_falls_like_one_over_n():
    q = tb.token_probs(np.random.default_rng(1).normal(0, 0.7, 6), 1.0)
    rows = st.finite_sample_rows(q, (2000, 4000, 8000, 16000), 1.0, 2000, 3)
    assert all(r["full_support"] == 1 for r in rows)
    slope = np.polyfit(np.log([r["n"] for r in rows]), np.log([r["kl"] for r in rows]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)
    for row in rows:
        assert row["kl"] == pytest.approx(row["predicted_kl"], rel=0.1)
        assert row["rms"] == pytest.approx(row["predicted_rms"], rel=0.1)


def test_finite_sample_says_when_the_support_is_incomplete():
    result = tb.finite_sample(np.array([0.999, 0.001]), 100, 1.0, 200, np.random.default_rng(0))
    assert 0 < result["full_support"] < 0.5
    assert np.isnan(result["predicted"]).all()


# ---- broken premises --------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [dict(top_k=2), dict(top_k=4), dict(top_p=0.9)], ids=str)
def test_truncated_sampling_breaks_the_theorem_outside_the_kept_tokens(tree, logits, cut):
    teacher = tb.token_probs(logits, 0.6, **cut)
    seen = tb.occupancy(tree, teacher) > 0
    assert not seen.all() and seen.any()
    weights = tb.token_weights(tree, teacher)
    steps = (100, 200, 400)
    fits = [tb.fit_weights(weights, logits, 1.0, max_steps=m) for m in steps]
    assert not any(f.converged for f in fits)
    kept = np.where((teacher > 0) & seen[:, None], 1.0, np.nan)
    error = tb.margins(fits[-1].logits * kept) - tb.margins(logits * kept) / 0.6
    error = error[np.isfinite(error)]
    assert error.size > 0 and np.abs(error).max() < 1e-9
    # one unit of margin per step, without end, at every visited prefix
    for prefix in np.flatnonzero(seen):
        lost = teacher[prefix] == 0
        if not lost.any():
            continue
        gaps = [f.logits[prefix, ~lost].min() - f.logits[prefix, lost].max() for f in fits]
        np.testing.assert_allclose(np.diff(gaps), [100, 200], atol=1e-6)
    np.testing.assert_array_equal(fits[-1].logits[~seen], logits[~seen])


def test_truncation_keeps_the_right_tokens():
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3]))
    np.testing.assert_allclose(tb.token_probs(logits, 1.0, top_k=2), [0, 4 / 7, 0, 3 / 7])
    np.testing.assert_allclose(tb.token_probs(logits, 1.0, top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9])
    np.testing.assert_allclose(tb.token_probs(logits, 1.0, top_p=0.69), [0, 4 / 7, 0, 3 / 7])
    np.testing.assert_allclose(tb.token_probs(logits, 1.0), [0.1, 0.4, 0.2, 0.3])


def test_unvisited_prefixes_are_not_amplified(tree, logits):
    weights = tb.token_weights(tree, tb.token_probs(logits, 0.6))
    hidden = tree.parent == 2
    weights[hidden] = 0.0
    fit = tb.fit_weights(weights, logits, 1.0)
    assert fit.converged and hidden.any()
    np.testing.assert_array_equal(fit.logits[hidden], logits[hidden])
    assert tb.margin_residual(fit.logits[~hidden], logits[~hidden], 1 / 0.6) < 1e-9
    assert tb.margin_residual(fit.logits, logits, 1 / 0.6) > 0.1


# ---- loss normalisation -----------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_token_mean_weights_equal_enumerated_batches(batch):
    tree = tb.build_tree(3, 2)
    probs = tb.token_probs(tb.random_logits(tree, 4), 0.6)
    mass = tb.sequence_probs(tree, probs)
    wanted = np.zeros_like(probs)
    for picked in itertools.product(range(mass.size), repeat=batch):
        share = np.prod(mass[list(picked)]) / tree.length[list(picked)].sum()
        for answer in picked:
            on = tree.seq_prefix[answer] >= 0
            np.add.at(wanted, (tree.seq_prefix[answer][on], tree.seq_token[answer][on]), share)
    for name in ("token", "microbatch-token"):
        coefficients = tb.length_coefficients(tree, probs, name, batch)
        np.testing.assert_allclose(tb.token_weights(tree, probs, coefficients), wanted, rtol=1e-12)
    assert wanted.sum() == pytest.approx(1)  # a mean over tokens has total weight one


def test_sequence_sum_and_large_batch_token_mean_are_proportional(tree, logits):
    probs = tb.token_probs(logits, 0.6)
    plain = tb.token_weights(tree, probs)
    limit = tb.token_weights(tree, probs, tb.length_coefficients(tree, probs, "token"))
    np.testing.assert_allclose(limit * plain.sum(), plain, rtol=1e-12)  # plain.sum() is E[length]
    near = tb.length_coefficients(tree, probs, "token", 500)
    np.testing.assert_allclose(near * plain.sum(), 1.0, rtol=0.01)


def test_one_answer_per_micro_batch_is_the_sequence_mean(tree, logits):
    probs = tb.token_probs(logits, 0.6)
    single = tb.length_coefficients(tree, probs, "microbatch-token", 1)
    np.testing.assert_allclose(single, tb.length_coefficients(tree, probs, "sequence-mean"))


@pytest.mark.parametrize("tau_s", [0.6, 1.4])
def test_only_the_sequence_sum_keeps_equation_2_and_theorem_1(tree, logits, tau_s):
    rows = st.normalisation_rows(tree, logits, tau_s, 1.0, (1, 2, 4, 8, 16, 32, 64))
    table = {(r["reduction"], r["batch"]): r for r in rows}
    for key in (("sequence-sum", None), ("token", None)):
        assert table[key]["eq2_norm"] < 1e-12 and table[key]["max_bend"] < 1e-9
        assert table[key]["slope"] == pytest.approx(1, abs=1e-12)
    mean = table["sequence-mean", None]
    assert mean["eq2_norm"] > 0.05 and 0.05 < mean["max_bend"] < np.log(3) + 1e-9
    assert abs(mean["slope"] - 1) > 1e-4
    bends = [table["microbatch-token", b]["max_bend"] for b in (1, 2, 4, 8, 16, 32, 64)]
    norms = [table["microbatch-token", b]["eq2_norm"] for b in (1, 2, 4, 8, 16, 32, 64)]
    assert (np.diff(bends) < 0).all() and (np.diff(norms) < 0).all()
    assert np.log2(bends[-2] / bends[-1]) == pytest.approx(1, abs=0.1)  # falls like 1/batch


def test_length_normalisation_favours_tokens_that_end_the_answer(tree, logits):
    q = tb.token_probs(logits, 0.6)
    weights = tb.token_weights(tree, q, tb.length_coefficients(tree, q, "sequence-mean"))
    bend = tb.fit_weights(weights, logits, 1.0).logits - logits / 0.6
    gain = bend[:, -1:] - bend[:, :-1]  # end of sequence against every other token
    inner = tree.depth < tree.horizon - 1
    assert (gain[inner] > 0.05).all()
    np.testing.assert_allclose(gain[~inner], 0, atol=1e-9)  # no choice of length is left there


# ---- report, tables and errors ----------------------------------------------------------------


@pytest.mark.parametrize("seed, size", [(0, (6, 3)), (1, (6, 3)), (2, (5, 4)), (3, (8, 3))])
def test_exact_report_holds(seed, size):
    rows = st.exact_report(seed, *size)
    assert [r["statement"] for r in rows if not r["holds"]] == []
    assert len(rows) == len({r["statement"] for r in rows}) >= 20
    assert {r["bound"] for r in rows} == {"at most", "at least"}
    for row in rows:
        assert set(row) == {"statement", "residual", "tolerance", "bound", "holds", "detail"}
        inside = row["residual"] <= row["tolerance"]
        assert row["holds"] == (inside if row["bound"] == "at most" else not inside)
    json.dumps(rows)


def test_exact_report_notices_a_wrong_ratio(monkeypatch):
    real = tb.amplified_logits
    monkeypatch.setattr(tb, "amplified_logits", lambda z, tau_s, tau_t: real(z, tau_t, tau_s))
    failed = [r["statement"] for r in st.exact_report(0) if not r["holds"]]
    assert failed == ["Theorem 1, closed form"]


def test_margin_rows(tree, logits):
    rows = st.margin_rows(tree, logits, (0.6, 1.4))
    assert len(rows) == 2 * tree.parent.size * 15
    for row in rows[:: len(rows) // 20]:
        old = logits[row["prefix"], row["token_i"]] - logits[row["prefix"], row["token_j"]]
        assert row["margin_old"] == pytest.approx(old)
        assert row["margin_new"] == pytest.approx(old / row["tau_s"], abs=1e-9)
    json.dumps(rows)


def test_weighted_slope_reads_the_factor_whatever_the_weights(tree, logits):
    q = tb.token_probs(logits, 0.6)
    shifted = 1.7 * logits + np.arange(tree.parent.size)[:, None]
    assert tb.weighted_slope(tb.occupancy(tree, q), q, logits, shifted) == pytest.approx(1.7)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf"), [0.6, 1.0]])
def test_bad_temperature(tree, logits, tau):
    calls = (
        tb.token_log_probs,
        tb.token_probs,
        lambda z, t: tb.amplified_logits(z, t, 1.0),
        lambda z, t: tb.equation_2(tree, z, 1.0, t),
        lambda z, t: tb.fit_weights(z**2, z, t),
    )
    for call in calls:
        with pytest.raises(ValueError, match="tau"):
            call(logits, tau)


def test_bad_logits_and_shapes(tree, logits):
    broken = logits.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="logits"):
        tb.token_probs(broken, 1.0)
    with pytest.raises(ValueError, match="logits"):
        tb.expected_gradient(tree, tb.token_probs(logits, 1.0), logits[:-1], 1.0)
    with pytest.raises(ValueError, match="probs"):
        tb.occupancy(tree, broken)
    with pytest.raises(ValueError, match="log_probs"):
        tb.sequence_log_probs(tree, logits[:, :-1])
    with pytest.raises(ValueError, match="weights"):
        tb.fit_weights(-np.ones_like(logits), logits, 1.0)
    with pytest.raises(ValueError, match="weights"):
        tb.fit_weights(np.ones(6), logits, 1.0)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda t, z: tb.build_tree(1, 3), "n_tokens"),
        (lambda t, z: tb.build_tree(4, 0), "horizon"),
        (lambda t, z: tb.build_tree(50, 9), "n_tokens"),
        (lambda t, z: tb.token_probs(z, 1.0, top_k=0), "top_k"),
        (lambda t, z: tb.token_probs(z, 1.0, top_p=0.0), "top_p"),
        (lambda t, z: tb.length_coefficients(t, z, "mean"), "reduction"),
        (lambda t, z: tb.length_coefficients(t, z, "microbatch-token"), "batch"),
        (lambda t, z: tb.length_coefficients(t, z, "token", 0), "batch"),
        (lambda t, z: tb.fit_weights(z**2, z, 1.0, max_steps=0), "max_steps"),
        (lambda t, z: st.exact_report(0, 4, 1), "n_tokens"),
        (lambda t, z: tb.finite_sample(np.ones(3), 9, 1.0, 9, np.random.default_rng(0)), "q"),
        (lambda t, z: tb.finite_sample(np.ones(1), 0, 1.0, 9, np.random.default_rng(0)), "n"),
    ],
)
def test_bad_arguments_are_named(tree, logits, call, name):
    with pytest.raises(ValueError, match=name) as caught:
        call(tree, logits)
    assert "\n" not in str(caught.value)


def test_theory_figures_draw_their_tables_and_refuse_others(tree, logits):
    pytest.importorskip("matplotlib")
    pd = pytest.importorskip("pandas")
    from sept import figures_theory as ft

    q = tb.token_probs(np.arange(4) / 4, 1.0)
    tables = {
        ft.figure_margins: st.margin_rows(tree, logits, (0.6, 1.4)),
        ft.figure_rounds: st.round_rows(tree, logits, {"a": [(0.6, 1.0)], "b": [(1.4, 1.0)]}),
        ft.figure_finite_sample: st.finite_sample_rows(q, (500, 1000), 1.0, 50),
        ft.figure_normalisations: st.normalisation_rows(tree, logits, 0.6),
    }
    for draw, rows in tables.items():
        table = pd.DataFrame(rows)
        before = table.copy()
        assert len(draw(table).axes) == 2
        pd.testing.assert_frame_equal(table, before)
        with pytest.raises(ValueError, match=f"{draw.__name__}: column.* missing"):
            draw(table.iloc[:, :1])
        with pytest.raises(ValueError, match="no rows"):
            draw(table.iloc[:0])
    cases = st.normalisation_rows(tree, logits, 0.6)
    assert len({ft.normalisation_label(r["reduction"], r["batch"]) for r in cases}) == len(cases)


def test_objective_is_smallest_at_the_fit(tree, logits):
    q = tb.token_probs(logits, 0.6)
    best = tb.sept_round(tree, logits, 0.6, 1.3)
    at_best = tb.objective_over_sequences(tree, q, tb.token_log_probs(best, 1.3))
    entropy = -logsumexp(tb.sequence_log_probs(tree, tb.token_log_probs(best, 1.3)))
    assert entropy == pytest.approx(0, abs=1e-12)  # still a distribution over answers
    for seed in range(10):
        moved = best + tb.random_logits(tree, seed, 0.01)
        assert tb.objective_over_sequences(tree, q, tb.token_log_probs(moved, 1.3)) > at_best
