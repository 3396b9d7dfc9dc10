"""Models as the hub has them: architectures, heads, padding, precision, revisions, and how they leave again."""

import csv
import json
import re
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import random_policy
from test_cli import complaint, sept

from sept import objectives, steps, theorem
from sept.config import SeptError, preset
from sept.loop import train
from sept.policy import load_policy, make_batch, merged, output_layer, response_logits, save_policy
from sept.problems import Problem, ProblemSet
from sept.sampling import TransformersEngine, make_sampler
from sept.sampling_vllm import VllmEngine

KINDS = ("qwen2", "qwen3", "llama")
TEMPLATE = (  # of words that the stand-in tokenizers have
    "{% for m in messages %}w310 {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w311 {% endif %}"
)
PROBLEMS = ProblemSet(
    "words", tuple(Problem(str(i), "words", f"w{i} w{i + 3} w{2 * i}", "w9") for i in range(24))
)
SMALL = {"rounds": 2, "warmup": 0, "questions": 8, "mini_batch": 4, "micro_batch": 3, "max_new_tokens": 12}


def checkpoint(folder, kind="qwen2", tied=True, padding=9, **more):
    """A hub-like folder: `padding` embedding rows beyond the tokenizer, two end tokens, a chat template."""
    made = random_policy(kind, tied=tied, rows=320 + padding, **more)
    made.tokenizer.chat_template = TEMPLATE
    if kind == "qwen2":  # transformers loads every such tokenizer as byte pairs, which have no words
        made.tokenizer.add_tokens([f"w{i}" for i in range(317)])
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
    monkeypatch.setattr("sept.loop.grade_all", lambda texts, *_: [len(text) % 2 == 0 for text in texts])
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
        assert ((a - b).abs().max() / largest).item() <= 2e-6


def test_chunks_are_used_where_logits_are_many_and_only_there(tmp_path, monkeypatch):
    used = []
    real = steps.HeadLoss.apply
    monkeypatch.setattr(steps.HeadLoss, "apply", lambda *a: used.append(1) or real(*a))
    for chunk, expected in ((2**25, 0), (1000, 6)):
        monkeypatch.setattr(steps, "CHUNK", chunk)
        config = preset(
            "sept", **{**SMALL, "rounds": 1, "questions": 12, "mini_batch": 12, "micro_batch": 2}
        )
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


