"""What SECURITY.md promises: no code from files, no way out of the output folder, no secrets written down."""

import ast
import json
import logging
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import random_policy
from test_cli import complaint, sept
from test_faults import content
from test_grading import grades, worker

from sept import experiments, grading, provenance, runner
from sept.checkpoints import restore
from sept.config import SeptError, is_secret, notice, without_secrets
from sept.distributed import Ranks
from sept.durable import locked, seal, sweep, writing
from sept.policy import BASES, load_policy
from sept.provenance import write_text

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted([*(ROOT / "sept").glob("*.py"), *(ROOT / "notebooks").glob("*.py")])
SMALL = ["--set", "rounds=2", "--set", "questions=8", "--set", "mini_batch=4", "--set", "warmup=0"]

# --- no code from files -----------------------------------------------------------------------------------

MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "imp"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {"read_pickle", "to_pickle", "popen", "getoutput", "getstatusoutput", "unsafe_load"}
OWNED = {("os", "system"), ("torch", "load"), ("yaml", "load")}
KEYWORDS = {"shell", "allow_pickle", "trust_remote_code"}


def offences(source):
    """Lines that load pickles, run text as code, or use a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        bad = any(n.partition(".")[0] in MODULES for n in names)
        if isinstance(node, ast.Call):
            f = node.func
            bad |= isinstance(f, ast.Name) and f.id in CALLS
            if isinstance(f, ast.Attribute):
                owner = f.value.id if isinstance(f.value, ast.Name) else ""
                bad |= f.attr in ATTRIBUTES or (owner, f.attr) in OWNED
            for k in node.keywords:
                fixed = isinstance(k.value, ast.Constant)
                bad |= k.arg in KEYWORDS and fixed and k.value.value is True
                bad |= k.arg in ("weights_only", "use_safetensors", "safe_serialization") and not (
                    fixed and k.value.value is True
                )
        if bad:
            found.append(node.lineno)
    return found


def test_the_package_loads_no_pickle_runs_no_text_and_uses_no_shell():
    assert len(CODE) > 40
    assert {p.name: offences(p.read_text()) for p in CODE if offences(p.read_text())} == {}
    for bad in (
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec(x)",
        "torch.load(f)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "pd.read_pickle(x)",
        "f(weights_only=False)",
        "f(use_safetensors=None)",
        "f(trust_remote_code=True)",
    ):
        assert offences(bad) == [1], bad
    assert offences("model.eval(); re.compile('a'); f(trust_remote_code=asked)") == []


class Bomb:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "adapter_model.bin"])
def test_a_pickle_is_never_opened(name, tmp_path, monkeypatch, capsys):
    """A real one, which leaves a mark when it is loaded."""
    mark, folder = tmp_path / "it-ran", shutil.copytree(BASES / "H", tmp_path / "model")
    bomb = pickle.dumps(Bomb(mark))
    if name.startswith("adapter"):  # beside whole weights, as peft would pick it up by itself
        (folder / "adapter_config.json").write_text(
            json.dumps(
                {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "r": 1}
            )
        )
    else:
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(bomb)
    code, _, err = sept(monkeypatch, capsys, "eval", "--model", folder, "--problems", "toy:dev:1", "--n", 1)
    assert not mark.exists() and code == 2
    assert name in complaint(err) or name.startswith("adapter")
    assert name.startswith("adapter") or "only safetensors" in err
    torch.save(Bomb(mark), folder / name)
    with pytest.raises(SeptError):
        load_policy(str(folder))
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists(), "the bomb is real"


def test_transformers_is_asked_for_safetensors_even_if_a_pickle_slips_through(tmp_path, monkeypatch):
    mark, folder = tmp_path / "it-ran", shutil.copytree(BASES / "H", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(mark), folder / "pytorch_model.bin")
    (folder / "other.safetensors").touch()
    with pytest.raises(SeptError):
        load_policy(str(folder))
    assert not mark.exists()


def test_a_pickled_checkpoint_of_a_run_is_not_opened(tmp_path):
    mark = tmp_path / "it-ran"
    for name in ("policy", "optimizer"):
        (tmp_path / f"{name}.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    seal(tmp_path, {"version": 1, "sampler_version": 1, "ranks": 1})
    with pytest.raises(SeptError, match="damaged .*header"):
        restore(tmp_path, random_policy(), None, None, Ranks())
    assert not mark.exists()


def test_remote_code_needs_a_flag_and_the_flag_a_warning(tmp_path, monkeypatch, capsys):
    call = ("eval", "--model", BASES / "H", "--problems", "toy:dev:1", "--n", "1")
    code, _, err = sept(monkeypatch, capsys, *call)
    assert code == 0 and "warning" not in err
    code, _, err = sept(monkeypatch, capsys, *call, "--trust-remote-code")
    assert code == 0 and re.search(
        r"^warning: model .* Python code of .*H' may run with your rights", err, re.M
    )


def test_a_store_of_verdicts_is_data_only(tmp_path, monkeypatch):
    """Whatever stands in grades.sqlite, by whomever: a verdict is a number, zero or not."""
    monkeypatch.setenv("SEPT_RESULTS", str(tmp_path))
    monkeypatch.setattr(grading, "_verdicts", {})
    key = grading._name(("math", "2.0", "3"))
    with grading.closing(grading._store()) as store, store:
        store.execute("insert into grades values (?, ?)", (key, "__import__('os').abort()"))
        store.execute("create trigger t after insert on grades begin select load_extension('x'); end")
    assert grades([("2.0", "3"), ("5.0", "5")], "math") == [False, True]


# --- no way out of the folder -----------------------------------------------------------------------------

OUTSIDE = ["../../etc", "/etc/passwd", "..", "a/../../b", "H/../../secret", "\0", "~root"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_are_no_paths(name, tmp_path, monkeypatch, capsys):
    """Arms, bases, presets, profiles and notebooks are chosen from lists; anything else is one line."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    for call in (
        ("train", "--out", "run", "--arm", name),
        ("train", "--out", "run", "--preset", name),
        ("train", "--out", "run", "--engine", name),
        ("train", "--out", "run", "--template", name),
        ("pretrain", "--out", "run", "--base", name),
        ("figures", "--profile", name),
        ("figures", "--profile", "smoke", "--only", name),
        ("plan", name),
    ):
        code, _, err = sept(monkeypatch, capsys, *call)
        assert code == 2 and complaint(err), call
    with pytest.raises(SeptError, match="unknown"):
        runner.run_notebooks(name, inner / "figures", only="00")
    assert [p for p in tmp_path.rglob("*") if p not in (inner, inner.parent)] == []


