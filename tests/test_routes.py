"""Every command of docs/real-models.md runs: a tiny checkpoint for the model, a file for the data sets."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import random_policy
from test_cli import run  # noqa: F401
from test_general import CHOICE

from sept import profiles, runner
from sept.benchmarks import BENCHMARKS
from sept.policy import save_policy
from sept.presets import find_preset
from sept.problems import _options

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "real-models.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.strip()
]
ROUTES = [COMMANDS[:8], COMMANDS[8:]]
SMALL = {
    "train": "--set rounds=2 --set questions=4 --set mini_batch=2 --set warmup=0 --set max_new_tokens=8"
}
SMALL |= {"eval": "--n 2 --max-new-tokens 8", "sweep": "--n 2 --max-new-tokens 8 --temperatures 0,1"}
SMALL |= {"theorem": "--max-new-tokens 8"}


def arguments(line, place):
    """The command's arguments with tiny things in place of large ones."""
    given = shlex.split(line.partition("-m sept ")[2] or line.removeprefix("sept "))
    if "sharding=fsdp" in given:  # of several processes, which this is not
        at = given.index("sharding=fsdp")
        del given[at - 1 : at + 1]
    given = [re.sub(r"^Qwen/\S+$", str(place / "model"), a) for a in given]
    given = [re.sub(r"^(math500|amc23)\S*$", str(place / "q.jsonl"), a) for a in given]
    given = ["auto" if a.startswith("vllm") else a for a in given]
    verb = given[0]
    if verb in ("train", "sweep") and "--preset" in given:
        given += ["--problems", str(place / "q.jsonl")]
        given += ["--model", str(place / "model")] if "--model" not in given else []
        given += ["--template", "qwen_base_and_math"] if "--template" not in given else []
    if verb == "general":
        given += ["--tasks", str(place / "task.yaml")]
    return given + shlex.split(SMALL.get(verb, ""))


@pytest.fixture()
def place(tmp_path):
    policy = random_policy("llama", context=160)
    policy.model.generation_config.eos_token_id = [2]
    save_policy(policy, tmp_path / "model")
    rows = [{"prompt": f"w{i} w{i + 1}", "answer": f"w{i}"} for i in range(8)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"prompt": f"w{i}", "choices": ["w3", "w4 w5"], "label": i % 2} for i in range(8)]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(CHOICE.replace("DATA", str(tmp_path / "task.jsonl")))
    return tmp_path


def test_the_guide_has_both_routes():
    verbs = [[re.search(r"\bsept (\w+)", c)[1] for c in route] for route in ROUTES]
    assert verbs[0] == ["plan", "train", "eval", "eval", "sweep", "theorem", "general", "figures"]
    assert set(verbs[1]) == set(verbs[0])
    assert "docs/real-models.md" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("route", [0, 1], ids=["one GPU", "eight GPUs"])
def test_every_command_of_a_route_runs(run, place, monkeypatch, route):  # noqa: F811
    monkeypatch.chdir(place)
    drawn = []
    monkeypatch.setattr(runner, "run_notebooks", lambda *given: drawn.append(given) or [])
    for line in ROUTES[route]:
        given = arguments(line, place)
        code, out, err = run(*given)
        assert code == 0, (given, err)
    folder = place / "runs" / ("one", "seven")[route]
    assert (folder / "final" / "model.safetensors").is_file() and "pass@1" in (
        folder / "final" / "README.md"
    ).read_text()
    assert (place / "runs" / "general.csv").is_file()
    assert drawn[0][0] == ("gpu", "paper")[route]


@pytest.mark.parametrize("line", [c for c in COMMANDS if "plan" in c])
def test_the_tables_say_what_the_plan_says(run, line, tmp_path):  # noqa: F811
    code, _, _ = run(*shlex.split(line)[1:], "--json", tmp_path / "plan.json")
    (made,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert code == 0 and made["fits"]
    peak, hours = made["memory"]["peak"] / 1e9, made["hours"]["total"]
    row = next(
        r
        for r in TEXT.splitlines()
        if f"{peak:.0f} GB" in r and f"{made['disk'] / 1e9:.0f} GB of disk" in r
    )
    assert f"{hours:.2f} hours" in row or f"{hours:.1f} hours" in row


def test_real_names_and_settings_are_known():
    """What the smoke form replaced: presets, problem sets, and the profiles' own."""
    for line in COMMANDS:
        for name in re.findall(r"--preset (\S+)|sept plan (\S+)", line):
            find_preset(next(filter(None, name)))
    names = re.findall(r"--(?:problems|prompts) (\S+)", "\n".join(COMMANDS))
    for scale in ("gpu", "paper"):
        chosen = profiles.profile(scale)
        names += [chosen.test, chosen.dev, chosen.train, chosen.other_train, chosen.curve]
        for arm in ("sept", "sept-annealed", "grpo"):
            chosen.runs(arm)[0].config()
    assert {part for name in names for part in _options(name)[0].split("+")} <= set(BENCHMARKS)
    assert profiles.profile("gpu").notebooks == "00,02,03,15"
