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
