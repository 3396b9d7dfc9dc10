"""What people get wrong, and the one line that they are told: what it is, where it is, and what to do.

A row is a command, what names the culprit, and what names the remedy.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys

import pytest
import torch
from conftest import random_policy
from safetensors.torch import load_file, save_file

from sept import cli
from sept.config import Config, SeptError, TrainingError, preset
from sept.evaluation import pass_at_k, question_scores
from sept.experiments import Run, Score, check_store, compute, counts
from sept.figures import redraw
from sept.general import find_tasks
from sept.live import state_of
from sept.loop import train
from sept.policy import BASES, load_policy
from sept.problems import load_problems
from sept.profiles import profile
from sept.runner import run_notebooks
from sept.sampling import make_sampler
from sept.sampling_static import StaticEngine

TRAIN = "train --out out --set rounds=2 --set questions=8 --set mini_batch=4 --set warmup=0 "
DSR = "plan sept-qwen2.5-math-7b-dsr "

COMMANDS = [
    # the command itself
    ("frobnicate", "frobnicate", "--help"),
    ("train", "--out", "--help"),
    ("eval --nonsense", "--nonsense", "--help"),
    ("eval --n many", "--n", "integer"),
    ("train --out out --seed x", "--seed", "integer"),
    (TRAIN + "--threads 0", "threads = 0", "at least 1"),
    ("eval --threads 100000", "threads = 100000", "at most 1024"),
    # fields of the config
    (TRAIN + "--set tau_s", "--set 'tau_s'", "field=value"),
    (TRAIN + "--set temperature=1", "'temperature'", "known are"),
    (TRAIN + "--set taus=1", "'taus'", "did you mean tau_s"),
    (TRAIN + "--set tau_s=0", "tau_s = 0", "above 0"),
    (TRAIN + "--set tau_s=NaN", "tau_s = nan", "finite"),
    (TRAIN + "--set tau_t=-1", "tau_t = -1", "null to tie it"),
    (TRAIN + "--set lr=1e400", "lr = inf", "finite"),
    (TRAIN + "--set rounds=1.5", "rounds = 1.5", "integer of at least 1"),
    (TRAIN + "--set G=0", "G = 0", "at least 1"),
    (TRAIN + "--set clip=2", "clip = 2", "between 0 and 1"),
    (TRAIN + "--set beta2=1", "beta2 = 1", "below 1"),
    (TRAIN + "--set refresh_every=0", "refresh_every = 0", "null for never"),
    (TRAIN + "--set append_eos=yes", "append_eos = 'yes'", "true or false"),
    (TRAIN + "--set append_eos=true --set objective=entropy", "append_eos", "only for objective 'nll'"),
    (TRAIN + "--set objective=sft", "objective = 'sft'", "nll, entropy, grpo"),
    (TRAIN + "--set tau_s_schedule=step", "tau_s_schedule", "constant, linear, cosine"),
    (TRAIN + "--set questions=10", "questions = 10", "multiple of mini_batch"),
    (TRAIN + "--arm grpo --set G=1", "G = 1", "at least 2"),
    (TRAIN + "--set seed=-1", "seed = -1", "at least 0"),
    (TRAIN + "--set sharding=fsdp", "single process", "torchrun"),
    (TRAIN + "--set sharding=fsdp --set lora_rank=2", "lora_rank > 0", "sharding = 'ddp'"),
    (TRAIN + "--set max_new_tokens=5000", "max_new_tokens", "lower it"),
    (TRAIN + "--config nowhere.json", "'nowhere.json'", "No such file"),
    (TRAIN + "--config broken.json", "'broken.json'", "cannot be read as JSON"),
    (TRAIN + "--config list.json", "'list.json'", "JSON object of config fields"),
    (TRAIN + "--config latin.csv", "'latin.csv'", "cannot be read as JSON"),
    # arms and presets
    (TRAIN + "--arm sft", "'sft'", "em-ft"),
    (TRAIN + "--arm ''", "arm ''", "choose one of sept"),
    (TRAIN + "--preset ''", "preset ''", "`sept plan` lists them"),
    ("sweep --preset ''", "preset ''", "`sept plan` lists them"),
    (TRAIN + "--preset sept-qwen", "'sept-qwen'", "did you mean sept-qwen2.5-7b-dsr"),
    (TRAIN + "--preset sweep-qwen2.5-math-7b", "is a sweep", "`sept sweep`"),
    (TRAIN + "--preset sept-qwen2.5-math-7b-dsr --arm sept", "--arm 'sept'", "leave --arm out"),
    ("plan nothing", "'nothing'", "`sept plan` lists them"),
    (DSR + "--device H999", "'H999'", "choose one of H100"),
    (DSR + "--gpus 0", "--gpus 0", "at least 1"),
    (DSR + "--memory nan", "--memory nan", "above 0"),
    (DSR + "--length 0", "--length", "greater than or equal to 1"),
    (DSR + "--model gpt", "'gpt'", "choose one of qwen"),
    (DSR + "--set x=1", "'x'", "known are"),
    (DSR + "--device 4090", "24 GB", "take more --gpus"),
    # models
    ("eval --model Q", "'Q'", "E, F, H, I"),
    ("eval --model ''", "--model", "leave the option out"),
    ("eval --model ./H", "'./H'", "hub id owner/name"),
    ("eval --model note.txt", "'note.txt'", "no such folder"),
    ("eval --model owner/name", "'owner/name'", "internet connection"),
    ("eval --model m/nothing", "'m/nothing'", "needed are config.json"),
    ("eval --model m/broken-config", "'m/broken-config'", "needed are config.json"),
    ("eval --model m/no-weights", "'m/no-weights'", "fetch it again"),
    ("eval --model m/truncated", "'m/truncated'", "fetch it again"),
    ("eval --model m/incomplete", "down_proj.weight", "fetch it again"),
    ("eval --model m/pickled", "pytorch_model.bin", "only safetensors"),
    ("eval --model m/clip", "'m/clip'", "not a causal language model"),
    ("eval --model m/no-tokenizer", "'m/no-tokenizer'", "tokenizer.json"),
    ("eval --model m/broken-tokenizer", "its tokenizer", "fetch its files again"),
    ("eval --model m/other-tokenizer", "34 tokens", "tokenizer that belongs to it"),
    ("eval --model m/endless", "'m/endless'", "set eos_token_id"),
    ("eval --model m/damaged --problems toy:dev:1", "'m/damaged'", "fetch it again"),
    ("eval --device tpu", "'tpu'", "cuda:0"),
    ("eval --device cuda", "no GPU", "choose cpu or auto"),
    ("eval --dtype float16", "'float16'", "float32 or bfloat16"),
    # templates
    ("eval --template fancy", "'fancy'", "choose one of plain"),
    ("eval --template chat", "no chat template", "choose plain"),
    # problems
    ("eval --problems nowhere.jsonl", "'nowhere.jsonl'", "known names are toy:test"),
    ("eval --problems ''", "--problems", "leave the option out"),
    ("eval --problems m", "'m'", "name a file in it"),
    ("eval --problems ok.csv+", r"'ok.csv\+'", r"write name\+name"),
    ("eval --problems ok.csv+ok.csv", "'ok.csv' is named twice", "name it once"),
    ("eval --problems empty.jsonl", "'empty.jsonl'", "at least one row"),
    ("eval --problems head.csv", "'head.csv'", "at least one row"),
    ("eval --problems note.txt", "'note.txt'", ".jsonl, .json, .csv or .parquet"),
    ("eval --problems cols.jsonl", "columns are question, solution", "needed are prompt and answer"),
    ("eval --problems bad.jsonl", "line 3", "correct the file"),
    ("eval --problems numbers.jsonl", "line 2 is not a JSON object", "correct the file"),
    ("eval --problems object.json", "'object.json'", "a list of objects"),
    ("eval --problems wide.csv", "in line 3", "correct the file"),
    ("eval --problems dup.jsonl", "id 'a' appears twice", "or left out"),
    ("eval --problems nan.jsonl", "row 1", "fill it in"),
    ("eval --problems latin.csv", "line 2", "save the file as UTF-8"),
    ("eval --problems half.jsonl", "row 1", "half a character"),
    ("eval --problems false.parquet", "'false.parquet'", "correct the file"),
    ("eval --problems ok.csv:prompt=question", "'question'", "columns are prompt, answer"),
    ("eval --problems ok.csv --grader fancy", "'fancy'", "string, math, parity"),
    ("eval --problems toy:test --grader math", "'toy:test:math'", "name none"),
    ("eval --problems toy:exam", "'toy:exam'", "toy:test, toy:dev or toy:train"),
    ("eval --problems toy:test:mul9", "'toy:test:mul9'", "add3, sub3"),
    ("eval --problems toy:test:0", "'toy:test:0'", "1 to 500"),
    ("eval --problems toy:train", "endless", "use toy:test"),
    ("eval --problems math500", "MATH-500", "check the network"),
    (TRAIN + "--problems one.jsonl", "1 of them are fewer than the 8", "lower `questions`"),
    (TRAIN + "--dev toy:dev:4", "'toy:dev:4'", "add --set eval_every"),
    (TRAIN + "--set eval_every=1 --dev toy:train", "dev questions 'toy:train'", "use toy:dev"),
    ("doctor ''", "problems ''", "known names are"),
    ("doctor nowhere.csv", "'nowhere.csv'", "known names are"),
    ("doctor ok.csv --model Q", "'Q'", "E, F, H, I"),
    # engines
    ("eval --engine vroom", "'vroom'", "choose auto, static"),
    ("eval --engine static:threads=2", "'static:threads=2'", r"vllm\[:setting=value"),
    # numbers
    ("eval --n 0", "n = 0", "at least one answer"),
    ("eval --temperature=-1", "temperature -1.0", "at least 0"),
    ("eval --temperature nan", "temperature nan", "finite"),
    ("eval --seed=-1", "--seed", "greater than or equal to 0"),
    ("eval --max-new-tokens 0", "--max-new-tokens", "greater than or equal to 1"),
    ("eval --max-new-tokens 900", "max_new_tokens", "lower it"),
    ("sweep --temperatures ''", "''", "start:end:step"),
    ("sweep --temperatures a,b", "'a,b'", "start:end:step"),
    ("sweep --temperatures 0:1", "'0:1'", "start:end:step"),
    ("sweep --temperatures 0:1:0.3", "'0:1:0.3'", "whole number of steps"),
    ("sweep --temperatures=-1,0", "'-1,0'", "at least 0"),
    ("sweep --temperatures 0,nan", "'0,nan'", "at least 0"),
    # where results go
    ("eval --json .", "'.'", "name a file"),
    ("eval --json note.txt/x.json", "note.txt", "choose another place"),
    ("status --json m", "'m'", "name a file"),
    ("general --trained F --tasks toy --table .", "'.'", "name a file"),
    ("train --out note.txt", "'note.txt'", "choose another --out"),
    ("train --out note.txt/run", "note.txt/run", "choose another place"),
    ("train --out m", "'m'", "choose another --out"),
    ("train --out run --set rounds=1", "already holds this run", "--resume"),
    ("train --out run --set rounds=1 --seed 1", "different config", "choose another --out"),
    ("train --out run-damaged --resume", "run-damaged/config.json", "remove its folder"),
    ("pretrain --base Z --out z", "'Z'", "F, H, E, I"),
    ("pretrain --base H --out m", "'m'", "choose another --out"),
    ("pretrain --base H --out note.txt/H", "note.txt/H", "choose another place"),
    ("eval --card --problems toy:dev:1", "sept.json", "only models of `sept train`"),
    # what a run shows
    (TRAIN + "--track paper", "'paper'", "choose of .*tensorboard"),
    (TRAIN + "--track aim", "'aim'", "pip install aim"),
    ("status nowhere", "'nowhere'", "name a folder that `sept train --out` made"),
    ("status --follow", "--follow", "name the folders"),
    # the theorem
    ("theorem", "theorem", "--exact"),
    ("theorem --exact --table t.csv", "--table", "take --json"),
    ("theorem --exact --seed=-1", "--seed", "greater than or equal to 0"),
    ("theorem --model H --tau-s 0", "tau_s = 0", "between 0.05 and 20"),
    ("theorem --model H --level heads", "'heads'", "logits, head, full"),
    ("theorem --model H --targets hard", "'hard'", "sampled, soft"),
    ("theorem --model H --steps 0", "steps = 0", "at least 1"),
    ("theorem --model H --prompts nowhere.txt", "'nowhere.txt'", "name a text file"),
    ("theorem --model H --trained m/wide", "vocabularies", "what was trained from it"),
    # figures and claims
    ("figures --profile huge", "'huge'", "smoke, quick"),
    ("figures --profile smoke --only 99", "'99'", "notebooks/"),
    ("figures --profile smoke --only 01,99", "'99'", "notebooks/"),
    ("figures --profile smoke --only 1", "'1'", "two digits"),
    ("figures --profile smoke --only 01 --out note.txt", "'note.txt'", "choose another --out"),
    ("figures --redraw --out nowhere", "'nowhere'", "run `sept figures` first"),
    ("figures --profile smoke --engine vroom --only 01", "'vroom'", "choose auto"),
    ("claims --dir nowhere", "'nowhere'", "run `sept figures`"),
    ("claims --dir damaged", "03_main_result.json", "let its notebook run again"),
    # general tasks
    ("general", "--trained", "--help"),
    ("general --trained F --tasks toy,", "'toy,'", "leave the option out"),
    ("general --trained F --tasks toy --limit 0", "--limit 0", "at least 1"),
    ("general --trained F --tasks toy --template fancy", "'fancy'", "plain or through the chat template"),
    ("general --trained m/wide --tasks toy", "vocabularies differ", "trained from"),
]

ENVIRONMENT = [  # and one more command, under variables that a launcher or a user sets
    ({"RANK": "0"}, TRAIN, "WORLD_SIZE is not set", "torchrun"),
    (
        {
            "RANK": "x",
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": "29400",
        },
        TRAIN,
        "RANK = 'x'",
        "torchrun sets",
    ),
    (
        {
            "RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": "here",
        },
        TRAIN,
        "MASTER_PORT = 'here'",
        "torchrun sets",
    ),
    ({"SEPT_BASES": "x"}, "figures --profile smoke --only 01", "SEPT_BASES = 'x'", "BASES=40"),
    ({"SEPT_ENGINE": "vroom"}, "figures --profile smoke --only 01", "'vroom'", "choose auto"),
]


def policy():
    return load_policy("H")


CALLS = [
    ("preset", lambda: preset("sft"), "'sft'", "choose one of"),
    ("field", lambda: preset("sept", taus=0.5), "'taus'", "did you mean tau_s"),
    ("Config", lambda: Config(mini_batch=True), "mini_batch = True", "integer"),
    ("load_policy", lambda: load_policy("nowhere"), "'nowhere'", "hub id owner/name"),
    ("load_policy device", lambda: load_policy("H", device="gpu"), "'gpu'", "choose auto"),
    ("load_problems", lambda: load_problems("ok.csv:0"), "'0'", "a number from 1 on"),
    (
        "no problems fit",
        lambda: train(
            preset("sept", rounds=1, max_new_tokens=118), policy(), load_problems("long.csv"), _out()
        ),
        "has 1[0-9] tokens",
        "lower max_new_tokens",
    ),
    (
        "engine of the wrong kind",
        lambda: StaticEngine().refresh(random_policy("gpt2")),
        "gpt2",
        "transformers",
    ),
    ("make_sampler", lambda: make_sampler(policy(), "vllm:1"), "vllm", "transformers|name=value"),
    (
        "no prompts",
        lambda: make_sampler(policy()).sample([], [], 1, 1.0, 8, 0),
        "no prompts",
        "give at least one",
    ),
    ("pass_at_k", lambda: pass_at_k(4, 1, 8), "n = 4", "draw more samples"),
    ("question_scores", lambda: question_scores(_uneven()), "counts table", "same number of samples"),
    ("counts", lambda: counts(Score("H", "toy:dev:1", 1.0, 4)), "is missing", r"call compute\(\)"),
    (
        "score behind the end",
        lambda: compute([Score(Run("H", "sept", 0), "toy:dev:1", 1.0, 4, at=999)]),
        "round 999",
        "120 rounds only",
    ),
    ("store of another version", lambda: _stamp("1"), "results version 1", "SEPT_RESULTS"),
    ("store with a torn stamp", lambda: _stamp("\x00"), "results version", "SEPT_RESULTS"),
    ("profile", lambda: profile("huge"), "'huge'", "choose one of"),
    (
        "a notebook's parameter",
        lambda: run_notebooks("smoke", _out(), "01", {"temperature": 1}),
        "'temperature'",
        "it has",
    ),
    ("redraw", lambda: redraw(_out(), _out()), "no figures", "run `sept figures`"),
    ("find_tasks file", lambda: find_tasks(["note.txt"]), "note.txt", "the task file"),
    ("state_of", lambda: state_of(_out()), "holds no run", "sept train --out"),
]


def _out():
    from pathlib import Path

    return Path("out")


def _uneven():
    import pandas as pd

    return pd.DataFrame({"id": ["1", "2"], "family": "f", "n": [2, 3], "c": [1, 1]})


def _stamp(text):
    from pathlib import Path

    store = Path(os.environ["SEPT_RESULTS"])
    store.mkdir(exist_ok=True)
    (store / "results_version").write_text(text)
    check_store()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with everything that the rows name."""
    root = tmp_path_factory.mktemp("mistakes")
    texts = {
        "empty.jsonl": "",
        "head.csv": "prompt,answer\n",
        "note.txt": "a note",
        "cols.jsonl": '{"question": "1+1:", "solution": "2"}\n',
        "bad.jsonl": '{"prompt": "1+1:", "answer": "2"}\n\n{"prompt": oops}\n',
        "numbers.jsonl": '{"prompt": "1+1:", "answer": "2"}\n3\n',
        "object.json": '{"prompt": "1+1:", "answer": "2"}',
        "wide.csv": "prompt,answer\n1+1:,2\n1+2:,3,4\n",
        "dup.jsonl": "".join(f'{{"id": "a", "prompt": "1+{i}:", "answer": "2"}}\n' for i in (1, 2)),
        "nan.jsonl": '{"prompt": "1+1:", "answer": NaN}\n',
        "half.jsonl": '{"prompt": "\\ud800", "answer": "2"}\n',
        "one.jsonl": '{"prompt": "1+1:", "answer": "2"}\n',
        "ok.csv": "prompt,answer\n1+1:,2\n1+2:,3\n",
        "long.csv": "prompt,answer\n" + "".join(f"{10000 + i}+20000:,{30000 + i}\n" for i in range(128)),
        "false.parquet": "no parquet",
        "broken.json": "{",
        "list.json": "[1]",
        "damaged/03_main_result.json": "{",
        "run-damaged/config.json": "{",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    (root / "latin.csv").write_bytes("prompt,answer\nGröße:,2\n".encode("latin-1"))
    models = root / "m"
    names = "broken-config no-weights truncated incomplete pickled clip no-tokenizer broken-tokenizer"
    for name in f"{names} other-tokenizer endless damaged wide".split():
        shutil.copytree(BASES / "H", models / name)
    (models / "nothing").mkdir()
    (models / "broken-config" / "config.json").write_text("{")
    (models / "no-weights" / "model.safetensors").unlink()
    weights = models / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    tensors = load_file(BASES / "H" / "model.safetensors")
    fewer = {k: v for k, v in tensors.items() if k != "model.layers.1.mlp.down_proj.weight"}
    save_file(fewer, models / "incomplete" / "model.safetensors", metadata={"format": "pt"})
    torch.save({}, models / "pickled" / "pytorch_model.bin")
    (models / "pickled" / "model.safetensors").unlink()
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, models / "damaged" / "model.safetensors", metadata={"format": "pt"})
    _change(models / "clip" / "config.json", architectures=["CLIPModel"], model_type="clip")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (models / "no-tokenizer" / file).unlink()
    (models / "broken-tokenizer" / "tokenizer.json").write_text("{")
    for name, more in (("other-tokenizer", 10), ("wide", 0)):
        tokenizer = json.loads((BASES / "H" / "tokenizer.json").read_text())
        vocab = tokenizer["model"]["vocab"]
        vocab |= {f"x{i}": 24 + i for i in range(more)}
        if not more:
            vocab["q"] = vocab.pop("r")
        (models / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        _change(models / "endless" / file, eos_token_id=None, eos_token=None)
    train(preset("sept", rounds=1), policy(), load_problems("toy:train"), root / "run")
    shutil.rmtree(root / "run" / "final")
    return root


def _change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    yield
    os.environ.pop("SEPT_ENGINE", None)  # `sept figures --engine` sets it for its notebooks
    shutil.rmtree(place / "out", ignore_errors=True)


def complaint(monkeypatch, capfd, command):
    """Exit code and standard error of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["sept", *shlex.split(command)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main()
    lines = capfd.readouterr().err.splitlines()  # on a slow machine a bar may have come up
    return end.value.code, "\n".join(x for x in lines if not re.match(r"(sampling|train \S+): \d+/", x))


def check(line, culprit, remedy):
    assert "\n" not in line and "Traceback" not in line and "None" not in line, line
    assert re.search(culprit.replace("'.'", r"'\.'"), line), (culprit, line)
    assert re.search(remedy, line), (remedy, line)
    assert 30 < len(line) < 520, "one line that says what, where and what to do"


@pytest.mark.parametrize(("command", "culprit", "remedy"), COMMANDS, ids=[c for c, *_ in COMMANDS])
def test_commands(monkeypatch, capfd, place, command, culprit, remedy):
    before = sorted(place.rglob("[!.]*"))
    code, err = complaint(monkeypatch, capfd, command)
    (line,) = err.splitlines()
    assert code == 2 and line.startswith("sept: "), err
    check(line, culprit, remedy)
    assert sorted(place.rglob("[!.]*")) == before, "nothing may be written"


@pytest.mark.parametrize(("variables", "command", "culprit", "remedy"), ENVIRONMENT)
def test_environment(monkeypatch, capfd, variables, command, culprit, remedy):
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, err = complaint(monkeypatch, capfd, command)
    (line,) = err.splitlines()
    assert code == 2
    check(line, culprit, remedy)


@pytest.mark.parametrize(("call", "culprit", "remedy"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_calls(call, culprit, remedy):
    with pytest.raises(SeptError) as stop:
        call()
    check(str(stop.value), culprit, remedy)


def test_runs_that_go_wrong_end_with_1(monkeypatch, capfd):
    code, err = complaint(monkeypatch, capfd, TRAIN + "--model m/damaged")
    assert code == 1
    check(err.splitlines()[-1], "round 0, batch 0", "lower lr or raise tau_t")
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        MemoryError(),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("sept.loop._steps", fail)
        shutil.rmtree("out", ignore_errors=True)
        code, err = complaint(monkeypatch, capfd, TRAIN)
        assert code == 1
        check(err.splitlines()[-1], "out of memory", "lower micro_batch")
    monkeypatch.setattr(
        "sept.loop._steps", lambda *_: (_ for _ in ()).throw(TrainingError("round 0: lost"))
    )
    shutil.rmtree("out", ignore_errors=True)
    code, err = complaint(monkeypatch, capfd, TRAIN)
    assert code == 1 and err.splitlines()[-1] == "sept: round 0: lost"


def test_figures_where_only_the_wheel_is_installed(monkeypatch, capfd, place):
    for command, absent in (
        ("figures --profile smoke", "papermill"),
        ("figures --redraw --out damaged", "matplotlib"),
    ):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, absent, None)
            without.delitem(sys.modules, "sept.figures", raising=False)
            code, err = complaint(without, capfd, command)
        assert code == 2
        check(err, absent, r"pip install 'sept\[notebooks\]'")
    monkeypatch.setattr("sept.runner.__file__", str(place / "sept" / "runner.py"))
    code, err = complaint(monkeypatch, capfd, "figures")
    assert code == 2
    check(err, "not installed with the package", "in a checkout")


def test_there_are_enough_and_no_two_are_alike():
    rows = [c for c, *_ in COMMANDS]
    assert len(set(rows)) == len(rows) >= 60 and len({c[0] for c in CALLS}) == len(CALLS)