LOSS = Path(__file__).parents[1] / "bench" / "loss_memory.py"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_peak_memory_of_the_loss(tmp_path):
    """4,096 tokens in chunks take less than the plain way takes for an eighth of them (V = 151,936)."""

    def run(way, tokens):
        path = tmp_path / f"{way}{tokens}.pt"
        command = [sys.executable, LOSS, "--child", way, path, str(tokens), "151936", "64"]
        subprocess.run(command, check=True)
        return torch.load(path, weights_only=True)

    plain, few, many = run("plain", 512), run("chunks", 512), run("chunks", 4096)
    print(f"plain, 512 tokens: {plain['peak_mib']:.0f} MiB; chunks, 4,096: {many['peak_mib']:.0f} MiB")
    assert many["peak_mib"] <= plain["peak_mib"]
    for a, b in zip(plain["gradients"], few["gradients"], strict=True):
        assert ((a - b).abs().max() / a.abs().max()).item() <= 1e-5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_the_benchmark_of_the_loss_writes_its_table(tmp_path):
    sizes = ["--tokens", "64", "--vocabulary", "1000", "--hidden", "8", "--repeats", "1"]
    command = [sys.executable, LOSS, *sizes, "--out", tmp_path / "l.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(re.search(r"differ by (\S+) of", done.stdout)[1]) <= 1e-5
    way, peak, seconds, *numbers = zip(*csv.reader((tmp_path / "l.csv").open()), strict=True)
    assert way == ("way", "plain", "chunks") and float(seconds[1]) > 0 and peak[0] == "peak_mib"
    assert numbers == [("tokens", "64", "64"), ("vocabulary", "1000", "1000"), ("hidden", "8", "8")]


# --- padded vocabularies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_rows_beyond_the_tokenizer_do_not_exist(kind, tmp_path):
    """They are likely here, and neither drawn by an engine, nor in the loss, nor a reason for the canary."""
    made = load_policy(str(checkpoint(tmp_path / "model", kind, tied=False)))
    assert made.vocab == 320 and made.model.config.vocab_size == 329
    prompts, ids = [made.encode("w1 w2")], ["a"]
    with torch.no_grad():
        last = made.model.model(torch.tensor(prompts)).last_hidden_state[0, -1]
        made.model.get_output_embeddings().weight[320:] = last / last.norm()
        logits = made.model(torch.tensor(prompts)).logits[0, -1]
        assert logits.softmax(-1)[320:].sum() > 0.1
    for engine in ("auto", "transformers"):
        drawn = make_sampler(made, engine).sample(prompts, ids, 400, 1.0, 3, seed=0)
        assert drawn.tokens.max() < 320
        batch = make_batch(drawn.prompts, drawn.tokens, drawn.lengths)
        with torch.no_grad():
            logits = response_logits(made.model, batch, made.vocab)
        log_p = objectives.token_log_probs(logits, batch.tokens)
        assert logits.shape[-1] == 320
        assert ((log_p - drawn.log_probs).abs() * batch.mask).max() < 1e-4
    rows = train(preset("sept", **SMALL, lr=1e-3), made, PROBLEMS, tmp_path / "run")
    assert all(row["sampler_gap"] < 1e-4 for row in rows)


# --- precision ----------------------------------------------------------------------------------------------


def test_the_first_step_tells_whether_weights_can_take_it(tmp_path):
    """Pure bfloat16 loses steps of 1e-7; float32 weights do not."""
    folder = checkpoint(tmp_path / "model", "qwen3")
    shares = {}
    for dtype in (torch.bfloat16, torch.float32):
        made, out = load_policy(str(folder), dtype), tmp_path / str(dtype)
        config = preset("sept", **{**SMALL, "rounds": 3, "warmup": 1, "lr": 1e-7})
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            rows = train(config, made, PROBLEMS, out)
        shares[dtype] = rows[1]["changed"]
        assert [("changed" in row) for row in rows] == [False, True, False], "round 0 runs at lr 0"
        told = [str(w.message) for w in seen if "first optimizer step" in str(w.message)]
        assert len(told) == (dtype == torch.bfloat16)
    assert shares[torch.bfloat16] < 0.02 and shares[torch.float32] > 0.9


@pytest.mark.parametrize("chunk", [2**25, 1000])
def test_float32_weights_compute_in_bfloat16(chunk, tmp_path, monkeypatch):
    """What a GPU does by default, here on the CPU: close to float32, in weights, loss and gradient."""
    results = []
    for compute in (torch.float32, torch.bfloat16):
        made = random_policy("llama", tied=False)
        made.compute = compute
        fields = {"objective": "nll", "grad_clip": 0, "micro_batch": 8}
        row, gradients = first_step(monkeypatch, tmp_path / str(compute), made, chunk, **fields)
        assert all(g.dtype == torch.float32 for g in gradients)
        results.append((row, torch.cat([g.flatten() for g in gradients])))
    (row, exact), (rough_row, rough) = results
    assert rough_row["loss"] != row["loss"] and rough_row["sampler_gap"] > row["sampler_gap"]
    assert rough_row["loss"] == pytest.approx(row["loss"], rel=0.05)
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=0) > 0.98


def test_the_engine_holds_what_it_computes_in():
    made = random_policy("llama", tied=True)
    made.compute = torch.bfloat16
    engine = TransformersEngine()
    engine.refresh(made)
    assert {p.dtype for p in engine.frozen.parameters()} == {torch.bfloat16}
    assert engine.frozen.model.rotary_emb.inv_freq.dtype == torch.float32, "angles need their digits"
    assert engine.frozen.lm_head.weight is engine.frozen.model.embed_tokens.weight
    assert next(made.model.parameters()).dtype == torch.float32


def test_devices_and_dtypes_are_checked(monkeypatch, capsys):
    with (
        pytest.raises(SeptError, match="no GPU")
        if not torch.cuda.is_available()
        else warnings.catch_warnings()
    ):
        load_policy("H", device="cuda")
    code, _, err = sept(monkeypatch, capsys, "eval", "--dtype", "int8")
    assert code == 2 and "bfloat16" in complaint(err)


