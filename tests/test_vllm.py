"""The vLLM engine, for real: run by `make test-vllm` in an environment with vLLM's CPU build.

Checkpoints are made here: random Qwen2 and Llama models, tied and untied, and base H with heads widened to
the 64 features that vLLM asks for.
"""

import copy
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import random_policy
from scipy import stats
from test_sampling import chi_square_p

from sept import sampling_vllm
from sept.config import SeptError, preset
from sept.experiments import Run, Score, compute, counts
from sept.loop import StaleSamplerError, train
from sept.objectives import entropy, token_log_probs
from sept.policy import Policy, load_policy, make_batch, response_logits, save_policy
from sept.problems import Problem, ProblemSet, load_problems
from sept.sampling import make_sampler
from sept.sampling_vllm import VllmEngine

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

KINDS = [("qwen2", True), ("qwen2", False), ("llama", True), ("llama", False)]
PROMPTS = [[1, 7, 9], [1, 20, 21, 22, 23, 24], [1, 5], [1, 30, 31, 32, 33]]
KEYS = ["a", "b", "c", "d"]
SMALL = {"kv_cache_memory_bytes": 2**28}


def small_policy(kind="qwen2", tied=True, **options):
    policy = random_policy(kind, hidden=128, heads=2, kv=1, tied=tied, context=256, **options)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(0.5)  # the spread of logits of the narrower ones
    return policy


def engine_of(policy, **options):
    engine = VllmEngine(**SMALL, **options)
    engine.refresh(policy)
    return engine


@pytest.fixture(scope="module", params=KINDS, ids=[f"{k}-{'tied' if t else 'untied'}" for k, t in KINDS])
def pair(request):
    """A policy and an engine that holds its weights; tests that change them leave the two equal.

    A start takes most of a test's time, so each kind has one engine for all of its tests.
    """
    policy = small_policy(*request.param)
    # A generation config as hostile as the hub's, and contradictory: none of it may reach a draw.
    hostile = {"top_k": 50, "top_p": 0.9, "min_p": 0.05, "temperature": 0.5, "repetition_penalty": 5.0}
    vars(policy.model.generation_config).update(do_sample=False, **hostile)
    return policy, engine_of(policy)


one_kind = pytest.mark.parametrize("pair", KINDS[:1], indirect=True, ids=["qwen2-tied"])
two_kinds = pytest.mark.parametrize(
    "pair", [KINDS[0], KINDS[3]], indirect=True, ids=["qwen2-tied", "llama-untied"]
)


def gap(policy, rollouts):
    """Largest difference of the engine's log-probs from a plain forward pass of the policy."""
    batch = make_batch(rollouts.prompts, rollouts.tokens, rollouts.lengths)
    with torch.no_grad():
        logits = response_logits(policy.model, batch, policy.vocab)
    own = token_log_probs(logits, batch.tokens, rollouts.tau or 1.0)
    return ((own - rollouts.log_probs[:, : own.shape[1]]).abs() * batch.mask).max().item()


def change(policy, size=0.02):
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(torch.randn_like(p) * size)
    policy.version += 1


# --- draws ----------------------------------------------------------------------------------------------


def test_greedy_equals_transformers(pair):
    policy, engine = pair
    ours = engine.sample(PROMPTS, KEYS, 1, 0.0, 24, seed=0)
    plain = copy.deepcopy(policy.model)
    plain.generation_config = type(plain.generation_config)(
        eos_token_id=list(policy.eos_ids), pad_token_id=0
    )
    for i, prompt in enumerate(PROMPTS):
        out = plain.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)
        assert ours.tokens[i, : ours.lengths[i]].tolist() == out[0, len(prompt) :].tolist()
    assert gap(policy, ours) <= 1e-4


@pytest.mark.parametrize("tau", [1.0, 0.6, 1.3])
def test_processed_log_probs_are_the_policys_at_tau(pair, tau):
    policy, engine = pair
    rollouts = engine.sample(PROMPTS, KEYS, 16, tau, 24, seed=3)
    found = gap(policy, rollouts)
    print(f"largest difference {found:.1e} nats")
    assert found <= 1e-4
    assert rollouts.tau == tau and rollouts.version == policy.version


def exact(policy, prompt, tau):
    with torch.no_grad():
        z = policy.model(torch.tensor([prompt])).logits[0, -1].double()
    return torch.softmax(z / tau, -1).numpy()


