"""The sharpening family against brute force and against what must hold of it."""

import itertools

import numpy as np
import pytest

from sept import sharpening as sh
from sept import tabular

TREE = tabular.build_tree(3, 3)
LOGITS = tabular.random_logits(TREE, 0, 1.5)
P = sh.tempered(TREE, LOGITS, 1.0)


def test_tempering_is_a_fitted_round_and_rounds_multiply():
    once = tabular.sept_round(TREE, LOGITS, 0.5, 1.0)
    assert sh.tempered(TREE, once, 1.0) == pytest.approx(sh.tempered(TREE, LOGITS, 2.0), abs=1e-10)
    twice = tabular.sept_round(TREE, once, 0.8, 1.0)
    assert sh.tempered(TREE, twice, 1.0) == pytest.approx(sh.tempered(TREE, LOGITS, 2.5), abs=1e-10)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_against_enumeration(n):
    expected = np.zeros(len(P))
    for draws in itertools.product(range(len(P)), repeat=n):
        expected[max(draws, key=lambda i: P[i])] += np.prod(P[list(draws)])
    assert sh.best_of(TREE, LOGITS, n) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_majority_against_enumeration(n):
    p = np.array([0.4, 0.35, 0.2, 0.05])
    expected = np.zeros(4)
    for draws in itertools.product(range(4), repeat=n):
        counts = np.bincount(draws, minlength=4)
        top = np.flatnonzero(counts == counts.max())
        expected[top] += np.prod(p[list(draws)]) / len(top)
    assert sh.majority_of(p, n) == pytest.approx(expected, abs=1e-12)


def test_the_power_distribution_is_the_frontier():
    for row in sh.family_rows(TREE, LOGITS):
        assert row["gap"] > -1e-6, row
        if row["method"] == "power":
            assert row["gap"] == pytest.approx(0, abs=1e-6)
    tempering = [r["gap"] for r in sh.family_rows(TREE, LOGITS) if r["method"] == "SePT (tempering)"]
    assert max(tempering) > 0.003


def test_one_token_answers_leave_nothing_to_choose():
    """With answers of one token, tempering and power are the same thing."""
    tree = tabular.build_tree(5, 1)
    logits = tabular.random_logits(tree, 1, 1.0)
    assert sh.tempered(tree, logits, 3.0) == pytest.approx(sh.power(tree, logits, 3.0), abs=1e-12)
    assert sh.astray(tree, 20, 1.0) == 0
    assert 0 < sh.astray(TREE, 60, 1.0) < 1


def test_entropy_descent_lowers_the_entropy_it_differentiates():
    def visited_entropy(z):
        p = np.exp(tabular.token_log_probs(z, 1.0))
        return float(VISITS @ (-(p * np.log(p)).sum(1)))

    VISITS = tabular.occupancy(TREE, np.exp(tabular.token_log_probs(LOGITS, 1.0)))
    step = 1e-6
    moved = sh.entropy_descent(TREE, LOGITS, 1, step)
    slope = (visited_entropy(moved) - visited_entropy(LOGITS)) / step
    assert slope == pytest.approx(-float((((moved - LOGITS) / step) ** 2).sum()), rel=1e-4)
