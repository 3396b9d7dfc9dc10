"""pass@k against brute force, intervals with known coverage, baselines, grading."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from sept import evaluation as ev
from sept.config import SeptError
from sept.grading import grade, last_boxed
from sept.problems import Problem


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_equals_brute_force(n):
    for c in range(n + 1):
        right = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            brute = np.mean([any(pick) for pick in combinations(right, k)])
            assert ev.pass_at_k(n, c, k) == pytest.approx(brute, abs=1e-12)


def test_pass_at_k_edges():
    assert ev.pass_at_k(4, 1, 4) == 1.0, "a with-replacement bootstrap would say 0.68"
    assert ev.pass_at_k(32, np.array([0, 32]), 8).tolist() == [0.0, 1.0]
    for k in (0, 5):
        with pytest.raises(SeptError, match="k must lie"):
            ev.pass_at_k(4, 1, k)


def counts(values, n=32, families=("a", "b")):
    size = len(values) // len(families)
    rows = [{"id": f"{f}{i}", "family": f, "n": n} for f in families for i in range(size)]
    return pd.DataFrame(rows).assign(c=values)


def test_family_means_are_unweighted():
    table = pd.DataFrame({"id": ["1", "2", "3"], "family": ["a", "a", "b"], "n": 32, "c": [32, 32, 0]})
    assert ev.family_means(ev.question_scores(table))["pass@1"] == pytest.approx(0.5)


def test_greedy_makes_all_k_equal():
    scores = ev.question_scores(counts([1, 0, 1, 1], n=1), greedy=True)
    assert (scores["pass@1"] == scores["pass@32"]).all()
    assert ev.family_means(scores)["AVG"] == pytest.approx(0.75)


def test_interval_covers_the_truth():
    """95% intervals over questions and seeds cover the known mean in about 95 of 100 worlds."""
    rng = np.random.default_rng(0)
    hits, worlds = 0, 200
    for world in range(worlds):
        difficulty = rng.normal(0, 0.15, 60)
        runs = []
        for _ in range(3):
            shift = rng.normal(0, 0.05)
            value = 0.5 + difficulty + shift + rng.normal(0, 0.05, 60)
            frame = pd.DataFrame({"id": range(60), "family": ["a"] * 30 + ["b"] * 30})
            runs.append(frame.assign(**{"pass@1": value}))
        row = ev.summarise(runs, seed=world).loc["pass@1"]
        hits += row["lo"] <= 50 <= row["hi"]
    assert 0.91 <= hits / worlds <= 0.99


def test_paired_difference_is_tighter_than_unpaired():
    rng = np.random.default_rng(1)
    a = rng.binomial(32, rng.uniform(0, 1, 80))
    x = ev.question_scores(counts(a))
    y = ev.question_scores(counts(np.clip(a - 2, 0, 32)))
    paired = ev.summarise([ev.difference(x, y)]).loc["pass@1"]
    alone = ev.summarise([x]).loc["pass@1"]
    assert paired["hi"] - paired["lo"] < 0.3 * (alone["hi"] - alone["lo"])
    with pytest.raises(SeptError, match="different questions"):
        ev.difference(x, y.iloc[::-1].reset_index(drop=True))


def test_baselines():
    sweep = {
        0.0: ev.question_scores(counts([1, 1, 1, 0], n=1), greedy=True),  # pass@1 75, all others too
        0.5: ev.question_scores(counts([16, 16, 16, 16])),  # pass@1 50, pass@32 100
        1.0: ev.question_scores(counts([16, 16, 16, 2])),
    }
    assert ev.best_temperature(sweep) == 0.5, "greedy has one answer and cannot be chosen on AVG"
    assert ev.best_temperature(sweep, "pass@1") == 0.0
    each = ev.family_means(ev.best_for_each_k(sweep))
    assert each["pass@1"] == 0.75 and each["pass@32"] == 1.0
    assert each["AVG"] > ev.family_means(sweep[0.5])["AVG"]


def test_summarise_is_deterministic_and_says_what_it_is_over():
    runs = [ev.question_scores(counts([1, 2, 3, 4])), ev.question_scores(counts([2, 2, 3, 5]))]
    one, two = ev.summarise(runs), ev.summarise(runs)
    assert one.equals(two)
    assert set(one["seeds"]) == {2} and set(one["questions"]) == {4}


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{1} no \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{7} and \boxed{broken", "7"),
        ("nothing", None),
        (r"\fbox{3}", None),
        ("\\boxed{" * 2000, None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


def test_grading_of_files_and_of_the_world():
    file = Problem("1", "f", "q", " 42")
    assert grade("first\n42 ", True, file, "file") and not grade("43", True, file, "file")
    toy = Problem("2", "add3", "1+2:", "3")
    assert grade("!#3", True, toy, "toy")
    assert not grade("!#3", False, toy, "toy"), "an answer that did not end is wrong"
    assert not grade("!#03", True, toy, "toy") and not grade("3", True, toy, "toy")
    assert grade("#9!#3", True, toy, "toy"), "the last # counts"
