"""A short fuzz of everything that others may have written; `make soak` runs it a thousand times longer.

Findings are kept below as examples.
"""

import json
import shutil
from contextlib import suppress

import pytest
import torch
from conftest import random_policy
from fuzzing import (
    OPTIONS,
    check_config,
    check_grading,
    check_name,
    check_problem_file,
    damage,
    fields,
    name,
    pair,
    problem_file,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_faults import content, cut

from sept import cli, grading
from sept.checkpoints import newest_rows, restore
from sept.config import SeptError, from_dict, notice
from sept.distributed import Ranks
from sept.durable import seal
from sept.grading import last_boxed
from sept.policy import BASES, Policy, load_policy
from sept.problems import load_problems
from sept.sampling_static import StaticEngine

quick = settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
randoms = st.randoms(use_true_random=False)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """A short limit, and verdicts of this test alone."""
    monkeypatch.setattr(grading, "_verdicts", {})
    monkeypatch.setattr(grading, "LIMIT", 0.5)
    monkeypatch.setattr(grading, "PATIENCE", 100)
    notice.cache_clear()


@quick
@given(randoms)
def test_answers(rng):
    pairs = [pair(rng) for _ in range(4)]
    for world in ("math", "parity", "file"):
        check_grading(pairs, world)


@quick
@given(st.text(max_size=200), st.text(max_size=20))
def test_any_text_is_an_answer(given_, reference):
    check_grading([(rf"\boxed{{{given_}}}", reference), (given_, reference)], "file")
    last_boxed(given_)


@quick
@given(randoms)
def test_problem_files(tmp_path, rng):
    suffix, data = problem_file(rng)
    check_problem_file(tmp_path, suffix, data, rng.choice(OPTIONS))


@quick
@given(st.binary(max_size=300), st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]))
def test_any_bytes_are_a_problem_file(tmp_path, data, suffix):
    check_problem_file(tmp_path, suffix, data)


@quick
@given(randoms)
def test_configs_and_names(rng):
    check_config(fields(rng), rng.choice(["sept", "grpo", "offline-sft"]))
    check_name(name(rng))


@quick
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=5
    )
)
def test_any_json_is_a_value(value):
    for field in ("lr", "rounds", "objective", "tau_t", "gradient_checkpointing", "refresh_every", "seed"):
        check_config({field: value})


# --- findings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "\ud800", "answer": "2"}, "row 1 has half a character"),
        ({"prompt": "q", "answer": "2", "id": "\udfff"}, "row 1 has half a character"),
        ({"prompt": [["user", "x"]], "answer": "2"}, "row 1 has an empty prompt"),
        ({"prompt": [None, 7], "answer": "2"}, "row 1 has an empty prompt"),
        ({"prompt": {"role": "user"}, "answer": "2"}, "row 1 has an empty prompt"),
    ],
)
def test_cells_that_are_no_text_are_named(row, words, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    with pytest.raises(SeptError, match=words):
        load_problems(str(tmp_path / "p.jsonl"))


def test_a_byte_order_mark_is_no_data(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "q", "answer": "2"}')
    assert load_problems(str(tmp_path / "p.jsonl")).items[0].prompt == "q"


@pytest.mark.parametrize(
    "given_",
    [
        {"lr": 10**400},
        {"rounds": 2**63},
        {"append_eos": 1},
        {"gradient_checkpointing": "no"},
        {"objective": []},
    ],
)
def test_values_of_the_wrong_kind_are_refused(given_):
    with pytest.raises(SeptError, match=next(iter(given_))):
        from_dict(given_)


def test_names_that_crashed_or_hung():
    for text in ("toy:test:\u00b2", "toy:dev:" + "9" * 5000):
        with pytest.raises(SeptError, match="unknown"):
            load_problems(text)
    with pytest.raises(SeptError, match="temperatures"):
        cli.parse_temperatures("0:1:1e-12")
    assert cli._fields(["lr=" + "[" * 100_000])["lr"].startswith("[[")


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("cut") / "run"
    cut(out)
    return out


def check_checkpoint(out, rng):
    """Damage to the newest: the one before is used. The same damage, sealed: one line or a restored run."""
    notice.cache_clear()
    folder = out / "checkpoint-3"
    before = content(folder)
    file = folder / rng.choice(sorted(before))
    try:
        file.write_bytes(damage(rng, before[file.name]))
        changed = content(folder) != before
        if changed and file.name == "state.json":  # another space or line end says the same
            with suppress(ValueError, RecursionError):
                changed = json.loads(file.read_text()) != json.loads(before[file.name])
        assert len(newest_rows(out)) == (2 if changed else 3)
        if changed and file.name != "state.json":
            seal(folder, {"version": 6, "sampler_version": 6})
        policy = random_policy(seed=1)
        restore(folder, policy, torch.optim.AdamW(policy.model.parameters()), StaticEngine(), Ranks())
    except SeptError as error:
        assert "\n" not in str(error) and "checkpoint-3" in str(error)
    finally:
        for name_, data in before.items():
            (folder / name_).write_bytes(data)


@settings(quick, max_examples=60)
@given(randoms)
def test_checkpoints(cut_run, rng):
    check_checkpoint(cut_run, rng)


@settings(quick, max_examples=60)
@given(
    st.binary(max_size=60)
    | st.sampled_from([b"{}", b"[]", b"[" * 9000, b'{"seal": 1, "sha256": []}', b"\xff"])
)
def test_any_bytes_are_a_state(cut_run, data):
    notice.cache_clear()
    state = cut_run / "checkpoint-3" / "state.json"
    before = state.read_bytes()
    try:
        state.write_bytes(data)
        assert len(newest_rows(cut_run)) == 2
    finally:
        state.write_bytes(before)


def check_model(folder, rng):
    """A model folder with damage somewhere loads or is refused in one line."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(BASES / "H", folder)
    names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    file = folder / rng.choice([*names, "model.safetensors", "model.safetensors"])
    data = file.read_bytes()
    head = 4000 if file.suffix == ".safetensors" else len(data)  # its header, where damage tells
    file.write_bytes(damage(rng, data[:head]) + data[head:])
    try:
        assert isinstance(load_policy(str(folder)), Policy)
    except SeptError as error:
        assert "\n" not in str(error)
        return False
    return True


@settings(quick, max_examples=25)
@given(randoms)
def test_models(tmp_path, rng):
    check_model(tmp_path / "model", rng)