@two_kinds
@pytest.mark.parametrize("tau", [1.0, 0.6])
def test_chi_square_accepts_the_distribution_and_rejects_another_temperature(pair, tau):
    policy, engine = pair
    prompt = PROMPTS[1]
    tokens = engine.sample([prompt], ["chi"], 6_000, tau, 2, seed=11).tokens
    first = np.bincount(tokens[:, 0].numpy(), minlength=320)
    p = exact(policy, prompt, tau)
    assert (p * first.sum() >= 5).sum() > 40, "the logits must be spread for the test to see anything"
    assert chi_square_p(first, p) > 1e-4
    assert chi_square_p(first, exact(policy, prompt, 1.6 - tau)) < 1e-4, "0.6 for 1 and 1 for 0.6"

    def surprise(q):  # the statistic that feels the temperature most: mean log-prob, in standard errors
        log_q = np.log(q)
        mean = (q * log_q).sum()
        deviation = np.sqrt((q * (log_q - mean) ** 2).sum())
        return abs((first * log_q).sum() / first.sum() - mean) / deviation * np.sqrt(first.sum())

    assert surprise(p) < 4
    assert min(surprise(exact(policy, prompt, tau * factor)) for factor in (0.9, 1.1)) > 4
    # The second token, behind the likeliest first that does not end the answer.
    counts = np.where(np.isin(np.arange(320), policy.eos_ids), 0, first)
    likeliest = int(counts.argmax())
    second = np.bincount(tokens[tokens[:, 0] == likeliest, 1].numpy(), minlength=320)
    assert second.sum() > 100
    assert chi_square_p(second, exact(policy, [*prompt, likeliest], tau)) > 1e-4


@one_kind
def test_seeds_are_coordinates(pair):
    _, engine = pair
    pad = lambda t: torch.nn.functional.pad(t, (0, 16 - t.shape[1]))  # noqa: E731

    def draw(order, seed=0, round=0, prefix=""):
        keys = [prefix + KEYS[i] for i in order]
        return pad(engine.sample([PROMPTS[i] for i in order], keys, 3, 1.0, 16, seed, round).tokens)

    first = draw([0, 1, 2, 3])
    assert torch.equal(first, draw([0, 1, 2, 3])), "same coordinates, same tokens"
    rows = torch.tensor([2, 1, 3, 0])[:, None] * 3 + torch.arange(3)
    assert torch.equal(first, draw([3, 1, 0, 2])[rows.flatten()]), "other batch order, same tokens"
    assert torch.equal(first[3:6], draw([1])), "one question alone, same tokens"
    assert len({tuple(row) for row in first[:3].tolist()}) == 3, "samples of one question differ"
    for other in ({"seed": 1}, {"round": 1}, {"prefix": "x"}):
        assert not torch.equal(first, draw([0, 1, 2, 3], **other))


@one_kind
def test_every_end_of_sequence_id_ends_an_answer_and_counts(pair):
    policy, engine = pair
    rollouts = engine.sample(PROMPTS, KEYS, 64, 1.0, 24, seed=1)
    last = rollouts.tokens[torch.arange(len(rollouts)), rollouts.lengths - 1]
    enders = torch.tensor(policy.eos_ids)
    assert torch.equal(torch.isin(last, enders), rollouts.finished)
    assert len(set(last[rollouts.finished].tolist())) > 5 and not rollouts.finished.all()
    assert (rollouts.lengths[~rollouts.finished] == 24).all()
    inner = torch.arange(rollouts.tokens.shape[1]) < (rollouts.lengths - 1)[:, None]
    assert not (torch.isin(rollouts.tokens, enders) & inner).any()


@one_kind
def test_prompts_up_to_the_context_limit(pair):
    policy, engine = pair
    long = (torch.arange(255) % 200 + 5).tolist()
    one = engine.sample([long], ["long"], 4, 1.0, 1, seed=0)
    assert one.lengths.tolist() == [1] * 4 and gap(policy, one) <= 1e-4
    rollouts = engine.sample([long[:232], [1, 5]], ["long", "short"], 16, 1.0, 24, seed=0)
    assert rollouts.lengths[:16].max() == 24 and gap(policy, rollouts) <= 1e-4
    with pytest.raises(SeptError, match="context is 256"):
        engine.sample([long[:233]], ["long"], 1, 1.0, 24, seed=0)