def test_the_account_of_a_notebook_stays_in_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("SEPT_RESULTS", str(tmp_path / "store"))
    monkeypatch.setenv("SEPT_NOTEBOOK", "x/../../escaped")
    experiments.note_cost([])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]


def test_links_are_not_followed_when_something_is_written(tmp_path):
    """A link laid in the way is replaced or refused; what it points to stays."""
    (tmp_path / "theirs").mkdir()
    precious = tmp_path / "theirs" / "thesis.tex"
    precious.write_text("dear")
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in (".lock", "a.json", f".b.json.{os.getpid()}.part"):
        (mine / name).symlink_to(precious)
    for name in (f".final.{os.getpid()}.part", ".old.1.part"):
        (mine / name).symlink_to(precious.parent, target_is_directory=True)
    with pytest.raises(SeptError, match="cannot write"), locked(mine / ".lock", wait=False):
        pass
    write_text(mine / "a.json", "new")
    write_text(mine / "b.json", "new")
    with writing(mine / "final") as place:
        place.mkdir()
    sweep(mine)
    assert precious.read_text() == "dear" and [p.name for p in precious.parent.iterdir()] == ["thesis.tex"]
    assert (mine / "a.json").read_text() == (mine / "b.json").read_text() == "new"
    assert not (mine / "a.json").is_symlink() and not (mine / ".old.1.part").is_symlink()


# --- secrets ----------------------------------------------------------------------------------------------

SECRETS = {
    "HF_TOKEN": "hf_secretsecretsecret",
    "WANDB_API_KEY": "0123456789abcdef-wandb",
    "AWS_SECRET_ACCESS_KEY": "aws/secret+access",
    "DB_PASSWORD": "correct horse battery",
}


