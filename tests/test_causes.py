"""What notebook 23 rests on: votes, equal entropy, combinations of scores, verdicts, finite question sets."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from sept import causes
from sept.config import SeptError
from sept.policy import load_policy, save_policy
from sept.problems import load_problems
from sept.sampling import make_sampler

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("answers", "elected"),
    [
        (["1", "2", "2"], "2"),
        (["2", "1", "1", "2"], "2"),  # a tie goes to the one that was given first
        (["7", None, None, None], "7"),  # no answer is no candidate
        (["", "3", "3"], "3"),
        ([None, None], None),
    ],
)
def test_vote(answers, elected):
    assert causes.vote(answers) == elected


def test_rows_that_disagree_are_replaced_in_turn():
    answers = ["1", "2", "1", None, "3", "4", None, "4", None, None, None, None]
    assert causes.agreeing(answers, 4) == [0, 0, 2, 2, 5, 5, 7, 7, 8, 9, 10, 11]


def test_a_majority_sampler_draws_what_the_majority_says():
    policy, items = load_policy("H"), load_problems("toy:dev:2").items
    asked = [policy.encode(p.prompt) for p in items], [p.id for p in items], 8, 1.0, 56, 3
    plain = make_sampler(policy).sample(*asked)
    sampler = causes.Majority(make_sampler(policy), policy)
    chosen = sampler.sample(*asked, draw=0)
    drawn, kept = (causes.final_answers(r, policy) for r in (plain, chosen))
    assert len({tuple(drawn[i : i + 8]) for i in range(0, len(drawn), 8)} - {(None,) * 8}) > 3
    for first in range(0, len(drawn), 8):
        group = drawn[first : first + 8]
        assert set(kept[first : first + 8]) == {causes.vote(group)}
        for i in range(first, first + 8):  # what agreed stays in its place
            assert drawn[i] != kept[i] or torch.equal(plain.tokens[i], chosen.tokens[i])
    own = torch.arange(chosen.tokens.shape[1]) < chosen.lengths[:, None]
    assert (chosen.log_probs[own] <= 0).all() and len(chosen) == len(plain)
    pairs = {tuple(t.tolist()): p.sum().item() for t, p in zip(plain.tokens, plain.log_probs, strict=True)}
    assert any(
        drawn[i] != kept[i] and pairs[tuple(chosen.tokens[i].tolist())] == chosen.log_probs[i].sum().item()
        for i in range(len(drawn))
    )
    policy.version += 1
    sampler.refresh(policy)
    assert sampler.version == policy.version


def test_votes_are_graded_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SEPT_RESULTS", str(tmp_path))
    from sept.experiments import Score

    score = Score("H", "toy:dev:2", 0.6, 8)
    table = causes.votes(score)
    policy, items = load_policy("H"), load_problems("toy:dev:2").items
    drawn = make_sampler(policy).sample(
        [policy.encode(p.prompt) for p in items], [p.id for p in items], 8, 0.6, 56, 0
    )
    answers = causes.final_answers(drawn, policy)
    right = [causes.vote(answers[8 * i : 8 * i + 8]) == p.answer for i, p in enumerate(items)]
    assert table["pass@1"].tolist() == right and 0 < sum(right) < len(right)
    monkeypatch.setattr(causes, "make_sampler", None)
    assert causes.votes(score).equals(table), "the second time nothing is drawn"


def test_matched_temperature_on_a_known_policy():
    logits = torch.tensor([0.0, 1.0, 2.5, 4.0], dtype=torch.float64)

    def entropy(tau):
        return float(torch.distributions.Categorical(logits=logits / tau).entropy())

    assert causes.matched_temperature(entropy, entropy(0.37)) == 0.37
    assert causes.matched_temperature(entropy, entropy(1.28)) == 1.28
    with pytest.raises(SeptError, match="entropy 9.000: not reached"):
        causes.matched_temperature(entropy, 9.0)


def test_entropy_per_token_of_a_uniform_model(tmp_path):
    policy = load_policy("H")
    for weight in policy.model.parameters():
        weight.data.zero_()
    save_policy(policy, tmp_path / "uniform")
    measured = causes.token_entropy(str(tmp_path / "uniform"), "toy:dev:1", 0.7, n=2)
    assert measured == pytest.approx(math.log(len(policy.tokenizer)), abs=1e-5)
    assert 0 < causes.token_entropy("H", "toy:dev:4", 0.3) < causes.token_entropy("H", "toy:dev:4", 1.0)


def test_combinations_and_verdicts():
    a, b = (pd.DataFrame({"id": ["x", "y"], "family": "f", "pass@1": v}) for v in ([1.0, 0.5], [0.5, 0.0]))
    (found,) = causes.combined({"a": 1, "b": -0.5}, {"a": [a], "b": [b.assign(AVG=1.0)]})
    assert found["pass@1"].tolist() == [0.75, 0.5] and "AVG" not in found
    with pytest.raises(SeptError, match="a and b: their tables hold different questions"):
        causes.combined({"a": 1, "b": 1}, {"a": [a], "b": [b.assign(id=["x", "z"])]})
    assert [causes.verdict(*lohi, (-3, 3), 3) for lohi in ((-1, 2), (2, 4), (3.5, 9), (-9, -4))] == [
        "held",
        "open",
        "refuted",
        "refuted",
    ]
    assert causes.verdict(-1, 2, (-3, 3), 1) == causes.verdict(4, 5, (-3, 3), 1) == "open", "one seed"
    assert [causes.ordered(v, 4) for v in ([1, 2, 1.5, 4], [1, 2, 3], [1, 2, 0.5])] == [
        "held",
        "open",
        "refuted",
    ]


def test_finite_training_sets():
    small, large, other = (load_problems(f"toy:train:{n}") for n in ("6:100", "24:100", "6:101"))
    assert [len(s.items) for s in (small, large, other)] == [36, 144, 36] and small.stream is None
    assert (
        small.items == large.items[:36] and small.items[0] == load_problems("toy:train").batch(0, 1, 100)[0]
    )
    assert not {p.prompt for p in small.items} & {p.prompt for p in other.items}
    assert len({s.hash() for s in (small, large, other, load_problems("toy:train"))}) == 4
    assert {len([p for p in small.items if p.family == f]) for f in small.families} == {6}
    asked = [p.id for round in range(9) for p in small.batch(round, 32, 1)]
    assert set(asked) == {p.id for p in small.items}
    for name in ("toy:test:6:1", "toy:train:6:1:2"):
        with pytest.raises(SeptError, match="second number"):
            load_problems(name)


def test_the_hypotheses_tell_what_was_recorded():
    """Every verdict in the table of hypotheses is the recorded one; none was left out."""
    recorded = json.loads((ROOT / "figures" / "laptop" / "23_causes.json").read_text())
    rows = re.findall(
        r"^\| (C\w+) \|.*\| (.*?) \| (\w+) \|$", (ROOT / "docs/hypotheses-causes.md").read_text(), re.M
    )
    names = {name.partition(",")[0] for name in recorded if re.match(r"C[a-g]\d", name)}
    assert {id for id, *_ in rows} == names
    for id, shown, verdict in rows:
        parts = [v for name, v in recorded.items() if name.partition(",")[0] == id]
        verdicts = {v[-1] for v in parts}
        said = "held" if verdicts == {"held"} else "refuted" if "refuted" in verdicts else "open"
        assert verdict == said, id
        numbers = [f"{n:.1f}" for part in parts for n in part[:-1]]
        assert re.findall(r"-?\d+\.\d", shown.replace("−", "-")) == [n for n in numbers], id


def test_the_drawing_shows_every_arm_and_refuses_gaps():
    pytest.importorskip("matplotlib")
    from sept.figures_causes import figure_causes

    rows = [
        {"panel": p, "arm": a, "metric": m, "value": v, "lo": v - 1, "hi": v + 2, "seeds": s}
        for p, a, v, s in (("one", "x", 3, 2), ("one", "y", -4, 1), ("two", "z", 9, 2))
        for m in ("pass@1", "AVG")
    ]
    fig = figure_causes(pd.DataFrame(rows))
    one, two = fig.axes
    assert [t.get_text() for t in one.get_yticklabels()] == ["x", "y"]
    assert [t.get_text() for t in two.get_yticklabels()] == ["z"]
    assert one.get_xlim() == two.get_xlim() and one.get_xlim()[0] < -5 and one.get_xlim()[1] > 11
    shown = [(c[0].get_xdata().tolist(), c[0].get_markerfacecolor()) for c in one.containers]
    hollow = [values for values, face in shown if face == "white"]
    assert hollow == [[-4], [-4]] and [v for v, face in shown if face != "white"] == [[3], [], [3]]
    with pytest.raises(ValueError, match="figure_causes: column 'lo' is missing"):
        figure_causes(pd.DataFrame(rows).drop(columns="lo"))
