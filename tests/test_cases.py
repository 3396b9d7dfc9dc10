"""Figure 2's case: exact scores, a rule that is kept, a drawing of its table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from sept import cases
from sept.cases import Answer
from sept.config import SeptError
from sept.policy import load_policy
from sept.problems import Problem, ProblemSet, load_problems


def plain(policy, context, text, shift=0):
    """Sum of log-probs by one unpadded forward pass; `shift` looks that many places too early."""
    ids = [*context, *text]
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([ids])).logits[0].double()
    log_p = torch.log_softmax(logits, -1)
    return sum(float(log_p[k - 1 - shift, ids[k]]) for k in range(len(context), len(ids)))


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    sizes = [(3, 5), (7, 2), (4, 11), (9, 1), (2, 7)]
    return [tuple(rng.integers(3, 300, size).tolist() for size in pair) for pair in sizes]


@pytest.mark.parametrize("name", ["qwen", "llama", "gpt2"])
def test_log_probs_equal_a_plain_forward_pass(name, texts, request):
    policy = request.getfixturevalue(name)
    scores = cases.log_probs(policy, *zip(*texts, strict=True))
    assert scores == pytest.approx([plain(policy, *pair) for pair in texts], abs=1e-5, rel=1e-5)
    shifted = np.array([plain(policy, *pair, shift=1) for pair in texts])
    assert (np.abs(scores - shifted) > 1e-3).all(), "an index that is off by one must show"


def test_prefix_and_suffix_add_up_to_the_whole(qwen, texts):
    contexts, whole = zip(*texts, strict=True)
    heads, tails = zip(*(cases.split(qwen, text, "no such text") for text in whole), strict=True)
    assert [len(head) for head in heads] == [len(text) // 2 for text in whole]
    extended = [[*c, *h] for c, h in zip(contexts, heads, strict=True)]
    parts = cases.log_probs(qwen, contexts, heads) + cases.log_probs(qwen, extended, tails)
    assert parts == pytest.approx(cases.log_probs(qwen, contexts, whole), abs=1e-4)
    assert cases.log_probs(qwen, [[1]], [[]]).tolist() == [0.0]


def test_log_probs_at_a_temperature_are_other_ones(qwen, texts):
    contexts, whole = zip(*texts, strict=True)
    assert not np.allclose(
        cases.log_probs(qwen, contexts, whole, 0.6), cases.log_probs(qwen, contexts, whole)
    )


def test_bad_contexts_are_named(qwen):
    with pytest.raises(SeptError, match="is empty"):
        cases.log_probs(qwen, [[]], [[5]])
    with pytest.raises(SeptError, match="exceed 96 tokens"):
        cases.log_probs(qwen, [[1] * 90], [[5] * 7])


def ids_of(policy, text):
    """Tokens of a response, end-of-sequence included."""
    return (*policy.tokenizer.encode(text, add_special_tokens=False), policy.eos_ids[0])


@pytest.mark.parametrize(
    ("text", "cut", "prefix"),
    [
        (">12=3#45", "#", ">12=3"),
        ("1#2#3", "#", "1"),
        ("12345=67", "5=6", "1234"),  # several tokens long
        ("#45", "#", "#4"),  # begins with it: the middle of 4 tokens
        ("12345", "#", "123"),  # lacks it
    ],
)
def test_cut(text, cut, prefix):
    policy = load_policy("H")
    ids = ids_of(policy, text)
    head, tail = cases.split(policy, ids, cut)
    assert policy.decode(head) == prefix and (*head, *tail) == ids


def question(number, answer="3"):
    return Problem(f"q{number}", "add3", f"{number}+2:", answer)


def answers(policy, *shown):
    """Drawn answers from (text, log-prob); right are those that end in #3."""
    return [
        Answer(ids_of(policy, text), text.split("#")[1], text.endswith("#3"), score)
        for text, score in shown
    ]


def test_the_rule_is_kept_and_the_choice_is_repeatable():
    base = load_policy("H")
    policies = {"base": base, "trained": base}
    wrong, also_wrong = (">1=4#4", -3.0), (">1=5#5", -2.0)
    right, also_right, same = (">1=3#3", -2.0), (">2=3#3", -1.0), (">1=5#3", -0.1)
    drawn = {
        "base": [
            answers(base, right, right, right, wrong),  # solves it: never chosen while others are there
            answers(base, right, wrong, wrong, wrong),
            answers(base, wrong, also_wrong, wrong, also_wrong),
            answers(base, wrong, wrong, wrong, wrong),  # as large a gain, later
        ],
        "trained": [
            answers(base, right, right, right, right),
            answers(base, right, right, right, wrong),
            answers(base, right, also_right, same, same),
            answers(base, right, right, right, right),
        ],
    }
    problems = ProblemSet("tiny", tuple(question(k) for k in range(4)), world="toy")
    table = cases.find_case(policies, problems, drawn)
    assert set(table["id"]) == {"q2"} and set(table["rule"]) == {cases.STRICT}
    assert set(zip(table["base_right"], table["trained_right"], table["n"], strict=True)) == {(0, 4, 4)}
    shown = table[table["model"] == "base"].set_index("branch")["text"]
    # `>1=5` is the likeliest on both sides, so the right answer is the next one with another prefix.
    assert shown["A"] == ">1=5" and shown["B|A"] == shown["B|A^"] == "#5<eos>"
    assert shown["A^"] == ">2=3" and shown["B^|A"] == shown["B^|A^"] == "#3<eos>"
    pd.testing.assert_frame_equal(table, cases.find_case(policies, problems, drawn))
    assert (cases.margins(table)["base"] == cases.margins(table)["trained"]).all(), "one and the same model"

    weak = {name: rows[:1] for name, rows in drawn.items()}
    fallen_back = cases.find_case(policies, ProblemSet("one", problems.items[:1], world="toy"), weak)
    assert set(fallen_back["rule"]) == {cases.WEAK} and set(fallen_back["id"]) == {"q0"}
    with pytest.raises(SeptError, match="draw more"):
        cases.find_case(
            policies,
            ProblemSet("one", problems.items[:1], world="toy"),
            {"base": drawn["trained"][:1], "trained": drawn["trained"][:1]},
        )