def test_what_counts_as_secret():
    assert all(map(is_secret, SECRETS)) and is_secret("hf_token")
    assert not any(map(is_secret, ("PATH", "TOKENIZERS_PARALLELISM", "HOME", "SEPT_RESULTS", "KEYBOARD")))


@pytest.fixture()
def secrets(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    provenance.environment.cache_clear()
    notice.cache_clear()

    def absent(text):
        data = text if isinstance(text, bytes) else text.encode()
        for value in SECRETS.values():
            assert value.encode() not in data
        return True

    yield absent
    provenance.environment.cache_clear()


def test_secrets_are_in_nothing_that_is_written_or_said(secrets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "12+34:", "answer": "46"}\n' * 1)
    for call in (
        ("train", "--out", "run", *SMALL, "--json", "t.json"),
        ("eval", "--model", "run/final", "--problems", "toy:dev:1", "--n", 2, "--card", "--json", "e.json"),
        ("eval", "--problems", "p.jsonl:math", "--n", 2, "--max-new-tokens", 20, "--json", "m.json"),
        ("doctor", "--json", "d.json"),
        ("status", "--json", "s.json"),
    ):
        code, out, err = sept(monkeypatch, capsys, *call)
        assert code == 0 and secrets(out + err), call
    run = experiments.Run("H", "sept", 7, overrides=(("mini_batch", 4), ("questions", 8), ("rounds", 1)))
    experiments.compute([experiments.Score(run, "toy:dev:1", 1.0, 2)], workers=1)
    files = content(tmp_path)
    assert {"run/final/README.md", "run/config.json", "m.json"} <= set(files)
    assert len(files) > 15 and all(map(secrets, files.values())) and secrets(str(sorted(files)))


def test_what_others_say_is_cleared_of_secrets(secrets, tmp_path, monkeypatch, capsys, caplog):
    def denied(*_, **__):
        raise OSError(
            f"401 for https://user:{SECRETS['HF_TOKEN']}@hub/x, Bearer {SECRETS['WANDB_API_KEY']}"
        )

    monkeypatch.setattr("transformers.utils.hub.cached_file", denied)
    code, _, err = sept(monkeypatch, capsys, "eval", "--model", "owner/name", "--problems", "toy:dev:1")
    assert code == 2 and secrets(err) and "(HF_TOKEN)" in complaint(err)
    monkeypatch.setattr("datasets.load_dataset", denied)
    code, _, err = sept(monkeypatch, capsys, "eval", "--problems", "math500")
    assert code == 2 and secrets(err) and "(WANDB_API_KEY)" in complaint(err)
    with caplog.at_level(logging.WARNING):
        notice(f"all is well with {SECRETS['HF_TOKEN']}")
    assert secrets(caplog.text)
    assert without_secrets("x" * 50) == "x" * 50


def test_what_grades_untrusted_answers_knows_no_secrets(secrets, tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "_verdicts", {})
    seen = tmp_path / "environment"
    worker(monkeypatch, tmp_path, f"open({str(seen)!r}, 'w').write(json.dumps(dict(os.environ)))")
    assert grades([("1.0", "1")], "math") == [True]
    grading._stop_all()
    found = json.loads(seen.read_text())
    assert secrets(seen.read_bytes()) and not set(SECRETS) & set(found) and "PATH" in found


def test_engine_settings_that_are_secret_are_not_shown(secrets, monkeypatch, tmp_path):
    import types

    from sept.sampling_vllm import VllmEngine

    def refuse(**_):
        raise ValueError("no such model")

    stand_in = types.SimpleNamespace(LLM=refuse, SamplingParams=None, TokensPrompt=None)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    engine = VllmEngine(hf_token="hf_given_as_a_setting", seed=1)
    engine.context = 96
    with pytest.raises(SeptError, match="cannot start with") as error:
        engine._start("float32")
    assert "hf_given" not in str(error.value) and "'seed': 1" in str(error.value)


# --- the promise itself -----------------------------------------------------------------------------------


def test_security_md_says_how_to_report_and_names_its_tests():
    text = (ROOT / "SECURITY.md").read_text()
    assert "report" in text.lower() and "safetensors" in text and "--trust-remote-code" in text
    for file, test in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text):
        assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), test
