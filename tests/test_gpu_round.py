"""bench/gpu_round.py where there is no GPU, and `sept plan`'s memory model against what it measures."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from sept import plan
from sept.config import SeptError, preset
from sept.presets import Shape

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import gpu_round

FEW = ["questions=8", "mini_batch=8", "micro_batch=8", "max_new_tokens=24"]


@pytest.mark.parametrize("tied", [True, False])
def test_the_plan_counts_bytes_as_they_are(tied):
    """Weights, gradients and optimizer to the byte, what autograd saves within a quarter."""
    shape = Shape("small", 256, 4, 4, 1, 1024, 320, 128, tied=tied, bias=True)
    config = preset("sept", questions=4, mini_batch=4, micro_batch=4, max_new_tokens=60, warmup=0)
    found = gpu_round.measure(gpu_round.build(shape, "cpu"), shape, config, "auto", 20)["bytes"]
    planned = plan.memory(config, shape, plan.Machine("CPU", 1e11, 1e10, 25e9, bytes=4), 20)
    assert {k: found[k] for k in ("weights", "gradients", "optimizer")} == {
        k: planned[k] for k in ("weights", "gradients", "optimizer")
    }
    assert found["activations"] == pytest.approx(planned["activations"], rel=0.25)


def test_the_script_runs_at_the_tiny_shape(tmp_path, monkeypatch, capsys):
    settings = [x for pair in FEW for x in ("--set", pair)]
    arguments = ["--shape", "tiny", "--prompt", "20", "--rounds", "1", "--out", str(tmp_path), *settings]
    monkeypatch.setattr(sys, "argv", ["gpu_round.py", *arguments])
    gpu_round.main()
    found = json.loads((tmp_path / "gpu_round_tiny.json").read_text())
    assert found["sampled tokens"] <= 8 * 24 and found["trained tokens"] == found["sampled tokens"] + 8 * 20
    assert found["sampler_gap"] < 1e-5 and 0 < found["MFU"] < 1
    assert found["trained tokens per second"] == pytest.approx(
        found["trained tokens"] / found["seconds"]["training"]
    )
    assert found["embedded world"]["rounds"] == 1 and 0 < found["embedded world"]["before"] < 100
    table = pd.read_csv(tmp_path / "gpu_round_tiny.csv").set_index("part")
    assert table.loc["optimizer", "measured"] == 2 * table.loc["weights", "measured"]
    assert "MFU" in capsys.readouterr().out


def test_a_shape_that_cannot_fit_is_refused_in_one_line():
    config, here = preset("sept"), plan.Machine("CPU", 1e11, 1e10, 25e9, bytes=4)
    with pytest.raises(SeptError, match="'qwen2.5-math-7b' cannot fit: .* 25 GB") as error:
        gpu_round.choose("qwen2.5-math-7b", config, here, 150)
    assert "\n" not in str(error.value)
    h200 = plan.DEVICES["H200"]
    fields = {"max_new_tokens": 1024, "micro_batch": 4, "gradient_checkpointing": True}
    assert gpu_round.choose("qwen2.5-math-7b", preset("sept", **fields), h200, 150)[0] == "qwen2.5-math-7b"
    assert (
        gpu_round.choose("auto", preset("sept", **fields), plan.DEVICES["H100"], 150)[0]
        == "qwen2.5-math-1.5b"
    )
    with pytest.raises(SeptError, match="unknown"):
        gpu_round.choose("qwen9", config, here, 150)
