"""The model of a round's time: its parts against what can be counted and measured here."""

import numpy as np
import pytest
from conftest import random_policy
from safetensors.torch import save_file

from sept.config import preset
from sept.plan import DEVICES
from sept.policy import load_policy
from sept.presets import SHAPES
from sept.problems import load_problems
from sept.sampling import make_sampler
from sept.sampling_vllm import _untied
from sept.scaling import assumed_lengths, lines, longest, refresh_bytes, round_seconds, scaling, turns

SHAPE, H100 = SHAPES["qwen2.5-math-7b"], DEVICES["H100"]


def test_the_longest_of_n_answers():
    assert longest([3.0], 7) == 3 and longest([1, 2, 3, 4], 1) == 2.5
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(3, 1, 500)
    drawn = rng.choice(lengths, (20000, 16)).max(1)
    assert abs(longest(lengths, 16) / drawn.mean() - 1) < 4 * drawn.std() / drawn.mean() / 20000**0.5
    assumed = assumed_lengths(1000, 3072)
    assert assumed.mean() == pytest.approx(1000, rel=1e-6) and assumed.max() == 3072
    assert longest(assumed, 128) > 3000


def test_stragglers_of_base_h():
    """Rounds of 32 answers: the mean of their longest, against what the lengths of other rounds predict."""
    policy = load_policy("H")
    sampler, problems = make_sampler(policy), load_problems("toy:train")
    rounds = []
    for number in range(40):
        asked = problems.batch(number, 32, 0)
        prompts, keys = [policy.encode(q.prompt) for q in asked], [q.id for q in asked]
        rounds.append(sampler.sample(prompts, keys, 1, 1.0, 56, 0, number).lengths.numpy())
    half = np.stack(rounds).reshape(2, -1, 32)
    predicted, seen = longest(half[0].ravel(), 32), half[1].max(1)
    print(
        f"longest of 32: predicted {predicted:.2f}, seen {seen.mean():.2f}, mean length {half.mean():.2f}"
    )
    assert abs(predicted - seen.mean()) < 4 * seen.std() / len(seen) ** 0.5 + 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_refresh_through_a_folder(tied, tmp_path):
    policy = random_policy(tied=tied)
    save_file({name: tensor.clone() for name, tensor in _untied(policy)}, tmp_path / "model.safetensors")
    written = (tmp_path / "model.safetensors").stat().st_size
    stored = sum(p.numel() for p in policy.model.parameters())
    stored += policy.model.get_input_embeddings().weight.numel() if tied else 0
    expected = refresh_bytes(stored, 4, 1)["folder"] / 2  # written, then read
    assert expected < written < expected + 8192, "and the file's header"


def test_no_rank_is_idle_while_another_has_two_micro_batches():
    config = preset("sept", questions=64, mini_batch=64, micro_batch=64)
    assert [turns(config, N) for N in (1, 2, 8, 64)] == [
        2,
        1,
        1,
        1,
    ]  # one rank halves its batch, see steps.py
    named = preset(
        "sept", questions=64, mini_batch=64, micro_batch=8, loss_normalisation="microbatch-token"
    )
    assert [turns(named, N) for N in (1, 2, 3, 8, 64)] == [8, 4, 3, 1, 1]


def test_what_scales_and_what_does_not():
    config = preset("sept", questions=128, mini_batch=64, micro_batch=8, max_new_tokens=3072)
    rows = scaling(config, SHAPE, H100, 1000, 150)
    assert [r["gpus"] for r in rows] == [1, 2, 4, 8, 16, 32, 64, 128]
    training = [r["training"] for r in rows]
    assert training[0] / training[3] == pytest.approx(8) and rows[0]["waiting"] == 0
    assert all(a["waiting"] < b["waiting"] for a, b in zip(rows, rows[1:], strict=False))
    assert rows[-1]["refresh, server"] == pytest.approx(2 * SHAPE.parameters * 16 / 2e9)
    even = round_seconds(config, SHAPE, H100, 8, 150, np.full(100, 1000))
    assert abs(even["waiting"]) < 1e-9, "answers of one length have no stragglers"
    text = "\n".join(lines(rows, "H100"))
    assert "refresh, folder: over 10% of a round from 1 on" in text
