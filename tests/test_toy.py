"""The embedded world: right derivations, disjoint splits, documents as described, shipped bases."""

import json

import numpy as np
import pytest
import torch

from sept import pretrain as pt
from sept import toy
from sept.config import Config, SeptError
from sept.policy import BASES, load_policy
from sept.problems import load_problems


@pytest.mark.parametrize("family", [*toy.FAMILIES, *toy.OTHER_TASKS])
def test_a_careful_author_is_always_right(family):
    rng = np.random.default_rng(0)
    for _ in range(300):
        operands = toy.draw("corpus", family, rng)
        prompt, response = toy.write_document(family, operands, 0.0, rng)
        _, answer = toy._question(family, operands)
        assert toy.is_correct(response, True, answer), (prompt, response)
        assert toy.is_well_formed(response, True)
        assert len(response) + 1 <= Config().max_new_tokens


def test_the_example_of_the_docstring_is_written_by_the_code():
    columns = toy._columns("add4", (7352, 8149), 0.0, np.random.default_rng(0))
    text = ";".join(f"{a}{b}{c}={h}{low}" for a, b, c, h, low in columns)
    assert f"7352+8149:>{text}#15501" in toy.__doc__


@pytest.mark.parametrize(("a", "b"), [(9000, 8999), (1000, 1000), (5203, 1999)])
def test_borrows(a, b):
    columns = toy._columns("sub4", (a, b), 0.0, np.random.default_rng(0))
    assert int("".join(str(low) for *_, low in reversed(columns))) == a - b


def test_a_sloppy_author_errs_and_stays_consistent():
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(500):
        operands = toy.draw("corpus", "add4", rng)
        prompt, response = toy.write_document("add4", operands, 0.4, rng)
        assert toy.is_well_formed(response, True)
        wrong += not toy.is_correct(response, True, str(sum(operands)))
        if response.startswith(">"):  # whatever was written, the answer repeats it
            lows = [column[-1] for column in response[1:].split("#")[0].split(";")]
            assert response.split("#")[1].endswith("".join(lows[::-1]).lstrip("0"))
    assert 0.5 < wrong / 500 < 0.95


def test_splits_are_disjoint_and_a_question_has_one_split():
    seen = {}
    for split in toy.SPLITS:
        for family in toy.FAMILIES:
            rng = np.random.default_rng(3)
            for _ in range(300):
                key = (family, tuple(sorted(toy.draw(split, family, rng))))
                assert seen.setdefault(key, split) == split
    assert toy.split_of("add3", (123, 456)) == toy.split_of("add3", (456, 123))


def test_problem_sets():
    test, dev = load_problems("toy:test"), load_problems("toy:dev")
    assert len(test.items) >= 500 and len({p.prompt for p in test.items}) == len(test.items)
    assert not {p.prompt for p in test.items} & {p.prompt for p in dev.items}
    train = load_problems("toy:train")
    fresh = [p for r in range(20) for p in train.batch(r, 128, seed=0)]
    assert len({p.prompt for p in fresh}) > 0.99 * len(fresh), "fresh questions hardly repeat"
    assert not {p.prompt for p in test.items} & {p.prompt for p in fresh}
    assert train.batch(3, 8, 0) == train.batch(3, 8, 0) != train.batch(3, 8, 1)
    assert load_problems("toy:test:24").items[:24] == test.items[:24], "small sets are beginnings"
    assert test.hash() != dev.hash() and train.hash() == load_problems("toy:train").hash()


@pytest.mark.parametrize(
    "name", ["toy:exam", "toy:test:mul9", "toy:dev:0", "toy:dev:501", "toy:", "missing.jsonl"]
)
def test_unknown_problem_sets_get_one_line(name):
    with pytest.raises(SeptError) as error:
        load_problems(name)
    assert "\n" not in str(error.value)


def test_problem_files(tmp_path):
    rows = [{"prompt": "1+1", "answer": "2"}, {"prompt": "2+2", "answer": "4"}]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [p.answer for p in load_problems(str(path)).items] == ["2", "4"]
    path.write_text('{"prompt": "x", "answer": 2, "family": null}\n{"prompt": "y", "answer": 0.5}')
    items = load_problems(str(path)).items
    assert [(p.answer, p.family) for p in items] == [("2", "p"), ("0.5", "p")]
    (tmp_path / "p.csv").write_text("prompt,answer,id,family\n1+1,02,a,sums\n")
    (problem,) = load_problems(str(tmp_path / "p.csv")).items
    assert (problem.answer, problem.family, problem.id) == ("02", "sums", "a")
    for content, word in (
        ("", "empty"),
        ('{"prompt": "x"}', "'answer' is missing"),
        ('{"prompt": "x", "answer": " "}', "row 1"),
        ('{"prompt": "x", "answer": null}', "row 1"),
        ('{"prompt": ', "cannot be read"),
        ('{"prompt": "x", "answer": "1", "id": "a"}\n{"prompt": "y", "answer": "1", "id": "a"}', "twice"),
    ):
        path.write_text(content)
        with pytest.raises(SeptError, match=word) as error:
            load_problems(str(path))
        assert "\n" not in str(error.value)


def test_tokenizer_round_trip_and_special_tokens():
    tokenizer = toy.build_tokenizer()
    text = "7352+8149:>290=11~!;#rs-"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and len(ids) == len(text) + 1
    assert tokenizer.decode(ids[1:]) == text
    assert len(tokenizer) == len(toy.VOCABULARY)


@pytest.mark.parametrize("base", sorted(pt.RECIPES))
def test_shipped_bases(base):
    policy = load_policy(base)
    assert policy.tokenizer.get_vocab() == {t: i for i, t in enumerate(toy.VOCABULARY)}
    assert policy.eos_ids == (toy.VOCABULARY.index(toy.EOS),)
    card = (BASES / base / "README.md").read_text()
    assert f'RECIPES["{base}"]' in card and "| T | pass@1 |" in card
    recipe = card.split("```json")[1].split("```")[0]
    tokens = [stage["tokens"] for stage in json.loads(recipe)["stages"]]
    assert tokens == [stage.tokens for stage in pt.RECIPES[base].stages], "card and recipe agree"


def test_bases_are_small():
    assert sum(f.stat().st_size for f in BASES.rglob("*") if f.is_file()) < 6_000_000


def test_pretraining_is_reproducible_and_learns():
    recipe = pt.Recipe((pt.Stage(200, 200_000, (0.0, 0.1, 0.4), 5e-3),), hidden=32, layers=1, mlp=64)
    first, _, log = pt.pretrain(recipe)
    second, _, _ = pt.pretrain(recipe)
    assert len(log) > 3
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
