"""Several processes equal one: torchrun with gloo on CPU, against the same run in this process."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch
from conftest import random_policy
from safetensors.torch import load_file

from sept import distributed
from sept.config import SeptError, preset
from sept.distributed import join

HERE = Path(__file__).parent
SHARDINGS = ("ddp", "fsdp")
SMALL = {"rounds": 4, "warmup": 0, "questions": 7, "mini_batch": 7, "micro_batch": 3, "max_new_tokens": 12,
         "save_every": 2, "lr": 1e-3, "margins_every": 2}  # fmt: skip


def case(name, arm="sept", **fields):
    own = (
        "base",
        "compute",
        "chunk",
        "engine",
        "die",
        "signal",
        "poison",
        "fails",
        "stop",
        "resume",
        "odd",
    )
    tricks = {k: fields.pop(k) for k in own if k in fields}
    return {"name": name, "arm": arm, **tricks, "fields": {**SMALL, **fields}}


# Odd numbers of questions and micro-batches, accumulation, every objective, every normalisation.
CASES = {
    "nll": case("nll", loss_normalisation="token"),
    "entropy": case("entropy", "em-ft", loss_normalisation="sequence-sum", gradient_checkpointing=True),
    "grpo": case("grpo", "grpo", G=3, mu=2, loss_normalisation="microbatch-token"),
    "large head": case("large head", chunk=1000, engine="transformers"),
    "offline": case("offline", "offline", loss_normalisation="microbatch-token", micro_batch=7),
    "lagging": case("lagging", questions=1, mini_batch=1, refresh_every=3),
}


def torchrun(world, folder, cases, **environment):
    """Run cases on `world` processes; returns the finished command."""
    listed = folder / f"{len(list(folder.iterdir()))}.json"
    listed.write_text(json.dumps(list(cases)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(world),
    ]
    paths = f"{HERE.parent}:{HERE}:{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment}
    return subprocess.run(
        [*command, HERE / "ranks.py", folder, listed],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def sharded(name, sharding, **tricks):
    """A case of CASES on several ranks, as its own run."""
    one = CASES[name]
    fields = {**one["fields"], "sharding": sharding}
    return {**one, "name": f"{sharding} {name}", "fields": fields, **tricks}


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / name / "rounds.jsonl").open()]


def compare(folder, name, other, tokens=True):
    """Same answers, losses to 1e-6, weights to 1e-5 of each tensor's norm; prints what was found."""
    if tokens:
        ours, theirs = (load_file(folder / f"{n}.safetensors") for n in (name, other))
        assert set(ours) == set(theirs) and len(ours) >= 6
        for key in (k for k in ours if k.endswith("tokens")):
            assert torch.equal(ours[key], theirs[key]), f"{other}: answers of draw {key}"
    one, two = rows_of(folder, name), rows_of(folder, other)
    assert [(r["round"], r["accuracy"], r["version"], *r) for r in one] == [
        (r["round"], r["accuracy"], r["version"], *r) for r in two
    ]
    summed = json.loads((folder / name / "config.json").read_text())["config"]["loss_normalisation"]
    for row in (
        *one,
        *two,
    ):  # a sum over an answer's tokens has as many roundings: nats a token, as the others
        row["loss"] /= row["length"] if summed == "sequence-sum" else 1
    gaps = [
        max(abs(a[k] - b[k]) / max(1, abs(a[k])) for a, b in zip(one, two, strict=True))
        for k in ("loss", "nll", "entropy", "grad_norm")  # Adam and clipping hide a scale of the gradient
    ]
    a, b = (load_file(folder / n / "final" / "model.safetensors") for n in (name, other))
    assert set(a) == set(b)
    far = max(((a[k] - b[k]).norm() / a[k].norm()).item() for k in a)
    shown = ", ".join(f"{g:.1e}" for g in (*gaps, far))
    print(f"{other}: loss, nll, entropy, gradient, weights {shown}")
    assert max(gaps[:3]) <= 1e-6 and gaps[3] <= 1e-4 and far <= 1e-5


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """CASES by one process and, with each sharding, by two; runs that two ranks cut off; runs that fail."""
    folder = tmp_path_factory.mktemp("runs")
    cases = [sharded(name, how) for how in SHARDINGS for name in CASES]
    for how in SHARDINGS:
        for name in ("nll", "offline"):
            cases.append(sharded(name, how, stop=3) | {"name": f"{how} {name} cut"})
        cases.append(case(f"{how} poisoned", poison=[1, 2], fails=True, sharding=how))
    cases.append(case("odd", odd={"lr": 2e-3}, fails=True))
    mixed = {"compute": "bfloat16", "engine": "transformers", "lr": 1e-4}
    cases.append(case("fsdp mixed", **mixed, sharding="fsdp"))
    done = torchrun(2, folder, cases)
    assert done.returncode == 0, done.stderr[-3000:]
    for one in (*CASES.values(), case("mixed", **mixed)):
        ranks.run(folder, one)
    return folder


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name, sharding, runs):
    compare(runs, name, f"{sharding} {name}")


def test_mixed_precision_keeps_float32_weights(runs):
    """As on a GPU: computed in bfloat16, which rounds elsewhere when layers are gathered in it."""
    one, two = rows_of(runs, "mixed"), rows_of(runs, "fsdp mixed")
    assert all(abs(a["loss"] / b["loss"] - 1) < 0.1 for a, b in zip(one[:1], two[:1], strict=True))
    assert all(row["sampler_gap"] < 0.05 and 0 < row["grad_norm"] for row in two)
    for name in ("mixed", "fsdp mixed"):
        trained = load_file(runs / name / "final" / "model.safetensors")
        assert all(value.dtype == torch.float32 for value in trained.values())


