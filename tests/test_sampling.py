"""The engines draw from softmax(z / tau), from coordinates, and agree with transformers."""

import copy
import importlib.util
import threading

import numpy as np
import pytest
import torch
from conftest import random_policy
from scipy import stats

from sept.config import SeptError
from sept.objectives import token_log_probs
from sept.policy import make_batch, response_logits
from sept.sampling import TransformersEngine, choose, parse_engine, uniforms
from sept.sampling_static import StaticEngine

PROMPTS = [[1, 7, 9], [1, 20, 21, 22, 23, 24], [1, 5], [1, 30, 31, 32, 33]]
KEYS = ["a", "b", "c", "d"]
ENGINES = [StaticEngine, TransformersEngine]


def engine_of(kind, policy):
    engine = kind()
    engine.refresh(policy)
    return engine


@pytest.mark.parametrize(
    ("kind", "name"), [(StaticEngine, "qwen"), (StaticEngine, "llama"), (TransformersEngine, "gpt2")]
)
@pytest.mark.parametrize("tau", [1.0, 0.6])
def test_engine_log_probs_equal_a_plain_forward_pass(kind, name, tau, request):
    policy = request.getfixturevalue(name)
    rollouts = engine_of(kind, policy).sample(PROMPTS, KEYS, 8, tau, 24, seed=3)
    batch = make_batch(rollouts.prompts, rollouts.tokens, rollouts.lengths)
    with torch.no_grad():
        logits = response_logits(policy.model, batch)
    expected = token_log_probs(logits, batch.tokens, tau)
    drawn = rollouts.log_probs[:, : expected.shape[1]]
    gap = ((expected - drawn).abs() * batch.mask).max().item()
    assert gap <= 1e-4, f"largest difference {gap:.1e}"


@pytest.mark.parametrize("name", ["qwen", "llama"])
@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_both_engines_draw_the_same_tokens(name, tau, request):
    policy = request.getfixturevalue(name)
    drawn = [engine_of(k, policy).sample(PROMPTS, KEYS, 4, tau, 20, seed=5) for k in ENGINES]
    width = min(d.tokens.shape[1] for d in drawn)
    assert torch.equal(drawn[0].tokens[:, :width], drawn[1].tokens[:, :width])
    assert torch.equal(drawn[0].lengths, drawn[1].lengths)


@pytest.mark.parametrize("kind", ENGINES)
def test_seeds_are_coordinates(kind, qwen):
    engine = engine_of(kind, qwen)

    def draw(order, seed=0, n=3, round=0):
        prompts, keys = [PROMPTS[i] for i in order], [KEYS[i] for i in order]
        return engine.sample(prompts, keys, n, 1.0, 16, seed, round).tokens

    first = draw([0, 1, 2, 3])
    assert torch.equal(first, draw([0, 1, 2, 3])), "same seed, same tokens"
    swapped = draw([3, 1, 0, 2])
    pad = lambda t: torch.nn.functional.pad(t, (0, 16 - t.shape[1]))  # noqa: E731
    order = torch.tensor([2, 1, 3, 0])[:, None] * 3 + torch.arange(3)
    assert torch.equal(pad(first), pad(swapped)[order.flatten()]), "other batch order, same tokens"
    alone = draw([1])
    assert torch.equal(pad(first)[3:6], pad(alone)), "one question alone, same tokens"
    assert not torch.equal(pad(first), pad(draw([0, 1, 2, 3], seed=1))), "other seed, other tokens"
    assert not torch.equal(pad(first), pad(draw([0, 1, 2, 3], round=1))), "other round, other tokens"


def test_uniforms_are_uniform_and_independent_of_company():
    u = uniforms([str(i) for i in range(200)], 4, 25, seed=1, draw=2)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-4
    assert u.min() >= 0 and u.max() < 1
    lagged = np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]
    assert abs(lagged) < 0.03
    assert np.array_equal(u[7 * 4 : 8 * 4], uniforms(["7"], 4, 25, seed=1, draw=2))
    assert len(np.unique(u)) == u.size


# --- the distribution itself, on logits over 320 tokens -------------------------------------------------


def chi_square_p(counts: np.ndarray, p: np.ndarray) -> float:
    """p-value of observed counts against p; cells expected below 5 are pooled."""
    expected = p * counts.sum()
    small = expected < 5
    seen = np.append(counts[~small], counts[small].sum())
    wanted = np.append(expected[~small], expected[small].sum())
    if wanted[-1] < 5:  # too little even together: it joins the smallest cell
        i = int(np.argmin(wanted[:-1]))
        seen[i] += seen[-1]
        wanted[i] += wanted[-1]
        seen, wanted = seen[:-1], wanted[:-1]
    return float(stats.chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(wanted) - 1))