# --- where models come from --------------------------------------------------------------------------------


def hub_cache(home, folder, commits, branch="main"):
    """A hub cache that holds tiny/model at several commits; the branch points at the last."""
    root = home / "hub" / "models--tiny--model"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / branch).write_text(commits[-1])
    for commit in commits:
        target = root / "snapshots" / commit
        target.mkdir(parents=True)
        for file in folder.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    return root


def test_revisions_are_pinned_and_recorded(tmp_path, monkeypatch, capsys):
    """`owner/name@revision` through a hub cache: what was asked for is loaded, its commit is written down."""
    old, new = "a" * 40, "b" * 40
    root = hub_cache(tmp_path / "home", checkpoint(tmp_path / "model"), (old, new))
    config = root / "snapshots" / old / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": 1e-3}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    rows = [{"prompt": f"w{i} w2", "answer": "w3"} for i in range(8)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small = [f"--set={k}={v}" for k, v in {**SMALL, "rounds": 1, "micro_batch": 4}.items()]
    keys = set()
    for model, commit in ((f"tiny/model@{old}", old), ("tiny/model", new), ("tiny/model@main", new)):
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        given = ("--model", model, "--problems", tmp_path / "p.jsonl", "--out", out)
        code, told, err = sept(monkeypatch, capsys, "train", *given, *small)
        assert code == 0, err
        assert f"commit {commit}" in told and "float32 compute, on cpu" in told
        record = json.loads((out / "config.json").read_text())
        assert record["revision"] == commit and record["name"] == "sept"
        keys.add(record["identity"]["checkpoint"])
        card = (out / "final" / "README.md").read_text()
        assert "base_model: tiny/model\n" in card and commit in card and "license" not in card
    assert len(keys) == 2, "the old commit is another model"
    code, _, err = sept(monkeypatch, capsys, "eval", "--model", "tiny/model@nowhere")
    assert code == 2 and "tiny/model@nowhere" in complaint(err)


def test_code_of_a_repository_runs_only_when_asked_for(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "model")
    mark = tmp_path / "it-ran"
    (folder / "own.py").write_text(
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        f"open({str(mark)!r}, 'w').close()\n"
        "class OwnConfig(Qwen2Config):\n    model_type = 'own'\n"
        "class OwnModel(Qwen2ForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": own}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SeptError, match="--trust-remote-code"):
        load_policy(str(folder))
    assert not mark.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.warns(UserWarning, match=re.escape(str(folder))):
        made = load_policy(str(folder), trust_remote_code=True)
    assert mark.exists() and type(made.model).__name__ == "OwnModel"