def test_a_checkpoint_of_two_ranks_continues_on_one_and_on_three(runs):
    cases = []
    for how, other in (("ddp", "fsdp"), ("fsdp", "ddp")):  # sharded or not does not matter to it either
        for name in ("nll", "offline"):
            assert len(list((runs / f"{how} {name} cut" / "checkpoint-2").glob("policy-*-of-2.*"))) == 2
            for number in (1, 3):
                shutil.copytree(runs / f"{how} {name} cut", runs / f"{how} {name} on {number}")
            ranks.run(runs, CASES[name] | {"name": f"{how} {name} on 1", "resume": True})
            cases.append(sharded(name, other, resume=True) | {"name": f"{how} {name} on 3"})
    done = torchrun(3, runs, cases)
    assert done.returncode == 0, done.stderr[-3000:]
    for one in cases:
        for number in (1, 3):
            other = one["name"][:-1] + str(number)
            assert len(load_file(runs / f"{other}.safetensors")) == 6, "the probe and two rounds were drawn"
            compare(runs, one["name"].split()[1], other, tokens=False)


def test_what_goes_wrong_on_one_rank_stops_all_with_one_message(runs):
    for how in SHARDINGS:
        first, second = ((runs / f"{how} poisoned.{rank}.error").read_text() for rank in range(2))
        assert first == second and "round 2, batch 0: the loss" in first and "checkpoint-2" in first
    for rank in range(2):
        said = (runs / f"odd.{rank}.error").read_text()
        assert said.startswith(f"rank {rank}: ranks differ in config")


def test_a_killed_rank_ends_all_and_is_named(tmp_path):
    done = torchrun(2, tmp_path, [case("killed", rounds=1000, die=[1, 2], signal="SIGKILL")])
    assert done.returncode != 0 and time.time() - float((tmp_path / "died").read_text()) < 60
    cause = done.stderr[done.stderr.index("Root Cause (first observed failure)") :]
    assert "rank      : 1" in cause and "SIGKILL" in cause


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(tmp_path):
    listed = [case("hung", rounds=1000, die=[1, 2], signal="SIGSTOP")]
    done = torchrun(2, tmp_path, listed, SEPT_TIMEOUT="10")
    said = (tmp_path / "hung.0.error").read_text()
    assert done.returncode != 0 and "rank 0 lost another rank" in said and "Ranks 1 failed to pass" in said


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_twenty_rounds_on_base_h(sharding, tmp_path):
    fields = {"base": "H", "rounds": 20, "questions": 21, "mini_batch": 7, "micro_batch": 3, "lr": 1e-4,
              "max_new_tokens": 56, "margins_every": 0}  # fmt: skip
    cases = [
        case("nll", **fields),
        case("entropy", "em-ft", **fields, loss_normalisation="sequence-sum"),
        case("grpo", "grpo", **fields, G=2, loss_normalisation="microbatch-token"),
    ]
    many = [
        c | {"name": f"{sharding} {c['name']}", "fields": {**c["fields"], "sharding": sharding}}
        for c in cases
    ]
    done = torchrun(2, tmp_path, many)
    assert done.returncode == 0, done.stderr[-3000:]
    for one, two in zip(cases, many, strict=True):
        ranks.run(tmp_path, one)
        compare(tmp_path, one["name"], two["name"])


@pytest.mark.vllm
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_vllm_engine_per_rank(sharding, tmp_path):
    pytest.importorskip("vllm")
    engine = {"base": "random wide", "engine": "vllm:kv_cache_memory_bytes=268435456"}
    done = torchrun(2, tmp_path, [case("vllm", sharding=sharding, **engine)])
    assert done.returncode == 0, done.stderr[-3000:]
    rows = rows_of(tmp_path, "vllm")
    assert max(row["sampler_gap"] for row in rows) < 1e-5 and rows[-1]["version"] == 4
    drawn = load_file(tmp_path / "vllm.safetensors")
    ranks.run(tmp_path, case("alone", **engine))
    alone = load_file(tmp_path / "alone.safetensors")
    same = [torch.equal(drawn[k], alone[k]) for k in drawn if k.endswith("tokens")]
    print(f"{sum(same)} of {len(same)} draws are those of one process")


# --- what is asked for is what is there -------------------------------------------------------------------


def test_processes_that_are_not_there_are_refused(monkeypatch):
    for how in SHARDINGS:
        with pytest.raises(SeptError, match="single process"):
            join(how)
    assert join("auto").world == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for how in ("auto", "fsdp"):
        with pytest.raises(SeptError, match="LOCAL_RANK is not set"):
            join(how)
    with pytest.raises(SeptError, match="adapters"):
        preset("sept", sharding="fsdp", lora_rank=2)
    assert preset("sept", sharding="fsdp").key() == preset("sept").key(), "it is the same run"


@pytest.fixture()
def group(monkeypatch):
    """The environment of torchrun with one process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    yield
    torch.distributed.destroy_process_group()


def test_sharding_that_is_not_there_is_refused(group, monkeypatch):
    from torch.distributed.tensor import DTensor

    policy = random_policy()
    here = join("fsdp")
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "_sharded", distributed._copied)  # as a launcher did in silence
        with pytest.raises(SeptError, match="sharding = 'fsdp' on 1 ranks"):
            here.spread(policy)
    here.spread(policy)
    assert all(isinstance(p, DTensor) for p in policy.model.parameters())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SeptError, match="asked for 2 ranks"):
        join("ddp")