def test_rows_of_a_padded_vocabulary_are_never_drawn():
    policy = small_policy("llama", tied=False)
    with torch.no_grad():
        policy.model.lm_head.weight[300:] = policy.model.lm_head.weight[5] * 2
    policy.model.generation_config.eos_token_id = 2
    policy.vocab = 300
    rollouts = engine_of(policy).sample(PROMPTS, KEYS, 16, 1.0, 24, seed=0)
    assert rollouts.tokens.max() < 300 and gap(policy, rollouts) <= 1e-4
    policy.vocab = None
    assert gap(policy, rollouts) > 1e-2, "they would have been likely"


# --- refreshes ------------------------------------------------------------------------------------------


def test_three_refreshes_are_seen(pair, capsys):
    policy, engine = pair
    for _ in range(3):
        change(policy)
        old = engine.sample(PROMPTS, KEYS, 4, 0.6, 16, seed=0)
        assert old.version == policy.version - 1 and gap(policy, old) > 1e-2
        engine.refresh(policy)
        new = engine.sample(PROMPTS, KEYS, 4, 0.6, 16, seed=0)
        assert new.version == policy.version and gap(policy, new) <= 1e-4
        assert "canary" in capsys.readouterr().out
        greedy = engine.sample(PROMPTS, KEYS, 1, 0.0, 16, seed=0).tokens
        built_in = make_sampler(policy, "transformers").sample(PROMPTS, KEYS, 1, 0.0, 16, seed=0).tokens
        assert torch.equal(greedy, built_in)


@pytest.fixture()
def lent(pair):
    """The engine of a kind for weights of a test's own."""
    policy, engine = pair
    yield engine
    engine.refresh(policy)


@one_kind
def test_lora_adapters_reach_the_engine(lent):
    peft = pytest.importorskip("peft")
    policy, engine = small_policy(), lent
    policy.model = peft.get_peft_model(policy.model, peft.LoraConfig(r=4, target_modules="all-linear"))
    engine.refresh(policy)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2)
    policy.version += 1
    assert gap(policy, engine.sample(PROMPTS, KEYS, 4, 1.0, 16, seed=0)) > 1e-2
    engine.refresh(policy)
    assert gap(policy, engine.sample(PROMPTS, KEYS, 4, 1.0, 16, seed=0)) <= 1e-4


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_the_canary_catches_the_stale_head_of_a_tied_checkpoint(kind, monkeypatch):
    """vLLM's CPU build packs a tied head at start, and a reload leaves the packed copy as it was."""
    untied = sampling_vllm._untied
    monkeypatch.setattr(
        sampling_vllm, "_write_config", lambda p, folder: p.model.config.save_pretrained(folder)
    )
    monkeypatch.setattr(
        sampling_vllm, "_untied", lambda p: ((k, v) for k, v in untied(p) if "lm_head" not in k)
    )
    engine = VllmEngine(**SMALL)
    with pytest.raises(StaleSamplerError, match="stale or wrong") as error:
        engine.refresh(small_policy(kind, tied=True))
    assert "\n" not in str(error.value) and engine.version == -1


@one_kind
@pytest.mark.parametrize("what", ["collective_rpc", "reset_prefix_cache"])
def test_the_canary_catches_what_a_refresh_left_out(what, lent):
    policy, engine = small_policy(seed=2), lent
    engine.refresh(policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.llm, what, lambda *a, **k: None)
        change(policy)
        with pytest.raises(StaleSamplerError, match="stale or wrong"):
            engine.refresh(policy)
    assert engine.version == 0, "the stamp must not run ahead of the weights"


@one_kind
def test_a_training_stops_at_a_refresh_that_did_nothing(lent, tmp_path):
    policy, engine = small_policy(seed=1), lent
    words = tuple(Problem(str(i), "words", f"w{i} w{i + 3} w{2 * i}", "w9") for i in range(24))
    engine.refresh(policy)
    config = preset("sept", rounds=3, warmup=0, questions=8, mini_batch=4, max_new_tokens=12, lr=1e-3)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StaleSamplerError, match="weights version 2"):
        patch.setattr(engine.llm, "collective_rpc", lambda *a, **k: None)
        train(config, policy, ProblemSet("words", words), tmp_path / "run", sampler=engine)


# --- mistakes -------------------------------------------------------------------------------------------


@one_kind
def test_mistakes_get_one_line(pair):
    _, engine = pair
    with pytest.raises(SeptError, match=r"0\.005.*0\.01") as error:
        engine.sample(PROMPTS, KEYS, 1, 0.005, 4, seed=0)
    assert "\n" not in str(error.value)
    with pytest.raises(SeptError, match="leave it out"):
        make_sampler(small_policy(), "vllm:dtype=bfloat16")


