"""The engine whose log-probs are the trainer's: to the bit, on every token of a run."""

import pytest
import torch
from conftest import random_policy
from test_models import capped_gemma

from sept.config import SeptError, preset
from sept.loop import train
from sept.policy import load_policy
from sept.problems import Problem, ProblemSet, load_problems
from sept.sampling import TransformersEngine, make_sampler

WORDS = ProblemSet(
    "words", tuple(Problem(str(i), "words", f"w{i} w{i + 3}" * (i + 1), "w9") for i in range(9))
)
FIELDS = {"rounds": 3, "warmup": 0, "lr": 1e-3, "margins_every": 0, "max_new_tokens": 20}


def largest_gap(policy, problems, out, engine="exact", **fields):
    rows = train(preset("sept", **{**FIELDS, **fields}), policy, problems, out, engine=engine)
    return max(row["sampler_gap_max"] for row in rows)


@pytest.mark.parametrize("questions", [1, 3, 9])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
def test_no_token_differs(kind, questions, tmp_path):
    policy = random_policy(kind, seed=1)
    fields = {"questions": questions, "mini_batch": questions, "micro_batch": 2}
    assert largest_gap(policy, WORDS, tmp_path / "run", **fields) == 0.0


def test_no_token_differs_on_base_h(tmp_path):
    fields = {"questions": 16, "mini_batch": 16, "micro_batch": 5, "max_new_tokens": 56, "rounds": 2}
    gaps = {
        engine: largest_gap(
            load_policy("H"), load_problems("toy:train"), tmp_path / engine, engine, **fields
        )
        for engine in ("exact", "transformers")
    }
    print(gaps)
    assert gaps["exact"] == 0.0 < gaps["transformers"]


def test_it_draws_what_the_others_draw():
    policy = random_policy(seed=1)
    plain = TransformersEngine()
    plain.refresh(policy)
    request = ([[1, 7, 9], [1, 5], [1, 30, 31, 32, 33]], ["a", "b", "c"], 2, 0.8, 20, 0)
    a, b = plain.sample(*request), make_sampler(policy, "exact").sample(*request)
    assert torch.equal(a.tokens, b.tokens[:, : a.tokens.shape[1]])
    assert (a.log_probs - b.log_probs).abs().max() < 1e-4


def test_what_it_cannot_compute_is_refused():
    policy = random_policy(seed=1)
    policy.compute = torch.bfloat16
    with pytest.raises(SeptError, match="float32 on a CPU"):
        make_sampler(policy, "exact")
    with pytest.raises(SeptError, match="softcap"):
        make_sampler(capped_gemma(), "exact").sample([[1, 5]], ["a"], 1, 1.0, 2, 0)
