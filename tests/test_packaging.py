"""What is written down twice agrees, and nothing names the machine it was written on."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    parts = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {_name(name): Version(version) for name, version in parts}


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements(project: dict) -> list[Requirement]:
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for text in (*project["dependencies"], *sum(extras, []))]


def test_environment_agrees_with_pyproject(project, pins):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(d for d in environment if isinstance(d, str) and d.startswith("python"))
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(project["requires-python"])
    pip = next(d for d in environment if isinstance(d, dict))["pip"]
    assert pip[0] == f"torch=={pins['torch']}"
    assert "-c constraints.txt" in pip
    extras = re.fullmatch(r"-e \.\[(.*)\]", pip[-1])
    assert extras is not None
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


def test_extras(project):
    extras = project["optional-dependencies"]
    assert {"notebooks", "vllm", "eval", "lora", "peers", "dev"} <= set(extras)
    makefile = (ROOT / "Makefile").read_text()
    used = re.search(r"^EXTRAS\s*:=\s*(.*)$", makefile, re.MULTILINE)
    assert used is not None
    assert set(used[1].split(",")) <= set(extras)


def test_pins_lie_inside_the_ranges(project, pins):
    # vLLM is the one dependency that needs a GPU, so it is pinned in its extra, not in the set.
    required = [r for r in _requirements(project) if r.name != "vllm"]
    missing = [r.name for r in required if _name(r.name) not in pins]
    assert not missing, f"no pin in constraints.txt for {missing}"
    assert not [str(r) for r in required if pins[_name(r.name)] not in r.specifier]


def test_makefile_finds_the_torch_pin(pins):
    listing = subprocess.run(
        ["make", "-n", "--always-make", "setup"], cwd=ROOT, capture_output=True, text=True
    )
    assert listing.returncode == 0, listing.stderr
    assert f'"torch=={pins["torch"]}"' in listing.stdout


def test_version_is_the_same_everywhere(project):
    import sept

    assert project["version"] == sept.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert f"[{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_package_data_patterns_match_what_is_shipped():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    patterns = tool["setuptools"]["package-data"]["sept"]
    covered = {path for pattern in patterns for path in (ROOT / "sept").glob(pattern)}
    shipped = {p for p in _tracked() if p.is_relative_to(ROOT / "sept" / "data")}
    assert not sorted(str(p) for p in shipped - covered if p.suffix != ".py")


def _tracked() -> list[Path]:
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def _dockerfile() -> list[tuple[str, str]]:
    """(instruction, arguments), continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


CUDA_OF_TORCH = {"2.13.0": "13.0.3"}
"""What the wheels of the ordinary index are built for: their requirement on cuda-toolkit."""


def test_dockerfile_agrees_with_the_pins(project, pins):
    lines = _dockerfile()
    (base,) = [rest for what, rest in lines if what == "FROM"]
    cuda = CUDA_OF_TORCH[str(pins["torch"])]  # a new pin of torch: look what it is built for
    assert re.fullmatch(rf"nvidia/cuda:{re.escape(cuda)}-devel-ubuntu24\.04", base)
    runs = [rest for what, rest in lines if what == "RUN"]
    for run in runs:
        subprocess.run(["bash", "-n", "-c", run], check=True)
    vllm = next(Requirement(r) for r in project["optional-dependencies"]["vllm"])
    known = {**pins, "vllm": Version(str(vllm.specifier).removeprefix("=="))}
    pinned = dict(re.findall(r"([a-z]+)==(\S+)", " ".join(runs)))
    assert {name: Version(v) for name, v in pinned.items()} == {n: known[n] for n in ("torch", "vllm")}
    installs = [run for run in runs if "pip install" in run]
    assert installs and all("-c constraints.txt" in run for run in installs)
    (extras,) = re.findall(r'"\.\[(.*)\]"', installs[-1])
    assert {"vllm", "eval", "track"} <= set(extras.split(",")) <= set(project["optional-dependencies"])
    (python,) = {*re.findall(r"python(3\.\d+)\b", " ".join(runs))}
    assert SpecifierSet(project["requires-python"]).contains(python)


def test_dockerfile_copies_what_is_there_and_runs_sept_as_nobody(project):
    lines, tool = _dockerfile(), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [f for what, rest in lines if what == "COPY" for f in rest.split()[1:-1]]
    assert all((ROOT / name).exists() and f"!{name}" in ignored for name in copied)
    assert {"sept", "pyproject.toml", "constraints.txt", tool["readme"], *tool["license-files"]} == {
        *copied
    }
    order = [f"{what} {rest}" for what, rest in lines]
    place = {
        key: next(i for i, line in enumerate(order) if key in line)
        for key in ("torch==", "vllm==", "sept ./sept", "USER")
    }
    assert place["USER"] < place["torch=="] < place["vllm=="] < place["sept ./sept"]
    assert [rest for what, rest in lines if what == "USER"] == ["sept"]
    assert order[-2:] == ['ENTRYPOINT ["sept"]', 'CMD ["doctor"]'] and "sept" in project["scripts"]


def test_no_tracked_file_names_a_machine_or_a_registry():
    # Put together from pieces, so that this file does not trip over itself.
    folders = ["work", "root", "home", "Users", "opt", "mnt"]
    forbidden = [rf"(?<![\w.$}}/:~-])/{folder}/\w" for folder in folders]
    forbidden += ["pypi" + r"\.org", "python" + r"hosted\.org", "index" + "-url", "site" + "-packages/"]
    pattern = re.compile("|".join(forbidden))
    found = []
    for path in _tracked():
        if path.suffix in {".safetensors", ".png", ".pdf"} or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in pattern.finditer(text)]
    assert not found