def first_token_counts(engine, tau, n=60_000, vocab=320):
    engine.max_rows = 20_000
    tokens = []
    for part in range(3):
        tokens.append(engine.sample([PROMPTS[1]], ["chi"], n // 3, tau, 1, seed=11, draw=part).tokens)
    return np.bincount(torch.cat(tokens).flatten().numpy(), minlength=vocab)


def exact(policy, tau):
    with torch.no_grad():
        z = policy.model(torch.tensor([PROMPTS[1]])).logits[0, -1].double()
    return torch.softmax(z / tau, -1).numpy()


@pytest.mark.parametrize("kind", ENGINES)
def test_chi_square_accepts_the_engine(kind, qwen):
    # A generation config as hostile as the hub's: none of it may reach the draw.
    kept = copy.deepcopy(qwen.model.generation_config)
    g = qwen.model.generation_config
    g.top_k, g.top_p, g.min_p, g.temperature, g.repetition_penalty = 50, 0.9, 0.05, 0.5, 5.0
    g.suppress_tokens, g.bad_words_ids = exact(qwen, 1.0).argsort()[-3:].tolist(), [[20]]
    try:
        counts = first_token_counts(engine_of(kind, qwen), 1.0)
    finally:
        qwen.model.generation_config = kept
    p = exact(qwen, 1.0)
    assert (p * counts.sum() >= 5).sum() > 100, "the logits must be spread for the test to see anything"
    assert chi_square_p(counts, p) > 1e-4


def test_chi_square_rejects_top_k_and_a_wrong_temperature(qwen):
    p = exact(qwen, 1.0)
    z = torch.from_numpy(np.log(p))[None].expand(60_000, -1)
    noise = torch.from_numpy(uniforms(["x"], 60_000, 1, 11, 0)[:, 0])
    count = lambda logits, tau: np.bincount(  # noqa: E731
        choose(logits, noise, tau)[0].numpy(), minlength=len(p)
    )
    assert chi_square_p(count(z, 1.0), p) > 1e-4
    floor = z.topk(50, -1).values[:, -1:]
    assert chi_square_p(count(z.masked_fill(z < floor, -torch.inf), 1.0), p) < 1e-4
    assert chi_square_p(count(z, 1.03), p) < 1e-4
    assert chi_square_p(count(z, 0.97), p) < 1e-4


def test_chi_square_rejects_generate_with_its_default_top_k(qwen):
    """What a plain `generate(do_sample=True)` call would have done with a hub model's top_k = 50."""
    torch.manual_seed(0)
    ids = torch.tensor([PROMPTS[1]]).repeat(20_000, 1)
    mask = torch.ones_like(ids)
    out = [
        qwen.model.generate(ids, attention_mask=mask, do_sample=True, max_new_tokens=1, top_k=50)[:, -1]
        for _ in range(2)
    ]
    counts = np.bincount(torch.cat(out).numpy(), minlength=320)
    assert chi_square_p(counts, exact(qwen, 1.0)) < 1e-4


def test_choose_handles_extreme_numbers():
    z = torch.tensor([[0.0, -1e4, 3.0, -torch.inf]])
    for u in (0.0, 0.5, 1 - 2.0**-53):
        token, log_p = choose(z, torch.tensor([u], dtype=torch.float64), 1.0)
        assert token.item() in (0, 2) and torch.isfinite(log_p).all()
    assert choose(z, torch.tensor([0.1], dtype=torch.float64), 0.0)[0].item() == 2


@pytest.mark.parametrize("kind", ENGINES)
def test_every_end_of_sequence_id_ends_an_answer(kind):
    policy = random_policy(seed=4)
    policy.model.generation_config.eos_token_id = [2, 17, 40, 41, 42, 43]
    rollouts = engine_of(kind, policy).sample(PROMPTS, KEYS, 64, 1.0, 24, seed=1)
    last = rollouts.tokens[torch.arange(len(rollouts)), rollouts.lengths - 1]
    enders = torch.tensor([2, 17, 40, 41, 42, 43])
    assert torch.equal(torch.isin(last, enders), rollouts.finished)
    assert rollouts.finished.any() and (last[rollouts.finished] != 2).any()
    inner = torch.arange(rollouts.tokens.shape[1]) < (rollouts.lengths - 1)[:, None]
    assert not (torch.isin(rollouts.tokens, enders) & inner).any()


@pytest.mark.parametrize("kind", ENGINES)
def test_an_engine_keeps_its_weights_until_refreshed(kind):
    policy = random_policy(seed=2)
    engine = engine_of(kind, policy)
    before = engine.sample(PROMPTS, KEYS, 2, 1.0, 12, seed=0)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    policy.version += 1
    stale = engine.sample(PROMPTS, KEYS, 2, 1.0, 12, seed=0)
    assert torch.equal(before.log_probs, stale.log_probs) and stale.version == 0
    engine.refresh(policy)
    fresh = engine.sample(PROMPTS, KEYS, 2, 1.0, 12, seed=0)
    assert fresh.version == 1 and not torch.equal(before.log_probs, fresh.log_probs)


def test_engines_by_name_with_settings(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "vllm" or found(name))
    assert parse_engine("auto") == ("auto", {})
    assert parse_engine("vllm:tensor_parallel_size=2:gpu_memory_utilization=0.5:quantization=fp8") == (
        "vllm",
        {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "quantization": "fp8"},
    )
    for name, word in (("sglang", "sglang"), ("static:x=1", "static:x=1"), ("vllm:x", "name=value")):
        with pytest.raises(SeptError, match=word) as error:
            parse_engine(name)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SeptError, match="not installed"):
        parse_engine("vllm")


def test_bad_requests_get_one_line(qwen):
    engine = engine_of(StaticEngine, qwen)
    for arguments, word in (
        (([], [], 1, 1.0, 4, 0), "empty"),
        ((PROMPTS, KEYS, 0, 1.0, 4, 0), "n = 0"),
        ((PROMPTS, KEYS, 1, -0.5, 4, 0), "-0.5"),
        ((PROMPTS, KEYS, 1, float("nan"), 4, 0), "nan"),
        ((PROMPTS, KEYS, 1, 1.0, 95, 0), "context"),
    ):
        with pytest.raises(SeptError, match=word) as error:
            engine.sample(*arguments)
        assert "\n" not in str(error.value)


# --- the static engine's bookkeeping: rows that move, prompts shared by samples, threads ----------------


@pytest.mark.parametrize("kv", [1, 2])
def test_rows_that_take_a_finished_rows_place_stay_themselves(kv):
    policy = random_policy(seed=6, kv=kv)
    policy.model.generation_config.eos_token_id = [
        2,
        *range(40, 70),
    ]  # a tenth of the vocabulary: short answers
    engine = engine_of(StaticEngine, policy)
    rollouts = engine.sample(PROMPTS, KEYS, 16, 1.0, 24, seed=3)
    assert len(rollouts.lengths.unique()) > 12, "rows must finish all the time for this to see anything"
    batch = make_batch(rollouts.prompts, rollouts.tokens, rollouts.lengths)
    with torch.no_grad():
        logits = response_logits(policy.model, batch)
    expected = token_log_probs(logits, batch.tokens, 1.0)
    gap = (expected - rollouts.log_probs[:, : expected.shape[1]]).abs() * batch.mask
    assert gap.max() <= 1e-4
    other = engine_of(TransformersEngine, policy).sample(PROMPTS, KEYS, 16, 1.0, 24, seed=3)
    width = min(rollouts.tokens.shape[1], other.tokens.shape[1])
    assert torch.equal(rollouts.tokens[:, :width], other.tokens[:, :width])


@pytest.mark.parametrize("worth", [0, 10**12])
def test_threads_and_block_sizes_change_no_token(worth, qwen, monkeypatch):
    """Threads with blocks of their own, and threads that share every operation of one block after the other."""
    engine = engine_of(StaticEngine, qwen)
    whole = engine.sample(PROMPTS, KEYS, 8, 1.0, 20, seed=7)
    engine.worth, engine.max_rows, real = worth, 8, engine._decode
    threads = set()

    def decode(*arguments):
        threads.add((threading.current_thread().name[:6], torch.get_num_threads()))
        real(*arguments)

    monkeypatch.setattr(engine, "_decode", decode)
    torch.set_num_threads(2)
    parts = engine.sample(PROMPTS, KEYS, 8, 1.0, 20, seed=7)
    assert torch.get_num_threads() == 2, "the caller's threads are left as they were"
    assert threads == {("MainTh", 2) if worth else ("Thread", 1)}
    assert torch.equal(whole.tokens, parts.tokens)
    assert torch.allclose(whole.log_probs, parts.log_probs, atol=1e-5)


def test_a_token_is_the_first_whose_running_sum_exceeds_its_uniform():
    torch.manual_seed(0)
    z, u = torch.randn(500, 320) * 3, torch.rand(500, dtype=torch.float64)
    u[:2] = torch.tensor([0.0, 1 - 2.0**-53])
    cdf = torch.log_softmax(z / 0.6, -1).double().exp().cumsum(-1)
    expected = (cdf <= (u * cdf[:, -1])[:, None]).sum(-1).clamp_max(319)
    assert torch.equal(choose(z, u, 0.6)[0], expected)
    never = torch.tensor([[-torch.inf, 0.0, 0.0]])
    for uniform, token in ((0.0, 1), (0.5, 2)):
        assert choose(never, torch.tensor([uniform], dtype=torch.float64), 1.0)[0].item() == token