@pytest.fixture(scope="module")
def found():
    """A case between two shipped bases, at the smallest scale, with its ingredients."""
    policies = {"base": load_policy("H"), "trained": load_policy("E")}
    problems = load_problems("toy:test:add3+sub3:3")
    drawn = {name: cases.draw_answers(policy, problems, n=8) for name, policy in policies.items()}
    return policies, problems, drawn, cases.find_case(policies, problems, drawn)


def test_drawn_answers_are_graded_and_the_table_adds_up(found):
    policies, problems, drawn, table = found
    for policy, rows in zip(policies.values(), drawn.values(), strict=True):
        for problem, row in zip(problems.items, rows, strict=True):
            assert len(row) == 8
            for answer in row:
                assert answer.right == (answer.ids[-1] in policy.eos_ids and answer.given == problem.answer)
            scores = cases.log_probs(policy, 8 * [policy.encode(problem.prompt)], [a.ids for a in row])
            assert scores == pytest.approx([a.log_prob for a in row], abs=1e-3)
    prompt = policies["base"].encode(table["prompt"][0])
    score = table.set_index(["model", "branch"])["log_prob"]
    text = table.set_index(["model", "branch"])["text"]
    for model, policy in policies.items():
        for a, b in (("A", "B|A"), ("A", "B^|A"), ("A^", "B|A^"), ("A^", "B^|A^")):
            ids = ids_of(policy, (text[model, a] + text[model, b]).removesuffix("<eos>"))
            assert score[model, a] + score[model, b] == pytest.approx(plain(policy, prompt, ids), abs=1e-3)


def test_margins_are_right_minus_wrong():
    table = pd.DataFrame(
        [
            (model, branch, -float(factor * (k + 1) ** 2))
            for model, factor in (("base", 1), ("trained", 2))
            for k, branch in enumerate(cases.BRANCHES)
        ],
        columns=["model", "branch", "log_prob"],
    ).sample(frac=1, random_state=0)
    margins = cases.margins(table)
    assert margins["base"].tolist() == [-3.0, -7.0, -11.0] and margins["trained"].tolist() == [
        -6.0,
        -14.0,
        -22.0,
    ]
    assert not margins["preferred"].any() and not margins["up"].any()


def test_changes_hold_their_mean_and_vanish_for_one_model(found):
    policies, problems, drawn, _ = found
    table = cases.changes(policies, problems, drawn, 0.6)
    assert (table["lo"] <= table["mean"] + 1e-9).all() and (table["mean"] <= table["hi"] + 1e-9).all()
    part = table[table["texts"] == "both from base"].set_index("quantity")
    assert part.loc["margin", "mean"] == pytest.approx(
        part.loc["log p(A^)", "mean"] - part.loc["log p(A)", "mean"], abs=1e-6
    )
    same = cases.changes({"base": policies["base"], "trained": policies["base"]}, problems, drawn, 0.6)
    assert (same["mean"] == 0).all()


def test_figure_draws_redraws_and_refuses(found, tmp_path):
    pytest.importorskip("matplotlib")
    from sept import figures, figures_cases

    table = found[-1]
    fig = figures.save_figure(
        figures_cases.figure_2, "figure_2", table, tmp_path, {"seeds": [0]}, measured="mine"
    )
    assert figures.redraw(tmp_path, tmp_path / "again") == ["figure_2"]
    for suffix in ("csv", "png", "pdf"):
        one, two = (folder / f"figure_2.{suffix}" for folder in (tmp_path, tmp_path / "again"))
        assert one.read_bytes() == two.read_bytes(), suffix
    top, _, bottom = fig.subfigs
    assert top.get_facecolor() != bottom.get_facecolor(), "the published block is tinted"
    written = {text.get_text() for ax in bottom.axes for text in ax.texts}
    assert {"\u221255", "\u2212108", "\u2212161", "\u221240"} <= written
    assert min(t.get_fontsize() for block in fig.subfigs for ax in block.axes for t in ax.texts) >= 7
    for column in ("log_prob", "text", "trained_right"):
        with pytest.raises(ValueError, match=f"^figure_2: column '{column}' is missing"):
            figures_cases.figure_2(table.drop(columns=column))
    with pytest.raises(ValueError, match="^figure_2: column 'branch' must hold"):
        figures_cases.figure_2(table.iloc[:-1])


def test_figure_takes_text_that_looks_like_formulas(found):
    pytest.importorskip("matplotlib")
    from sept import figures_cases

    table = found[-1].assign(
        text="so $x_1 = \\frac{1}{2\n " * 60, prompt="what is $\\boxed{", answer="$\\frac{1}{2"
    )
    figures_cases.figure_2(table, "mine").canvas.draw()
