"""Every command of docs/real-models.md and the README runs: a tiny checkpoint for the model, files for data.

The other guides' commands run in test_docs.py, `make` targets are only looked up there. What needs eight GPUs
or two machines runs here on one process; that torchrun knows its options is checked.
"""

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


# ----------------------------------------------------------------------------------------------- README

README = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
PRINTED = [
    line.partition(" #")[0].strip()
    for block in README
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"sept|torchrun", line)
]
TINY = {
    "train": "--set rounds=2 --set questions=4 --set mini_batch=2 --set warmup=0 --set margins_every=0",
    "eval": "--n 2 --max-new-tokens 8",
    "sweep": "--n 2",
    "general": "--limit 2",
}


def tiny(line, place):
    """A printed command's arguments with tiny things in place of large ones; [] if it names none to run."""
    given = [
        a for a in shlex.split(line.partition("-m sept ")[2] or line.removeprefix("sept ")) if a != "..."
    ]
    given = arguments(f"sept {shlex.join(given)}", place)[: len(given)] if "--preset" in given else given
    swaps = {"path/or/hub-id@revision": "model", "path/or/hub-id": "model", "my.jsonl": "q.jsonl"}
    swaps |= {"math500+aime24": "q.jsonl", "/shared/my-run": "shared"}
    given = [str(place / swaps[a]) if a in swaps else a for a in given]
    small = {"toy:test": "toy:test:1", "toy:dev:32": "toy:dev:1", "0:1.6:0.1": "0:1.6:0.8", "chat": "plain"}
    given = [small.get(a, a) for a in given if a not in ("--set", "sharding=fsdp") or "max_new" in a]
    given = [a for a in given if not a.startswith("max_new_tokens=")]
    verb, more = given[0], TINY.get(given[0], "")
    if verb == "theorem" and "--exact" not in given:
        more = "--steps 2 --samples 8 --prompts toy:test:1 --max-new-tokens 12"
    if str(place / "model") in given and verb == "train":
        more += " --set max_new_tokens=8"
    if "--preset" in given:
        more += f" --set max_new_tokens=8 --problems {place}/q.jsonl --model {place}/model"
        more += " --template plain"
    if given == ["train", "--out", str(place / "shared")]:
        more += " --arm sept --model H --problems toy:train"
    return given + shlex.split(more)


@pytest.mark.parametrize("number", range(len(PRINTED)), ids=[" ".join(c.split()[:4]) for c in PRINTED])
def test_every_command_of_the_readme_runs(run, place, monkeypatch, number):  # noqa: F811
    """In the smallest form, each on its own; `my-run/final` is the base where nothing was trained before."""
    monkeypatch.chdir(place)
    line = PRINTED[number]
    if "sept general" in line:
        pytest.importorskip("lm_eval")
    given = tiny(line, place)
    given = ["H" if a == "my-run/final" else a for a in given]
    if given[0] == "doctor":  # it is asked of the embedded base, which knows no words
        (place / "q.jsonl").write_text('{"prompt": "1+1:", "answer": "2"}')
    if given[0] == "status" and "my-run" in given:  # a run of its own, with its end
        assert run("train", "--out", "my-run", *shlex.split(TINY["train"]))[0] == 0
    code, out, err = run(*given)
    assert code == 0, (given, err)
    assert out or given[0] == "train"
    if given[0] == "train":
        where = place / given[given.index("--out") + 1]
        assert (where / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize("line", [c for c in [*PRINTED, *COMMANDS] if c.startswith("torchrun")])
def test_torchrun_knows_its_options(line):
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(shlex.split(line)[1:])
    assert given.module and given.training_script == "sept" and given.nproc_per_node == "8"
    assert given.training_script_args[0] == "train"


def test_commands_in_running_text_exist():
    """`sept VERB --option` and `make TARGET` with its variables in backticks, in every guide and notebook."""
    import typer

    from sept import cli

    verbs = typer.main.get_command(cli.app).commands
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]
    files += ROOT.glob("notebooks/*.py")
    for path in files:
        for verb, rest in re.findall(r"`sept ([a-z]+)([^`]*)", path.read_text()):
            assert verb in verbs, f"{path.name} names sept {verb}"
            known = {o for p in verbs[verb].params for o in (*p.opts, *p.secondary_opts)}
            for option in re.findall(r"--[a-z-]+", rest):
                assert option in known, f"{path.name} names sept {verb} {option}"
        for target in re.findall(r"`make ([a-z-]+)", path.read_text()):
            assert target in targets, f"{path.name} names make {target}"
        for name in re.findall(r"`make [a-z-]+ ([A-Z]+)=", path.read_text()):
            assert f"$({name})" in makefile, f"{path.name} gives make {name}"
        for script in re.findall(r"`python (\S+\.py)", path.read_text()):
            assert (ROOT / script).is_file(), f"{path.name} names {script}"


def test_what_pip_is_told_to_install_exists():
    """Extras by name, and torch in the version that is pinned."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    found = 0
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]:
        for line in re.findall(r"pip install ([^`|\n]*)", path.read_text()):
            for extras in re.findall(r"\[([a-z,]+)\]", line):
                assert set(extras.split(",")) <= set(project["optional-dependencies"]), (path.name, line)
                found += 1
            assert set(re.findall(r"torch==[0-9.]+", line)) <= set(pins), (path.name, line)
    assert found >= 5


def test_the_margins_benchmark_runs():
    """bench/README.md prints it; the others run in test_bench.py, test_gpu_round.py and test_models.py."""
    import subprocess
    import sys

    small = ["--threads", "1", "--vocabulary", "512", "--prefixes", "8"]
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "margins.py", *small], capture_output=True, text=True
    )
    assert done.returncode == 0 and "prefixes/s at V = 512" in done.stdout, done.stderr
