"""Problem sets from files and from data sets in hub layout; what is dropped is counted and said."""

import dataclasses
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from sept import benchmarks
from sept.config import SeptError, notice
from sept.problems import Problem, ProblemSet, fitting, load_problems


@pytest.fixture(autouse=True)
def _say_again():
    notice.cache_clear()


def authors(question, answer, source="math500", **more):
    """A row in the authors' schema."""
    return {
        "prompt": [{"content": question, "role": "user"}],
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "data_source": source,
        "ability": "math",
        **more,
    }


def test_the_authors_schema(tmp_path, caplog):
    rows = [authors("1+1?", "2", id="a/1"), authors("2+2?", r"$4$", id="a/2", extra_info={"index": 1})]
    pd.DataFrame(rows).to_parquet(tmp_path / "math.parquet")
    (tmp_path / "m.jsonl").write_text(json.dumps(authors("3+3?", "6", "minerva")) + "\n")
    found = load_problems(f"{tmp_path / 'math.parquet'}+{tmp_path / 'm.jsonl'}")
    assert found.items == (
        Problem("MATH-500/a/1", "MATH-500", "1+1?", "2"),
        Problem("MATH-500/a/2", "MATH-500", "2+2?", "$4$"),
        Problem("Minerva/0", "Minerva", "3+3?", "6"),
    )
    assert (found.world, found.max_prompt) == ("math", 1024)
    assert "not used: ability, extra_info" in caplog.text


def test_empty_answers_and_repeated_prompts_are_counted(tmp_path, caplog):
    rows = [authors("a", "1"), authors("b", " "), authors("a", "1"), authors("a", "2"), authors("c", "3")]
    rows.append({**authors("d", "4"), "prompt": []})
    pd.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    assert [p.answer for p in load_problems(str(tmp_path / "p.parquet")).items] == ["1", "3"]
    assert "2 rows have no prompt or no answer" in caplog.text
    assert "2 rows repeat an earlier prompt and were dropped, 1 of them" in caplog.text
    assert all("\n" not in r.message for r in caplog.records)


def test_options_behind_a_name(tmp_path, caplog):
    path = tmp_path / "q.csv"
    path.write_text("question,solution,family\n1+1,2,s\n1+2,3,s\n2*2,4,p\n")
    found = load_problems(f"{path}:prompt=question:answer=solution:math:1:max=64")
    assert [(p.id, p.answer, p.family) for p in found.items] == [("0", "2", "s"), ("2", "4", "p")]
    assert (found.world, found.max_prompt) == ("math", 64)
    plain = load_problems(f"{path}:prompt=question:answer=solution")
    assert (plain.world, plain.max_prompt) == ("file", None)
    worlds = [
        load_problems(f"{path}:prompt=question:answer=solution:{g}") for g in ("string", "math", "parity")
    ]
    assert worlds[0].hash() == plain.hash() and len({w.hash() for w in worlds}) == 3
    assert dataclasses.replace(plain, max_prompt=9).hash() != plain.hash()
    with pytest.raises(SeptError, match="column 'prompt' is missing; columns are question"):
        load_problems(f"{path}:math")
    with pytest.raises(SeptError, match="option 'maths' is unknown"):
        load_problems(f"{path}:maths")
    assert "not used" not in caplog.text


def test_files_that_number_their_rows_can_be_joined(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"prompt,answer\n1+{name}:,2\n2+{name}:,3\n")
    joined = load_problems(f"{tmp_path / 'a.csv'}+{tmp_path / 'b.csv'}")
    assert [p.id for p in joined.items] == ["0", "1", "b/0", "b/1"]


def hub(tmp_path, monkeypatch, name, rows, commit):
    """A data set's commit in the cache of `datasets`, as a download leaves it there."""
    import datasets

    source, cache = benchmarks.BENCHMARKS[name], tmp_path / "cache"
    owner, repo = source.repo.split("/")
    folder = tmp_path / commit / repo
    (folder / "data").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / "data" / f"{source.split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {source.config or 'default'}\n  data_files:\n"
        f"  - split: {source.split}\n    path: data/{source.split}-*\n---\n"
    )
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    made = datasets.load_dataset(str(folder), source.config, split=source.split)
    made = Path(made.cache_files[0]["filename"]).parent  # cache/repo/config/version/hash
    target = cache / f"{owner}___{made.parents[2].name}" / made.parent.relative_to(made.parents[2])
    target.mkdir(parents=True, exist_ok=True)
    made.rename(target / commit)


