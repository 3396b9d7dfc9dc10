"""The benchmarks run, and what they make of their runs is right."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch):
    """bench/ as the scripts there see each other."""
    monkeypatch.syspath_prepend(str(BENCH))
    found = []
    for name in ("harness", "run"):
        spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        found.append(module)
    return found


def test_a_ratio_is_made_run_by_run_at_each_sides_best_thread_count(bench):
    harness, _ = bench
    rows = []
    for run, load in enumerate((1.0, 2.0, 10.0)):  # whatever slows the machine hits both sides
        for name, seconds in (("ours/1", 1.0), ("ours/2", 0.5), ("peer/1", 2.0), ("peer/2", 8.0)):
            rows.append(dict(contender=name, threads=1, run=run, units=100, wall=seconds * load, cpu=1.0))
    found = harness.ratio(pd.DataFrame(rows), "ours", "peer")
    assert found["ratio"] == found["lo"] == found["hi"] == pytest.approx(4.0)
    assert (found["ours_as"], found["peer_as"]) == ("ours/2", "peer/1")


def test_contenders_take_turns_and_their_threads(bench):
    import torch

    harness, _ = bench
    calls = []

    def work(name):
        return lambda: calls.append((name, torch.get_num_threads())) or 1.0

    runs = harness.interleave({"a/1": (1, work("a")), "b/2": (2, work("b"))}, 3)
    assert calls[:2] == [("a", 1), ("b", 2)], "one turn each to warm up"
    assert [c[0] for c in calls[2:]] == list("abbaab") and len(runs) == 6
    assert torch.get_num_threads() == 1


def test_a_limits_operations_are_those_that_torch_counts(bench, monkeypatch):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from sept.policy import load_policy

    harness, _ = bench
    monkeypatch.setattr(harness, "rates", lambda: {"flops": 1.0, "bytes": 1.0})
    model = load_policy("H").model
    model.set_attn_implementation("eager")  # what the counter knows
    P, T, c = 11, 7, model.config
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.ones(1, P + T, dtype=torch.long), logits_to_keep=T)
    # Attention of later tokens is counted there, though no result needs it.
    pairs = (P + T) ** 2 - (P + T) * (P + T + 1) // 2
    needed = counter.get_total_flops() - 4 * c.hidden_size * c.num_hidden_layers * pairs
    flops, moved = harness.limits(model, [P], [T])
    assert flops == needed
    trained, more = harness.limits(model, [P], [T], passes=2, steps=1)
    assert trained == needed * (1 + 2 * 3) and more > moved
    read = harness.limits(model, [P], [0])[0]  # three answers to one question: it is read once
    body = harness.limits(model, [P], [1])[0] - read
    assert harness.limits(model, [P], [1, 1, 1], 3)[0] == read + 3 * body


def test_a_regression_is_told_by_its_ratio(bench):
    _, run = bench
    before = pd.DataFrame(
        [dict(what="x", peer_name="p", ratio=4.0), dict(what="y", peer_name="p", ratio=4.0)]
    )
    now = pd.DataFrame(
        [
            dict(what="x", peer_name="p", ratio=2.0, lo=1.9, hi=2.9),
            dict(what="y", peer_name="p", ratio=2.9, lo=2, hi=3.1),
        ]
    )
    assert run.regressions(now, before) == ["x / p: 2.00, was 4.00"]


def test_one_benchmark_again_leaves_the_others_as_they_are(bench, monkeypatch, tmp_path):
    _, run = bench
    row = dict(peer_name="p", goal=1.0, ratio=2.0, lo=1.9, hi=2.1, ours=2, peer=1, ours_as="s", peer_as="s")

    def part(what, wall):
        return lambda smoke: iter([(dict(row, what=what), pd.DataFrame([dict(contender="x", wall=wall)]))])

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path), *arguments])
        run.main()

    monkeypatch.setattr(run, "ROWS", {"a": part("one", 1.0), "b": part("two", 1.0)})
    main()
    monkeypatch.setattr(run, "ROWS", {"a": part("one", 3.0), "b": part("two", 3.0)})
    main("--only", "a")
    assert pd.read_csv(tmp_path / "results.csv")["what"].tolist() == ["one", "two"]
    assert pd.read_csv(tmp_path / "runs.csv")["wall"].tolist() == [3.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["run.py", "--smoke", "--only", "sampling,evaluation,theorem,grading,starting"],
        ["run.py", "--smoke", "--only", "larger,round"],
        ["growth.py", "--smoke"],
        ["gpu.py", "--smoke", "--device", "cpu", "--models", "H"],
    ],
)
def test_every_benchmark_runs(arguments, tmp_path):
    name, *rest = arguments
    done = subprocess.run(
        [sys.executable, BENCH / name, *rest, "--out", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.concat([pd.read_csv(path) for path in tmp_path.glob("*.csv") if path.name != "runs.csv"])
    assert len(table) >= 3 and list(tmp_path.glob("*.json")) + list(tmp_path.glob("*.png"))