# --- the whole way, by the command ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tied"),
    [
        pytest.param(k, tied, marks=[] if (k, tied) == ("qwen3", True) else pytest.mark.slow)
        for k in KINDS
        for tied in (True, False)
    ],
)
def test_train_evaluate_sweep_export_theorem(kind, tied, tmp_path, monkeypatch, capsys):
    """Everything by the command, on the CPU; LoRA and recomputed activations where the heads are tied."""
    monkeypatch.setattr(steps, "CHUNK", 5000)  # the way that large vocabularies take
    base, problems = checkpoint(tmp_path / "base", kind, tied), tmp_path / "words.jsonl"
    rows = [{"prompt": p.prompt, "answer": p.answer, "id": p.id} for p in PROBLEMS.items]
    problems.write_text("\n".join(map(json.dumps, rows)))
    common = ("--problems", problems)
    probe, trained = torch.tensor([[5, 9, 2, 7, 300]]), []

    def keep_logits(policy, folder, also=None, write=True):  # of the model that leaves, as it was in memory
        with torch.no_grad():
            trained.append(merged(policy.model)(probe).logits)
        save_policy(policy, folder, also, write)

    monkeypatch.setattr("sept.loop.save_policy", keep_logits)

    def run(*arguments):
        code, out, err = sept(monkeypatch, capsys, *arguments)
        assert code == 0, err
        return out

    extra = ["--set=lora_rank=2", "--set=gradient_checkpointing=true"] if tied else []
    settings = [f"--set={k}={v}" for k, v in {**SMALL, "lr": 1e-3}.items()] + extra
    out = run("train", "--model", base, *common, "--out", tmp_path / "run", *settings)
    assert f"{kind}, " in out and "vocabulary 320 (padding masked)" in out
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert len(rounds) == 2 and all(row["sampler_gap"] < 1e-4 for row in rounds)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["prompt"].replace(" ", "") == "w310w0w3w0w311", "a turn, and where the answer begins"

    final = tmp_path / "run" / "final"
    score = tmp_path / "score.json"
    run("eval", "--model", final, *common, "--n", 8, "--max-new-tokens", 8, "--card", "--json", score)
    run(
        "eval", "--model", f"{final}:chat", *common, "--n", 8, "--max-new-tokens", 8, "--card"
    )  # replaces it
    out = run("sweep", "--model", final, *common, "--n", 2, "--temperatures", "0,1", "--max-new-tokens", 8)
    assert "best temperature" in out
    card, value = (final / "README.md").read_text(), json.loads(score.read_text())["pass@1"]
    row = f"| words.jsonl (24) | 1.0 | 8 | {value['value']:.1f} [{value['lo']:.1f}, {value['hi']:.1f}] |"
    assert card.count(row) == 1 and "# base, SePT" in card and str(tmp_path) not in card
    assert '"lr": 0.001' in card and "licence is that of the base" in card

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(final)
    assert (final / "model.safetensors").is_file() and not list(final.glob("*adapter*"))
    assert AutoTokenizer.from_pretrained(final).chat_template == TEMPLATE
    assert list(model.generation_config.eos_token_id) == [2, 319]
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert set(before) == set(model.state_dict()), "as plain as the base: no adapters, no new names"
    changed = [not torch.equal(v, before[k]) for k, v in model.state_dict().items() if "proj.weight" in k]
    assert len(changed) == 14 and all(changed)
    with torch.no_grad():
        assert torch.allclose(model(probe).logits, trained[-1], atol=1e-4), "the same model"

    # The theorem on it: exact for free logits; its direction for the head and for all weights.
    monkeypatch.setattr("sept.theorem.check", partial(theorem.check, measured=192))
    few = ("--prompts", problems, "--tau-s", 0.7, "--max-new-tokens", 4, "--samples", 96, "--json", score)
    for level, taken, low in (("logits", 1, 10 / 7 - 1e-9), ("head", 40, 1.05), ("full", 40, 1.02)):
        run("theorem", "--model", final, "--level", level, "--steps", taken, *few)
        report = json.loads(score.read_text())
        assert (report["template"], report["prompt"]) == ("chat", written["prompt"]), level
        assert low < report["slope"] < 10 / 7 + 0.02, level
        assert report["order_agreement"] > (1 - 1e-9 if level == "logits" else 0.8), level


def test_a_contradictory_generation_config_goes_out_as_it_came(tmp_path):
    """transformers loads it and refuses to save it; many hub models have one."""
    base = checkpoint(tmp_path / "base")
    file = base / "generation_config.json"
    own = json.loads(file.read_text()) | {"do_sample": False, "temperature": 0.6, "length_penalty": 2.0}
    file.write_text(json.dumps(own))
    policy = load_policy(str(base))
    train(preset("sept", **SMALL), policy, PROBLEMS, tmp_path / "run")
    final = tmp_path / "run" / "final"
    assert json.loads((final / "generation_config.json").read_text()) == own
    assert policy.model.generation_config.temperature == 0.6, "the model in memory keeps it as well"
    assert load_policy(str(final)).eos_ids == (2, 319)


def test_heads_that_vllm_would_make_too_narrow_get_one_line():
    """Its qwen2 never reads head_dim. Said before vLLM is even imported."""
    policy = random_policy("qwen2")
    policy.model.config.head_dim = 16
    with pytest.raises(SeptError, match="head_dim 16.*use engine transformers") as error:
        VllmEngine().refresh(policy)
    assert "\n" not in str(error.value)


def test_a_card_needs_a_model_of_ours(monkeypatch, capsys, tmp_path):
    folder = checkpoint(tmp_path / "model")
    code, _, err = sept(monkeypatch, capsys, "eval", "--model", folder, "--card")
    assert code == 2 and "sept train" in complaint(err) and not (folder / "README.md").exists()