ROWS = {
    "math500": (
        {"problem": "q", "solution": "s", "answer": "a", "unique_id": "test/1.json"},
        "test/1.json",
    ),
    "amc23": ({"id": 7, "question": "q", "answer": "a", "url": "u"}, "7"),
    "minerva": ({"question": "q", "answer": "a"}, "0"),
    "olympiad": ({"id": 1606, "question": "q", "final_answer": ["a"], "unit": None}, "1606"),
    "aime24": ({"id": 60, "problem": "q", "solution": "s", "answer": "a", "year": "2024"}, "60"),
    "aime25": ({"id": "0", "problem": "q", "answer": "a"}, "0"),
    "gsm8k": ({"question": "q", "answer": "so it is\n#### ,a"}, "0"),
    "deepscaler": ({"problem": "q", "answer": "a", "solution": ""}, "0"),
    "openthoughts-math": (
        {
            "domain": "math",
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": r"<think>\boxed{b}</think> \boxed{a}"},
            ],
        },
        "0",
    ),
}


@pytest.mark.parametrize("name", sorted(benchmarks.BENCHMARKS))
def test_named_sets_through_datasets(name, tmp_path, monkeypatch, caplog):
    row, id = ROWS[name]
    rows = [row]
    if name == "openthoughts-math":  # other domains go, and repeated questions
        again = {**row, "conversations": [row["conversations"][0], {"from": "gpt", "value": "\\boxed{z}"}]}
        rows = [{**row, "domain": "code"}, row, again]
        id = "1"
    pinned = benchmarks.BENCHMARKS[name].revision
    hub(tmp_path, monkeypatch, name, rows, pinned)
    found = load_problems(name)
    family = benchmarks.BENCHMARKS[name].family
    assert found.items == (Problem(f"{family}/{id}", family, "q", "a"),)
    assert found.world == "math" and found.max_prompt == 1024
    assert found.name == f"{name}@{pinned}" and "no commit is pinned" not in caplog.text


def test_the_commit_that_was_loaded_is_named(tmp_path, monkeypatch, caplog):
    """Without the hub `datasets` takes the newest commit of its cache, whatever was asked for."""
    pinned, other = benchmarks.BENCHMARKS["amc23"].revision, "a" * 40
    for commit, answer in ((pinned, "1"), (other, "2")):
        hub(tmp_path, monkeypatch, "amc23", [{"id": 7, "question": "q", "answer": answer}], commit)
    found = load_problems(f"amc23@{other}:parity:5")
    assert found.name == f"amc23@{other}:parity:5" and found.items[0].answer == "2"
    with pytest.raises(SeptError, match=f"commit {pinned} cannot be had.*cache, {other}; .*amc23@{other}"):
        load_problems("amc23")
    assert "no commit is pinned" not in caplog.text
    assert load_problems("amc23@main").name == f"amc23@{other}"
    assert f"no commit is pinned, took {other}; pin amc23@COMMIT" in caplog.text


def test_every_declared_set_and_model_is_pinned():
    from sept.presets import SHAPES

    commits = [source.revision for source in benchmarks.BENCHMARKS.values()]
    commits += [shape.hub.partition("@")[2] for shape in SHAPES.values()]
    assert all(re.fullmatch("[0-9a-f]{40}", commit or "") for commit in commits)
    assert len(set(commits)) == len(commits)


def test_a_data_set_that_cannot_be_had_is_one_line():
    with pytest.raises(SeptError, match="math500.*6e4ed1a2.*cannot be loaded.*a file of your own") as error:
        load_problems("math500")
    assert "\n" not in str(error.value)


def test_a_set_with_other_columns_is_refused(tmp_path, monkeypatch):
    hub(tmp_path, monkeypatch, "aime25", [{"question": "q", "answer": "a"}], "b" * 40)
    with pytest.raises(SeptError, match="column 'problem' is missing"):
        load_problems(f"aime25@{'b' * 40}")


def test_long_prompts_are_dropped_counted_and_named(caplog):
    items = tuple(Problem(f"{n}", "f", "w " * n, "1") for n in (3, 9, 5, 8))
    some = ProblemSet("some", items)
    assert fitting(some, str.split, 9) is some
    left = fitting(some, str.split, 5)
    assert [p.id for p in left.items] == ["3", "5"] and left.dropped == 2
    assert "2 of 4 prompts have more than 5 tokens and were dropped: 9, 8" in caplog.text
    assert len(fitting(dataclasses.replace(some, max_prompt=8), str.split, 100).items) == 3
    for refused, room in ((some, 2), (dataclasses.replace(some, world="toy"), 8)):
        with pytest.raises(SeptError, match="tokens"):
            fitting(refused, str.split, room)
