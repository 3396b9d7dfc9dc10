"""The command: what each verb writes, and that every mistake gets one line, exit code 2, and no files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sept import cli, pretrain, problems
from sept.policy import BASES

SMALL = ["--set", "rounds=2", "--set", "questions=8", "--set", "mini_batch=4", "--set", "warmup=0"]


def sept(monkeypatch, capsys, *arguments):
    """Exit code, standard output, standard error of one call."""
    monkeypatch.setattr(sys, "argv", ["sept", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture()
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: sept(monkeypatch, capsys, *arguments)


def complaint(err):
    """The one line that the command says (progress bars aside)."""
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("sept: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.fixture()
def broken(tmp_path_factory):
    """Folders with checkpoints that cannot be used, by name."""
    root = tmp_path_factory.mktemp("broken")
    names = ("truncated", "headless", "mismatch", "empty-config", "no-weights", "pickled", "incomplete")
    for name in names:
        shutil.copytree(BASES / "H", root / name)
    weights = root / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    config = json.loads((BASES / "H" / "config.json").read_text())
    (root / "headless" / "config.json").write_text(
        json.dumps({**config, "architectures": ["CLIPModel"], "model_type": "clip"})
    )
    tokenizer = json.loads((root / "mismatch" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"x{i}": 24 + i for i in range(10)}
    (root / "mismatch" / "tokenizer.json").write_text(json.dumps(tokenizer))
    (root / "empty-config" / "config.json").write_text("{")
    (root / "no-weights" / "model.safetensors").unlink()
    tensors = load_file(BASES / "H" / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, root / "incomplete" / "model.safetensors", metadata={"format": "pt"})
    (root / "pickled" / "model.safetensors").unlink()
    torch.save({}, root / "pickled" / "pytorch_model.bin")
    return root


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "tau_s=0"], ["tau_s", "above 0"]),
        (["--set", "tau_s=-0.6"], ["tau_s"]),
        (["--set", "tau_s=NaN"], ["tau_s", "finite"]),
        (["--set", "tau_t=0"], ["tau_t"]),
        (["--set", "G=0"], ["G", "at least 1"]),
        (["--set", "temperature=1"], ["temperature", "unknown"]),
        (["--set", "tau_s"], ["field=value"]),
        (["--arm", "sft"], ["sft", "em-ft"]),
        (["--problems", "toy:test:0"], ["empty"]),
        (["--problems", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["--model", "nowhere"], ["nowhere", "F, H"]),
        (["--model", "./nowhere/at/all"], ["nowhere"]),
        (["--set", "max_new_tokens=125"], ["max_new_tokens", "context"]),
        (["--threads", "0"], ["threads"]),
        (["--config", "missing.json"], ["missing.json"]),
        (["--problems", "toy:test:1"], ["fewer"]),
        (["--set", "eval_every=1", "--dev", "toy:train"], ["endless"]),
        (["--json", "."], ["folder"]),
        (["--engine", "vroom"], ["vroom", "vllm"]),
    ],
)
def test_mistakes_in_train(run, tmp_path, arguments, words):
    code, _, err = run("train", "--out", tmp_path / "run", *SMALL, *arguments)
    line = complaint(err)
    assert code == 2 and all(word in line for word in words), line
    assert not (tmp_path / "run").exists(), "nothing may be written"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truncated", ["cannot be loaded"]),
        ("headless", ["causal"]),
        ("mismatch", ["34 tokens", "24 embeddings"]),
        ("empty-config", ["config"]),
        ("no-weights", ["cannot be loaded"]),
        ("pickled", ["pytorch_model.bin", "only safetensors"]),
        ("incomplete", ["layers.1.mlp.down_proj.weight", "missing"]),
    ],
)
def test_unusable_checkpoints(run, broken, tmp_path, name, words):
    code, _, err = run("train", "--model", broken / name, "--out", tmp_path / "run", *SMALL)
    line = complaint(err)
    assert code == 2 and all(word in line for word in words) and name in line, line
    assert not (tmp_path / "run").exists()


def test_train_takes_an_engine(run, tmp_path):
    """The built-in ones draw the same tokens, so a run may change between them."""
    tokens = []
    for engine in ("static", "transformers"):
        out = tmp_path / engine
        assert run("train", "--out", out, *SMALL, "--engine", engine)[0] == 0
        tokens.append(
            [json.loads(line)["tokens"] for line in (out / "rounds.jsonl").read_text().splitlines()]
        )
        assert "engine" not in json.loads((out / "config.json").read_text())["identity"]
    assert tokens[0] == tokens[1]


def test_damaged_numbers_are_noticed(run, tmp_path):
    shutil.copytree(BASES / "H", tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    code, _, err = run("eval", "--model", tmp_path / "nan", "--problems", "toy:dev:1", "--n", 2)
    assert code == 2 and "not finite" in complaint(err)
    code, _, err = run("train", "--model", tmp_path / "nan", "--out", tmp_path / "run", *SMALL)
    assert code == 1 and "round 0, batch 0" in complaint(err)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["eval", "--n", "0"], "n = 0"),
        (["eval", "--temperature", "-1"], "-1"),
        (["eval", "--problems", "toy:train"], "endless"),
        (["eval", "--engine", "vroom"], "vroom"),
        (["sweep", "--temperatures", "0:1"], "0:1"),
        (["sweep", "--temperatures", "0:1:0"], "0:1:0"),
        (["sweep", "--temperatures", "0:1:0.6"], "0:1:0.6"),
        (["sweep", "--temperatures=-1,0"], "-1"),
        (["theorem"], "--exact"),
        (["figures", "--profile", "huge"], "huge"),
        (["figures", "--profile", "smoke", "--only", "99"], "99"),
        (["pretrain", "--base", "Z", "--out", "z"], "Z"),
        (["frobnicate"], "frobnicate"),
        (["eval", "--nonsense"], "nonsense"),
    ],
)
def test_mistakes_elsewhere(run, tmp_path, arguments, word):
    code, _, err = run(*arguments)
    assert code == 2 and word in complaint(err)
    assert not list(tmp_path.glob("[!r]*"))


def test_train_eval_sweep_status_end_to_end(run, tmp_path, monkeypatch):
    code, out, _ = run("train", "--out", tmp_path / "run", *SMALL, "--json", tmp_path / "t.json")
    assert code == 0 and "final" in out
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["config"]["rounds"] == 2 and written["last_round"]["round"] == 1
    assert {"sept", "commit", "versions", "threads"} <= set(written["provenance"])
    code, _, err = run("train", "--out", tmp_path / "run", *SMALL)
    assert code == 2 and "--resume" in complaint(err)
    assert run("train", "--out", tmp_path / "run", *SMALL, "--resume")[0] == 0
    code, _, err = run("train", "--out", tmp_path / "run", *SMALL, "--resume", "--seed", 5)
    assert code == 2 and "another run" in complaint(err)

    code, out, _ = run(
        *("eval", "--model", tmp_path / "run" / "final", "--problems", "toy:dev:2"),
        *("--n", 32, "--json", tmp_path / "e.json"),
    )
    scores = json.loads((tmp_path / "e.json").read_text())
    assert code == 0 and scores["n"] == 32 and scores["questions"] == 12
    assert scores["pass@1"]["lo"] <= scores["pass@1"]["value"] <= scores["pass@1"]["hi"]
    code, out, _ = run(
        *("sweep", "--problems", "toy:dev:2", "--temperatures", "0:0.4:0.2"),
        *("--n", 8, "--json", tmp_path / "s.json"),
    )
    sweep = json.loads((tmp_path / "s.json").read_text())
    assert [row["temperature"] for row in sweep["sweep"]] == [0, 0.2, 0.4]
    assert sweep["best"]["pass@1"] in (0, 0.2, 0.4) and "best temperature" in out
    monkeypatch.setenv("SEPT_RESULTS", str(tmp_path))
    assert "0 done, 0 unfinished" in run("status")[1]


def test_odd_places_for_output(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = run("train", "--out", tmp_path / "file", *SMALL)
    assert code == 2 and "is a file" in complaint(err) and (tmp_path / "file").read_text() == "mine"
    (tmp_path / "list.json").write_text("[1]")
    code, _, err = run("train", "--out", tmp_path / "run", "--config", tmp_path / "list.json")
    assert code == 2 and "list.json" in complaint(err)


def test_theorem_exact_and_doctor(run, tmp_path):
    code, out, _ = run("theorem", "--exact", "--json", tmp_path / "t.json")
    rows = json.loads((tmp_path / "t.json").read_text())["statements"]
    assert code == 0 and all(row["holds"] for row in rows) and "Theorem 1" in out
    code, out, _ = run("doctor")
    assert code == 0 and out.count("same tokens: yes") == 4


def test_pretrain_makes_a_base_with_its_card(run, tmp_path, monkeypatch):
    few = problems.load_problems("toy:dev:1")
    monkeypatch.setattr(problems, "load_problems", lambda name: few)  # the card's sweep
    tiny = pretrain.Recipe((pretrain.Stage(20, 4_000, (0.0, 0.1, 0.4), 5e-3),), hidden=32, layers=1, mlp=64)
    monkeypatch.setitem(pretrain.RECIPES, "E", tiny)
    code, out, _ = run("pretrain", "--base", "E", "--out", tmp_path / "E")
    assert code == 0 and out.endswith(f"wrote {tmp_path / 'E'}\n")
    card = (tmp_path / "E" / "README.md").read_text()
    assert "under-trained" in card.lower() and '"hidden": 32' in card
    assert (tmp_path / "E" / "model.safetensors").is_file()


def test_figures_are_drawn_again_from_their_tables(run, tmp_path):
    theirs = Path(__file__).parent.parent / "figures" / "laptop"
    for suffix in ("csv", "png"):
        shutil.copy(theirs / f"quickstart_training.{suffix}", tmp_path)
    code, out, err = run("figures", "--redraw", "--out", tmp_path)
    assert code == 0 and "drew 1 figures" in out, err
    assert (tmp_path / "quickstart_training.pdf").read_bytes().startswith(b"%PDF")


def test_version_and_no_arguments(run):
    import sept

    assert run("--version")[:2] == (0, f"sept {sept.__version__}\n")
    code, out, err = run()
    assert code == 2 and "Commands" in out + err and "sept:" not in err


def test_every_verb_has_help_and_there_are_at_most_eleven(run):
    """Eleven: `general` takes two models and other libraries' tasks, which would make two verbs of `eval`."""
    names = [c.name or c.callback.__name__ for c in cli.app.registered_commands]
    assert len(names) <= 11
    for name in names:
        code, out, _ = run(name, "--help")
        assert code == 0 and ("--json" in out or name in ("pretrain", "figures"))


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_resumes_to_the_same_result(sig, tmp_path):
    """The real command, killed from outside in mid-run."""
    command = [sys.executable, "-m", "sept", "train", "--problems", "toy:train", "--seed", "3"]
    command += ["--set", "rounds=16", "--set", "save_every=2", "--set", "questions=16"]
    command += ["--set", "mini_batch=8", "--set", "warmup=0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--out", tmp_path / "whole"], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    cut = subprocess.Popen(
        [*command, "--out", tmp_path / "cut"],
        env=env,
        stderr=subprocess.PIPE,
        # A job in the background inherits an ignored Ctrl-C; a user's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "cut" / "checkpoint-4").exists():
        assert cut.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    cut.send_signal(sig)
    err = cut.communicate()[1].decode()
    if sig != signal.SIGKILL:
        assert cut.returncode == 128 + sig and "--resume" in err and "Traceback" not in err
    assert not (tmp_path / "cut" / "final").exists()
    again = subprocess.run([*command, "--out", tmp_path / "cut", "--resume"], env=env)
    assert again.returncode == 0
    for name in ("final/model.safetensors", "rounds.jsonl"):
        whole, resumed = ((tmp_path / run / name).read_bytes() for run in ("whole", "cut"))
        assert whole == resumed, name
