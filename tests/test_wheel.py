"""What `pip install` gives away from the checkout: the wheel carries the bases and all data, and works."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the files that git knows, so that nothing else can slip in or be missed."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        if (
            name.split("/")[0] in ("sept", "pyproject.toml", "README.md", "LICENSE")
            and (ROOT / name).is_file()
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (found,) = out.glob("sept-*.whl")
    return found, {p.relative_to(source).as_posix() for p in (source / "sept").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A fresh environment with the wheel; what it depends on is borrowed from this one."""
    place = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*pip, str(wheel[0])], check=True)
    (library,) = place.glob("lib/python3*/site-packages")
    (library / "borrowed.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # its own .pth files stay out
    return place


def call(installed, tmp_path, *words):
    away = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SEPT_RESULTS")}
    done = subprocess.run(
        [str(installed / "bin" / words[0]), *words[1:]],
        cwd=tmp_path,
        env=away,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_carries_every_file_of_the_package(wheel):
    path, expected = wheel
    inside = {name for name in zipfile.ZipFile(path).namelist() if name.startswith("sept/")}
    assert inside == expected
    assert {f"sept/data/bases/{base}/model.safetensors" for base in "EFHI"} <= inside
    assert path.stat().st_size < 30e6


def test_it_works_from_another_folder(installed, tmp_path):
    where = call(installed, tmp_path, "python", "-c", "import sept; print(sept.__file__)").strip()
    assert Path(where).is_relative_to(installed)
    out = call(installed, tmp_path, "sept", "theorem", "--exact")
    assert "holds" in out and "FAILS" not in out
    small = ["--set", "rounds=2", "--set", "questions=8", "--set", "mini_batch=8", "--set", "warmup=0"]
    call(installed, tmp_path, "sept", "train", "--out", "run", *small)
    call(
        installed,
        tmp_path,
        *(
            "sept",
            "eval",
            "--model",
            "run/final",
            "--problems",
            "toy:dev:2",
            "--n",
            "8",
            "--json",
            "e.json",
        ),
    )
    assert json.loads((tmp_path / "e.json").read_text())["questions"] == 12
    assert "2/2" in call(installed, tmp_path, "sept", "status", "run")
    out = call(installed, tmp_path, "sept", "doctor")
    assert out.count("same tokens: yes") == 4 and "commit unknown" in out
    assert "the notebooks, which are in the repository" in out