@pytest.mark.parametrize(
    ("model", "setting", "word"),
    [
        ("H", "max_num_seqs=8", "head_dim=24"),
        ("wide", "no_such_setting=1", "no_such_setting"),
        ("wide", "data_parallel_size=2", "data_parallel_size=2"),
    ],
)
def test_what_vllm_refuses_gets_one_line(wide, model, setting, word):
    """In a process of their own: a start that fails leaves vLLM unfit for another one."""
    name = wide if model == "wide" else model
    run = cli("eval", "--model", name, "--problems", "toy:dev:1", "--engine", f"vllm:{setting}")
    said = run.communicate()[0]
    lines = [line for line in said.splitlines() if line.startswith("sept: ")]
    assert run.returncode == 2 and len(lines) == 1 and "Traceback" not in said, said
    assert "cannot start" in lines[0] and word in lines[0]


# --- whole runs -----------------------------------------------------------------------------------------


def widened(policy, hidden=256, dim=64):
    """The same function with heads of `dim` features: zeros in between, rotation and norms made up for."""
    config = copy.deepcopy(policy.model.config)
    h, heads, kv = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    d = h // heads
    rope = config.rope_parameters
    config.rope_parameters = {**rope, "rope_theta": rope["rope_theta"] ** (dim / d)}
    config.hidden_size, config.rms_norm_eps = hidden, config.rms_norm_eps * h / hidden
    model = type(policy.model)(config)
    halves = torch.cat([torch.arange(d // 2), dim // 2 + torch.arange(d // 2)])  # i turns with i + dim / 2
    state = policy.model.state_dict()
    with torch.no_grad():
        for name, p in model.named_parameters():
            value = state[name]
            p.zero_()
            if "norm" in name:
                value = value * (h / hidden) ** 0.5
            if "self_attn" not in name:
                p[tuple(slice(0, n) for n in value.shape)] = value
                continue
            count = heads if "q_proj" in name or "o_proj" in name else kv
            inside = halves if "q_proj" in name or "k_proj" in name else torch.arange(d)
            rows = (torch.arange(count)[:, None] * dim + inside).flatten()
            if "q_proj" in name:
                value = value * (dim / d) ** 0.5
            if "o_proj" in name:
                p[:h, rows] = value
            elif name.endswith("bias"):
                p[rows] = value
            else:
                p[rows, :h] = value
    return Policy(model.eval(), policy.tokenizer, f"wide {policy.name}")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Folder of base H with heads of 64 features."""
    folder = tmp_path_factory.mktemp("wide") / "H"
    base = load_policy("H")
    policy = widened(base)
    ids = torch.randint(0, 24, (4, 60))
    with torch.no_grad():
        assert (base.model(ids).logits - policy.model(ids).logits).abs().max() < 1e-2
    save_policy(policy, folder)
    return folder


def test_a_sept_run_comes_out_as_with_the_built_in_engine(wide, tmp_path):
    problems, test = load_problems("toy:train:add3+sub3"), load_problems("toy:test:add3+sub3:32")

    base, found = load_policy(str(wide)), {"static": [], "vllm": []}
    prompts, names = [base.encode(p.prompt) for p in test.items], [p.id for p in test.items]
    visited = make_sampler(base, "static").sample(prompts, names, 8, 1.0, 56, 0)
    batch = make_batch(visited.prompts, visited.tokens, visited.lengths)

    def spread(policy):
        """Entropy of the next token summed over the base's answers, nats an answer: no draw, no noise."""
        with torch.no_grad():
            tokens = entropy(response_logits(policy.model, batch))
        return (tokens * batch.mask).sum().item() / len(visited)

    for name, values in found.items():
        sampler = make_sampler(base, name)  # one engine for four runs
        for seed in (100, 101, 102, 103):
            policy = load_policy(str(wide))
            sampler.refresh(policy)
            config = preset("sept", rounds=12, questions=64, mini_batch=32, warmup=0, seed=seed, lr=2e-4)
            rows = train(config, policy, problems, tmp_path / f"{name}-{seed}", sampler=sampler)
            assert max(row["sampler_gap"] for row in rows) < 1e-5
            assert [row["version"] for row in rows] == list(range(2, 26, 2))
            values.append(spread(base) - spread(policy))

    def interval(values):
        half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        return np.mean(values) - half, np.mean(values) + half

    drops = {name: interval(values) for name, values in found.items()}
    drops["vllm - static"] = interval(np.subtract(found["vllm"], found["static"]))
    for name, (low, high) in drops.items():
        print(f"{name}: sharper by [{low:+.3f}, {high:+.3f}] of {spread(base):.2f} nats an answer")
    assert drops["static"][0] > 0 and drops["vllm"][0] > 0, "both sharpen"
    assert drops["vllm - static"][0] < 0 < drops["vllm - static"][1], "and as much"
    width = drops["vllm - static"][1] - drops["vllm - static"][0]
    assert width < 2 * np.mean(drops["static"]), "or nothing would have been compared"


def cli(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "sept", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"},
        **options,
    )


def test_a_killed_run_goes_on_to_the_same_result(wide, tmp_path):
    settings = ["rounds=6", "questions=16", "mini_batch=8", "warmup=0", "save_every=1"]
    common = ["train", "--model", wide, "--engine", "vllm", *(x for s in settings for x in ("--set", s))]
    whole = cli(*common, "--out", tmp_path / "whole")  # beside the other one
    out = tmp_path / "killed"
    run = cli(*common, "--out", out)
    end = time.monotonic() + 1200
    while not (out / "checkpoint-2").is_dir() and run.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (out / "final").is_dir(), "it was to be killed on its way"
    assert not list(out.glob("checkpoint-6"))
    other = cli(*common[:3], *common[5:], "--out", out, "--resume")  # without --engine vllm
    said = other.communicate()[0]
    assert other.returncode == 2 and "another run (different engine)" in said, said
    again = cli(*common, "--out", out, "--resume")
    for run in (again, whole):
        said = run.communicate()[0]
        assert run.returncode == 0, said
    assert (out / "rounds.jsonl").read_bytes() == (tmp_path / "whole" / "rounds.jsonl").read_bytes()
    for name in ("model.safetensors", "config.json"):
        assert (out / "final" / name).read_bytes() == (tmp_path / "whole" / "final" / name).read_bytes()


def test_the_command_evaluates_and_sweeps_with_it(wide, tmp_path):
    problems = ["--problems", "toy:test:add3+sub3:24", "--n", 8, "--temperatures", "0,1"]
    files = [tmp_path / "built-in.json", tmp_path / "vllm.json"]
    engines = ["static", "vllm:max_num_seqs=64"]
    runs = [
        cli("sweep", "--model", wide, *problems, "--engine", engine, "--json", file)
        for engine, file in zip(engines, files, strict=True)
    ]
    for run in runs:
        said = run.communicate()[0]
        assert run.returncode == 0, said
    greedy, drawn = zip(*(json.loads(file.read_text())["sweep"] for file in files), strict=True)
    assert greedy[0] == greedy[1], "greedy answers are the same"
    a, b = (row["pass@1"] for row in drawn)
    assert a["lo"] <= b["value"] <= a["hi"] and b["lo"] <= a["value"] <= b["hi"]


def test_the_results_store_trains_and_scores_with_it(wide):
    """The score after the last round, by the engine that trains, is the score of the last weights."""
    tiny = (("mini_batch", 4), ("questions", 8), ("rounds", 2), ("warmup", 0))
    engine = "vllm:kv_cache_memory_bytes=268435456"
    run = Run(str(wide), "sept", 7, overrides=tiny, engine=engine)
    way, last = (Score(run, "toy:dev:2", 1.0, 8, at=at, engine=engine) for at in (2, None))
    compute([way, last], workers=1)
    assert counts(way).equals(counts(last)) and counts(last)["n"].tolist() == [8] * 12


def test_two_tensor_parallel_ranks(tmp_path):
    """Settings reach vLLM, and a refresh reaches every rank; on a CPU the ranks need cores by name."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    script = tmp_path / "ranks.py"
    script.write_text(
        "from test_vllm import *\n"
        "if __name__ == '__main__':\n"
        "    policy = random_policy(hidden=128, heads=2, kv=2, context=256)\n"
        "    engine = engine_of(policy, tensor_parallel_size=2)\n"
        "    change(policy)\n"
        "    engine.refresh(policy)\n"
        "    drawn = engine.sample(PROMPTS, KEYS, 4, 0.6, 16, seed=0)\n"
        "    print(engine.llm.llm_engine.vllm_config.parallel_config.tensor_parallel_size, 'ranks')\n"
        "    print('gap', gap(policy, drawn) <= 1e-4, drawn.version)\n"
    )
    paths = [os.path.dirname(__file__), os.getcwd(), *sys.path]
    bound = {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[1]}", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, **bound}, capture_output=True, text=True, timeout=1500
    )
    assert "2 ranks" in done.stdout and "gap True 1" in done.stdout, done.stdout + done.stderr
