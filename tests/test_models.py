"""Models as the hub has them: architectures, heads, padding, precision, revisions, and how they leave again."""

import json
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from conftest import random_policy
from test_cli import complaint, sept

from sept import objectives, policy, steps
from sept.config import SeptError, preset
from sept.loop import train
from sept.policy import load_policy, make_batch, output_layer, response_logits, save_policy
from sept.problems import Problem, ProblemSet
from sept.sampling import TransformersEngine, make_sampler

KINDS = ("qwen2", "qwen3", "llama")
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
PROBLEMS = ProblemSet(
    "words", tuple(Problem(str(i), "words", f"w{i} w{i + 3} w{2 * i}", "w9") for i in range(24))
)
SMALL = {"rounds": 2, "warmup": 0, "questions": 8, "mini_batch": 4, "micro_batch": 3, "max_new_tokens": 12}


def checkpoint(folder, kind="qwen2", tied=True, padding=9, **more):
    """A hub-like folder: `padding` embedding rows beyond the tokenizer, two end tokens, a chat template."""
    made = random_policy(kind, tied=tied, rows=320 + padding, **more)
    made.tokenizer.chat_template = TEMPLATE
    made.model.generation_config.eos_token_id = [2, 319]
    save_policy(made, folder)
    return folder


# --- the loss without its logits ---------------------------------------------------------------------------


@pytest.fixture()
def small_chunks(monkeypatch):
    """Chunks of 3 positions, so that everything counts as too large to be held."""
    monkeypatch.setattr(steps, "CHUNK", 1000)


def first_step(monkeypatch, tmp_path, made, chunk, **fields):
    """Row and gradients of one optimizer step, with `chunk` logits at once."""
    monkeypatch.setattr(steps, "CHUNK", chunk)
    seen = []

    def keep(self, closure=None):
        seen.extend(p.grad.clone() for p in self.param_groups[0]["params"])

    monkeypatch.setattr(torch.optim.AdamW, "step", keep)
    monkeypatch.setattr("sept.loop.grade", lambda text, *_: len(text) % 2 == 0)
    arm = {"nll": "sept", "entropy": "em-ft", "grpo": "grpo"}[fields.pop("objective")]
    config = preset(arm, **{**SMALL, "rounds": 1, "mini_batch": 8, **fields})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is changed here
        (row,) = train(config, made, PROBLEMS, tmp_path / str(chunk))
    return row, seen


@pytest.mark.parametrize("objective", ["nll", "entropy", "grpo"])
@pytest.mark.parametrize("how", ["token", "sequence-sum", "microbatch-token"])
@pytest.mark.parametrize("tied", [True, False])
def test_chunks_give_the_same_loss_gradient_and_metrics(objective, how, tied, tmp_path, monkeypatch):
    results = []
    for chunk in (2**25, 1000):
        made = random_policy("qwen3", tied=tied, rows=333)
        made.vocab = 320
        fields = {"objective": objective, "loss_normalisation": how, "tau_t": 0.8, "grad_clip": 0}
        results.append(first_step(monkeypatch, tmp_path, made, chunk, **fields))
    (row, plain), (chunked_row, chunked) = results
    for name in ("loss", "nll", "entropy", "sampler_gap", "grad_norm"):
        assert chunked_row[name] == pytest.approx(row[name], rel=1e-5, abs=1e-6), name
    assert row["sampler_gap"] < 1e-5 and row["grad_norm"] > 0.01
    largest = max(g.abs().max() for g in plain)
    for a, b in zip(plain, chunked, strict=True):
        assert ((a - b).abs().max() / largest).item() <= 1e-6


def test_chunks_are_used_where_logits_are_many_and_only_there(tmp_path, monkeypatch):
    used = []
    real = steps.HeadLoss.apply
    monkeypatch.setattr(steps.HeadLoss, "apply", lambda *a: used.append(1) or real(*a))
    for chunk, expected in ((2**25, 0), (1000, 6)):
        monkeypatch.setattr(steps, "CHUNK", chunk)
        config = preset("sept", **{**SMALL, "rounds": 1, "questions": 12, "mini_batch": 12, "micro_batch": 2})
        train(config, random_policy("llama"), PROBLEMS, tmp_path / str(chunk))
        assert len(used) == expected


def capped_gemma():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    model = Gemma2ForCausalLM(Gemma2Config(**size, **heads, max_position_embeddings=96))
    made = random_policy()
    model.generation_config.eos_token_id = [2]
    made.model = model.eval()
    return made


def test_a_head_that_is_more_than_one_product_is_noticed(small_chunks, tmp_path):
    assert all(output_layer(random_policy(k)) is not None for k in (*KINDS, "gpt2"))
    made = capped_gemma()
    assert made.model.config.final_logit_softcapping and output_layer(made) is None
    with pytest.warns(UserWarning, match="more than one matrix product"):
        rows = train(preset("sept", **SMALL), made, PROBLEMS, tmp_path / "run")
    assert rows[0]["sampler_gap"] < 1e-5, "the plain path is right for it"


PEAK = """
import resource, sys, torch
sys.path.insert(0, "tests")
from sept import objectives, steps
torch.set_num_threads(1)
torch.manual_seed(0)
way, N, d, V = sys.argv[1], int(sys.argv[2]), 64, 151_936
states, tokens = torch.randn(N, d, requires_grad=True), torch.randint(V, (N, 1))
head = (torch.randn(V, d) / 8).requires_grad_()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
if way == "plain":
    loss = objectives.nll((states @ head.t())[:, None], tokens, 1.0).sum() / N
else:
    of = lambda logits, chunk: objectives.nll(logits, tokens[chunk], 1.0).sum() / N
    loss = steps.HeadLoss.apply(states, head, None, torch.float32, of)
loss.backward()
print(peak() - before)
torch.save([states.grad, head.grad[::101]], sys.argv[3])
"""


def peak_of(way, tokens, path):
    """MiB that one loss and its gradient took, in a process of its own, at V = 151,936."""
    command = [sys.executable, "-c", PEAK, way, str(tokens), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout), torch.load(path, weights_only=True)


def test_peak_memory_of_the_loss(tmp_path):
    """4,096 tokens in chunks take less than the plain way takes for an eighth of them."""
    plain, expected = peak_of("plain", 512, tmp_path / "plain.pt")
    few, gradients = peak_of("chunks", 512, tmp_path / "few.pt")
    many, _ = peak_of("chunks", 4096, tmp_path / "many.pt")
    print(f"plain 512: {plain:.0f} MiB; chunks 512: {few:.0f}; chunks 4096: {many:.0f}")
    assert many <= plain
    for a, b in zip(expected, gradients, strict=True):
        assert ((a - b).abs().max() / a.abs().max()).item() <= 1e-5
