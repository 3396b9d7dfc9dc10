"""Whole things, minutes each: every notebook in the smoke profile, and a base rebuilt from nothing."""

import json
import os
import subprocess
import sys

import pytest
import torch

from sept import pretrain as pt
from sept.policy import BASES, load_policy
from sept.runner import notebooks_dir

pytestmark = pytest.mark.slow


def test_every_notebook_executes_in_the_smoke_profile(tmp_path):
    out = tmp_path / "figures"
    command = [sys.executable, "-m", "sept", "figures", "--profile", "smoke", "--out", out]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = sorted(p.stem for p in notebooks_dir().glob("[0-9]*.ipynb"))
    assert [p.stem for p in sorted((out / "notebooks").glob("*.ipynb"))] == names
    for name in names:
        assert json.loads((out / f"{name}.json").read_text())["notebook"] == name
    exact = json.loads((out / "01_theorem_exact.json").read_text())
    assert exact["statements"] == exact["statements_that_hold"] > 20
    assert exact["largest_distance_from_theorem_1"] < 1e-9
    pictures = list(out.glob("*.png"))
    assert len(pictures) >= 9
    for path in pictures:
        for suffix in (".csv", ".pdf"):
            assert path.with_suffix(suffix).stat().st_size > 0
        assert f"{path}" in done.stdout, "the command ends by naming what it wrote"
    # The second time everything is in the store: no run and no score is computed again.
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "results").rglob("counts.csv")}
    assert len(stamps) >= 5
    again = subprocess.run([*command, "--only", "03"], env={**os.environ}, capture_output=True)
    assert again.returncode == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "results").rglob("counts.csv")}


def test_base_e_rebuilds_to_what_is_shipped():
    """Same recipe, same base: to the bit on one machine, to the loss on another."""
    model, _, log = pt.pretrain(pt.RECIPES["E"])
    shipped = load_policy("E").model.state_dict()
    same = all(torch.equal(value, shipped[key]) for key, value in model.state_dict().items())
    card = (BASES / "E" / "README.md").read_text()
    loss = float(card.split("running mean): ")[1].split(" ")[0])
    print("to the bit" if same else "to the loss")
    assert log[-1]["loss"] == pytest.approx(loss, abs=0.08)  # it is stopped where the loss still falls
