"""pass@k against brute force, intervals with known coverage, baselines, grading."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_policy

from sept import evaluation as ev
from sept.config import SeptError
from sept.grading import grade, last_boxed
from sept.loop import describe
from sept.problems import Problem, ProblemSet
from sept.sampling import Rollouts


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


def test_compare_is_the_summary_of_paired_differences():
    rng = np.random.default_rng(3)
    runs = [ev.question_scores(counts(rng.integers(0, 33, 8))) for _ in range(4)]
    by_hand = ev.summarise([ev.difference(runs[0], runs[2]), ev.difference(runs[1], runs[3])])
    pd.testing.assert_frame_equal(ev.compare(runs[:2], runs[2:]), by_hand)
    one = ev.summarise([ev.difference(r, runs[3]) for r in runs[:2]])
    pd.testing.assert_frame_equal(ev.compare(runs[:2], runs[3]), one)


def test_the_best_checkpoint_is_too_good_and_the_honest_one_is_not():
    """Checkpoints that differ by nothing but noise: choosing on the scored questions gains, else not."""
    rng = np.random.default_rng(5)
    gains = []
    for _ in range(60):
        curve = [ev.question_scores(counts(rng.binomial(32, 0.4, 24))) for _ in range(10)]
        got = ev.checkpoint_choice(curve)
        assert got["best"] == pytest.approx(100 * ev.family_means(curve[got["best_at"]])["AVG"])
        assert got["last"] == pytest.approx(100 * ev.family_means(curve[-1])["AVG"])
        gains.append([got["best"] - got["last"], got["honest"] - got["honest_last"]])
    best, honest = np.mean(gains, axis=0)
    assert best > 0.4 and abs(honest) < 0.25


def test_peak_shift():
    sweep = {0.1: ev.question_scores(counts([24] * 4 + [0] * 4)), 1.0: ev.question_scores(counts([6] * 8))}
    value, low, high = ev.peak_shift(sweep, "pass@1", "pass@32", draws=200)
    assert value == pytest.approx(0.9) and low <= value <= high
    assert ev.peak_shift(sweep, "pass@1", "pass@1", draws=50) == [0.0, 0.0, 0.0]


def test_details_hold_every_k():
    table = ev.detail_table({"SePT": [counts([4, 0, 0, 32])]})
    assert list(table["metric"].unique()) == [f"pass@{k}" for k in ev.DETAIL_KS]
    row = table.query("family == 'a' and metric == 'pass@4'").iloc[0]
    assert row["value"] == pytest.approx(100 * ev.pass_at_k(32, 4, 4) / 2)


def test_dependence_has_no_sign():
    low, high = ([ev.question_scores(counts([c] * 8))] * 2 for c in (4, 20))
    for a, b in ((low, high), (high, low)):
        assert ev.summarise(ev.dependence(a, b)).loc["pass@1", "value"] == pytest.approx(50)


def test_counts_belong_to_their_question():
    """Rows are ordered by question, then by sample: in scores, and in the rewards of GRPO."""
    policy = random_policy()
    problems = ProblemSet("two", (Problem("a", "f", "w1", "w5"), Problem("b", "f", "w2", "w6")))
    words = [[5, 2], [5, 2], [9, 2], [9, 2], [9, 0], [6, 2]]
    tokens = torch.tensor([[3 + word, end] for word, end in words])
    finished = torch.tensor([end == 2 for _, end in words])
    prompts = [policy.encode(p.prompt) for p in problems.items for _ in range(3)]
    lengths = 1 + finished.long()
    rollouts = Rollouts(prompts, tokens, lengths, finished, torch.zeros(6, 2), 1.0, 0)
    table = ev.score_rollouts(rollouts, problems, policy, 3)
    assert table[["c", "finished", "tokens"]].to_numpy().tolist() == [[2, 3, 6], [1, 2, 5]]
    assert table["id"].tolist() == ["a", "b"]
    rewards = describe(rollouts, list(problems.items), policy, problems.world, 3)["rewards"]
    assert rewards.tolist() == [1, 1, 0, 0, 0, 1]
