"""The guides: each command exists and runs, each message is in the code, each number is a recorded one."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from conftest import random_policy, recorded

from sept import cli, evaluation, loop, objectives
from sept.config import PRESETS, preset
from sept.evaluation import examine
from sept.policy import load_policy
from sept.problems import Problem, ProblemSet, load_problems
from sept.sampling_static import StaticEngine

ROOT = Path(__file__).resolve().parent.parent
GUIDES = sorted((ROOT / "docs").glob("*.md")) + [ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(path):
    return FENCE.findall(path.read_text())


def commands(text):
    """The `sept` command lines of a block, without comments."""
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("sept ")]


def run(words):
    try:
        cli.app(words[1:], standalone_mode=False)
    except SystemExit as end:
        assert not end.code, f"{shlex.join(words)} ends with {end.code}"


@pytest.mark.parametrize("path", [*GUIDES, ROOT / "README.md", ROOT / "RESULTS.md"], ids=lambda p: p.name)
def test_every_printed_command_exists_with_its_options(path):
    group = typer.main.get_command(cli.app)
    for language, text in blocks(path):
        if language in ("sh", "bash"):
            for words in commands(text):
                words = [w for w in words if w != "..."]
                group.commands[words[1]].make_context(words[1], words[2:])


def test_targets_of_make_that_are_named_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for path in [*GUIDES, ROOT / "README.md"]:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.M):
            assert target in targets, f"{path.name} names make {target}"


def test_your_own_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """All blocks in order, in one folder; what they replace is put back."""
    monkeypatch.chdir(tmp_path)
    for module, name in ((loop, "tau_s_at"), (objectives, "nll"), (evaluation, "grade_all")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr("sept.config.PRESETS", PRESETS)
    space, seen = {}, []
    try:
        for language, text in blocks(ROOT / "docs" / "your-own.md"):
            assert len(text.splitlines()) <= 13, f"not ten lines: {text[:60]!r}"
            if language == "python":
                exec(compile(text, "your-own.md", "exec"), space)  # noqa: S102
            else:
                for words in commands(text):
                    run(words)
                    seen.append(words[1])
    finally:
        PRESETS.pop("mild", None)
    out = capsys.readouterr().out
    assert seen == ["doctor", "eval", "train"]
    assert "[0.6, 0.8]" in out, "the schedule of one's own is in force"
    assert {"my-model", "my-run", "mild", "restarts", "smoothed"} <= {p.name for p in tmp_path.iterdir()}
    assert re.search(r"\d+ of 32$", out, re.M), "the grader of one's own is asked"


@pytest.mark.parametrize("arm", ["sept", "offline", "em-ft", "grpo"])
def test_the_arms_beside_other_methods_run(arm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text,) = [t for language, t in blocks(ROOT / "docs" / "beside-other-methods.md") if language == "sh"]
    (words,) = [w for w in commands(text) if w[3] == arm]
    run([*words, "--set", "rounds=1", "--set", "margins_every=0"])
    assert (tmp_path / words[-1] / "final" / "model.safetensors").is_file()


def test_every_message_of_troubleshooting_is_in_the_code():
    """Strings of the source are joined as Python joins them, so a message may be broken over lines there."""
    files = [*(ROOT / "sept").glob("*.py"), ROOT / "docs" / "gallery.py", ROOT / "Makefile"]
    source = "\n".join(p.read_text() for p in files)
    source = re.sub(r"[\"']\s*\n\s*f?[\"']", "", source)
    rows = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)
    assert len(rows) >= 30
    assert not [message for message in rows if message not in source]


def test_numbers_in_the_guides_are_recorded_ones():
    """As in the README: what stands behind <!--PROFILE/NOTEBOOK:key--> is that number."""
    found = 0
    for path in GUIDES:
        for scale, notebook, key, shown in re.findall(
            r"<!--(laptop)/(\S+?):(.+?)-->\s*\**([-+]?\d+(?:\.\d+)?(?:e-?\d+)?)", path.read_text()
        ):
            value = recorded(scale, notebook, key)
            digits = len(shown.partition(".")[2])
            assert abs(float(shown) - value) <= 0.5001 * 10**-digits, (path.name, key, shown, value)
            found += 1
    assert found >= 20


def test_tests_that_are_named_exist():
    named = set(re.findall(r"`(test_\w+)`", "".join(p.read_text() for p in GUIDES)))
    source = "".join(p.read_text() for p in (ROOT / "tests").glob("test_*.py"))
    assert not [name for name in named if f"def {name}(" not in source] and len(named) >= 5


def test_the_map_of_the_house_is_complete():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    modules = {p.name for p in (ROOT / "sept").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert {n for n in re.findall(r"`sept/(\w+\.py)`", text)} == modules


def test_every_link_of_the_guides_leads_somewhere():
    for path in GUIDES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


class Forgetful(StaticEngine):
    """Says that it was refreshed and keeps its old weights."""

    def refresh(self, policy):
        if self.version < 0:
            super().refresh(policy)
        self.version = policy.version


@pytest.mark.slow
def test_traps_are_as_large_as_printed(tmp_path):
    """Measures the numbers of docs/traps.md that no notebook records."""
    text = (ROOT / "docs" / "traps.md").read_text()
    printed = {k: float(v) for k, v in re.findall(r"<!--traps:(.+?)-->([0-9.e-]+[0-9])", text)}
    questions, found = load_problems("toy:train"), {}

    short = preset("sept", rounds=2, warmup=0, margins_every=0)
    rows = loop.train(short, load_policy("H"), questions, tmp_path / "fresh")
    assert rows[1]["sampler_gap"] < 1e-6
    policy, engine = load_policy("H"), Forgetful()
    engine.refresh(policy)
    with pytest.raises(loop.StaleSamplerError) as stop:
        loop.train(short, policy, questions, tmp_path / "stale", sampler=engine)
    found["stale"] = float(re.search(r"differ by (\S+) nats", str(stop.value))[1])

    small = preset("sept", rounds=2, warmup=1, lr=1e-7, questions=64, margins_every=0)
    for dtype in (torch.bfloat16, torch.float32):
        name = f"changed {str(dtype)[6:]}"
        rows = loop.train(small, load_policy("H", dtype), questions, tmp_path / name)
        found[name] = rows[1]["changed"]

    policy = random_policy()
    with torch.no_grad():
        logits = policy.model(torch.tensor([policy.encode("w3 w7 w9")])).logits[0, -1]
    found["behind 50"] = float(torch.softmax(logits, -1).sort(descending=True).values[50:].sum())
    engine = StaticEngine()
    engine.refresh(policy)
    prompts, names = [policy.encode(f"w{i} w{i + 3}") for i in range(64)], [str(i) for i in range(64)]
    drawn = engine.sample(prompts, names, 4, 1.0, 48, seed=0)
    last = drawn.tokens[torch.arange(len(drawn)), drawn.lengths - 1][drawn.finished]
    found["own end"] = float((last == policy.tokenizer.eos_token_id).float().mean())

    print(found)
    assert printed.keys() == found.keys()
    for name, value in found.items():
        assert printed[name] == pytest.approx(value, rel=0.25), (name, value)


# ------------------------------------------------------------------------------------- sept doctor FILE


def test_examine_finds_references_that_nobody_could_answer():
    pytest.importorskip("math_verify")
    policy = load_policy("H")
    good, bad = Problem("1", "f", "1+1:", "2"), Problem("2", "f", "1+2:", "\\frac{3}{1")
    told = examine(ProblemSet("set", (good, bad), world="math"), policy)
    assert len(told["wrong"]) == 1 and "problem 2" in told["wrong"][0] and told["number"] == 2
    assert examine(ProblemSet("set", (good,), world="math"), policy)["wrong"] == []
    strange = examine(ProblemSet("set", (Problem("9", "f", "Größe?", "2"),)), policy)["wrong"]
    assert len(strange) == 1 and "problem 9" in strange[0] and "tokenizer" in strange[0]
    for name in ("toy:test:5", "toy:train"):
        assert examine(load_problems(name), policy)["wrong"] == []


def test_doctor_reports_on_a_file(tmp_path, capsys):
    path, out = tmp_path / "mine.csv", tmp_path / "out.json"
    path.write_text("prompt,answer\n1+1:,2\n1+2:,3\n")
    run(["sept", "doctor", str(path), "--json", str(out)])
    shown, written = capsys.readouterr().out, json.loads(out.read_text())
    assert re.search(r"^number +2$", shown, re.M) and written["number"] == 2 and written["wrong"] == []
    path.write_text("prompt,answer\nWie viel?,2\n")
    with pytest.raises(SystemExit) as end:
        cli.app(["doctor", str(path)], standalone_mode=False)
    assert end.value.code == 1 and "does not know" in capsys.readouterr().out
