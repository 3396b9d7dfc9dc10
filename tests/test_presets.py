"""Presets of the published runs, and what `sept plan` makes of them."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from test_cli import complaint, run  # noqa: F401  (a fixture)
from test_models import checkpoint

from sept import plan, published
from sept.config import PRESETS, SeptError, digest, preset
from sept.presets import BENCHMARKS, SHAPES, VARIANTS, find_preset, names

MATH = "sept-qwen2.5-math-7b-dsr"


def hub_config(shape):
    """The transformers config that `shape` describes."""
    from transformers import LlamaConfig, Qwen2Config

    return (Qwen2Config if shape.bias else LlamaConfig)(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_that_transformers_would_allocate(name):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hub_config(SHAPES[name]))
    assert SHAPES[name].parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "deepseek-math-7b"])
def test_trained_parameters_of_lora_are_those_of_peft(name):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hub_config(SHAPES[name]))
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plan.trained(SHAPES[name], 16) == expected
    assert plan.trained(SHAPES[name], 0) == SHAPES[name].parameters


def test_keys_and_values_are_those_of_a_transformers_cache():
    from transformers import AutoModelForCausalLM

    shape = replace(SHAPES["qwen2.5-0.5b"], hidden=56, layers=3, intermediate=64, vocab=50)
    model = AutoModelForCausalLM.from_config(hub_config(shape))
    cache = model(torch.zeros(1, 7, dtype=torch.long)).past_key_values
    held = sum(t.numel() for layer in cache.layers for t in (layer.keys, layer.values))
    assert held * 2 == 7 * shape.kv_bytes


def test_every_published_training_run_has_a_preset_and_nothing_else():
    """22 runs: those with a row in the paper's tables, plus G = 4 and G = 8 of Figure 5."""
    found = Counter(name.split("-qwen")[0].split("-deep")[0].split("-llama")[0] for name in names())
    assert found == {
        "sept": 8, "grpo": 8, "em-ft": 2, "sept-g4": 1, "sept-g8": 1, "offline": 1, "coupled": 1, "sweep": 5,
    }  # fmt: skip
    hub = {s.hub.split("@")[0].split("/")[-1].lower(): key for key, s in SHAPES.items()}
    short = {"Offline": "offline", "Coupling": "coupled", "SePT": "sept", "GRPO": "grpo", "EM-FT": "em-ft"}
    printed = set()
    for _, row in published.tables().query("table <= 6 and table != 3 or table == 9").iterrows():
        method = next((v for k, v in short.items() if k in row["method"]), None)
        if method and row["train_data"] in ("DSR", "OTM"):
            printed.add(f"{method}-{hub[row['model'].lower()]}-{row['train_data'].lower()}")
    assert printed == {n for n in names() if not n.startswith(("sweep", "sept-g"))}


def test_settings_are_the_published_ones():
    common, sept, grpo = (published.settings()[k] for k in ("train_common", "sept", "grpo"))
    for name in names()[:22]:
        for variant in VARIANTS:
            preset = find_preset(f"{name}:{variant}")
            config = preset.config()
            assert config.questions == common["global_batch_prompts"]["value"], name
            assert config.max_new_tokens == common["max_response_tokens"]["value"]
            assert config.warmup == common["warmup_steps"]["value"] or "offline" in name
            assert config.weight_decay == common["weight_decay"]["value"]
            assert config.gradient_checkpointing and config.micro_batch == 4
            assert preset.shape.context >= 1024 + config.max_new_tokens
            expected = "sequence-sum" if variant == "paper" else "microbatch-token"
            assert config.loss_normalisation == expected or "em-ft" in name
    for key, start in ((k, v["value"]) for k, v in sept["tau_s_start"].items()):
        (short,) = (
            k for k, s in SHAPES.items() if s.hub.split("@")[0].split("/")[-1].lower() == key.lower()
        )
        config = find_preset(f"sept-{short}-dsr").config()
        assert (config.tau_s, config.tau_s_end, config.tau_s_schedule) == (start, 1.0, "linear"), key
        assert config.lr == sept["lr"]["value"] and config.G == sept["G"]["value"]
    config = find_preset("grpo-llama-3.1-8b-otm").config()
    assert (config.lr, config.G, config.tau_s) == (grpo["lr"]["value"], grpo["G"]["value"], 1.0)
    assert config.questions // config.mini_batch == grpo["updates_per_step"]["value"]
    assert find_preset("grpo-llama-3.1-8b-otm").problems != find_preset("grpo-llama-3.1-8b-dsr").problems


def test_variants_differ_where_text_and_code_do():
    offline = published.settings()["offline"]
    paper, authors = (find_preset(f"offline-qwen2.5-math-7b-dsr:{v}").config() for v in VARIANTS)
    assert paper.lr == 1e-7 and paper.lr_schedule == "constant" and not paper.append_eos
    assert authors.lr == offline["lr"]["value"] and authors.lr_schedule == "cosine" and authors.append_eos
    assert [authors.beta1, authors.beta2] == offline["betas"]["value"]
    assert authors.warmup == int(offline["warmup_ratio"]["value"] * authors.rounds)
    assert authors.questions == authors.mini_batch == offline["batch"]["value"]
    assert paper.tau_s == authors.tau_s == 0.6 and paper.refresh_every is authors.refresh_every is None
    paper, authors = (find_preset(f"coupled-qwen2.5-math-7b-dsr:{v}").config() for v in VARIANTS)
    assert paper.tau_s == paper.tau_t == 1.0 and paper.tau_s_schedule == "constant"
    assert authors.tau_t is None and authors.tau_s == 0.6 and authors.tau_s_schedule == "linear"
    assert find_preset(MATH) == replace(find_preset(f"{MATH}:paper"), name=MATH)


def test_unknown_presets_are_named_with_the_closest(run):  # noqa: F811
    for name, word in (("sept-qwen2.5-math-7b-dsx", MATH), (f"{MATH}:mine", ":authors"), ("", "sept plan")):
        with pytest.raises(SeptError, match=word):
            find_preset(name)
    for arguments, word in (
        (["train", "--preset", "sweep-qwen2.5-7b", "--out", "x"], "sept sweep"),
        (["train", "--preset", MATH, "--arm", "grpo", "--out", "x"], "arm"),
        (["plan", "nothing"], "nothing"),
        (["plan", MATH, "--device", "abacus"], "H100"),
        (["plan", MATH, "--gpus", 0], "--gpus 0"),
        (["plan", MATH, "--model", "mine"], "qwen2.5-0.5b"),
        (["plan", MATH, "--set", "lora_rank=-1"], "lora_rank"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and word in complaint(err), arguments


# --- the model of cost ---------------------------------------------------------------------------------


def test_a_plan_by_hand():
    """Qwen2.5-Math-7B on 8 x A800: every figure from the numbers of its card."""
    machine = replace(plan.DEVICES["A800"], gpus=8)
    P, h, i, layers = 7_615_616_512, 3584, 18944, 28
    made = plan.plan(find_preset(MATH), machine, length=1000, prompt=150)
    assert made["tokens"] == {"sampled": 942 * 128 * 1000, "trained": 942 * 128 * 1150}
    parts, m = made["memory"], 4 * (150 + 3072)
    assert parts["weights"] == parts["gradients"] == P / 2 and parts["optimizer"] == P
    assert parts["activations"] == m * (20 * h + 10 * i) + 27 * 4 * m * h
    assert parts["sampler's weights"] == 2 * P
    assert parts["KV cache"] == 16 * 3222 * 2 * 2 * layers * 4 * 128  # 16 answers on each device
    training = parts["gradients"] + parts["activations"] + parts["logits chunk"]
    assert parts["peak"] == 1.5 * P + max(training, 2 * P + parts["KV cache"]) and made["fits"]
    assert made["disk"] == 3 * 12 * P + 4 * P
    flops = 942 * 128 * 1150 * (8 * P + 6 * layers * h * 1150)
    assert made["hours"]["training"] == pytest.approx(flops / (0.4 * 312e12 * 8) / 3600)
    keys = 16 * (150 + 500) * 2 * 2 * layers * 4 * 128
    step = (2 * P + keys) / (0.6 * 2.04e12)  # memory-bound; the longest answer sets the number of steps
    assert made["hours"]["sampling"] == pytest.approx(942 * 3072 * step / 3600)


def test_what_moves_a_plan():
    def peak(**fields):
        machine = replace(plan.DEVICES["H100"], gpus=fields.pop("gpus", 1))
        return plan.plan(find_preset(MATH), machine, 1000, 150, **fields)["memory"]["peak"]

    assert peak(gpus=4) < peak(gpus=2) < peak() < peak(gradient_checkpointing=False)
    assert peak(lora_rank=16) < peak() / 1.5
    one, two = (plan.plan(find_preset(MATH), plan.DEVICES["H200"], n, 150) for n in (1000, 2000))
    assert two["hours"]["training"] > 1.8 * one["hours"]["training"]
    sweep = plan.plan(find_preset("sweep-llama-3.1-8b"), plan.DEVICES["H100"], 1000, 150)
    assert sweep["tokens"]["sampled"] == 792_585 * 1000, "the paper's own count of a sweep"
    assert BENCHMARKS.count("+") == 5


def test_plan_on_the_command_line(run, tmp_path):  # noqa: F811
    code, out, _ = run("plan")
    assert code == 0 and all(name in out for name in names())
    code, out, _ = run("plan", MATH, "--json", tmp_path / "p.json")
    made = json.loads((tmp_path / "p.json").read_text())
    assert code == 0 and [p["machine"] for p in made["plans"]][:2] == ["1 x H100", "8 x A800"]
    assert [p["fits"] for p in made["plans"]][:2] == [False, True] and "assumed" in out
    assert made["plans"][0]["hours"]["total"] is None and made["plans"][1]["hours"]["total"] > 1
    for more in (["--device", "H100"], ["--gpus", 2, "--memory", 40], ["--device", "4090", "--gpus", 4]):
        code, _, err = run("plan", MATH, *more)
        assert code == 2 and "cannot fit" in complaint(err), more
    assert run("plan", MATH, "--device", "H100", "--set", "lora_rank=16")[0] == 0
    code, out, _ = run("plan", MATH, "--device", "4090", "--model", "qwen2.5-0.5b")
    assert code == 0 and "Qwen2.5-0.5B" in out


def test_templates_are_those_of_figure_4():
    printed = published.settings()["chat_templates"]
    assert {s.template for s in SHAPES.values()} - set(printed) == {"chat_reasoning"}, "Llama has none"


def test_a_preset_trains_on_whatever_model_and_questions_are_given(run, tmp_path):  # noqa: F811
    model, problems = checkpoint(tmp_path / "model"), tmp_path / "words.jsonl"
    rows = [{"prompt": f"w{i} w2", "answer": "w3"} for i in range(8)]
    problems.write_text("\n".join(map(json.dumps, rows)))
    name = "grpo-qwen2.5-math-7b-dsr:authors"
    small = {"rounds": 2, "questions": 4, "mini_batch": 4, "max_new_tokens": 8}
    given = [f"--set={k}={v}" for k, v in small.items()]
    out = tmp_path / "run"
    code, told, err = run(
        "train", "--preset", name, "--model", model, "--problems", problems, "--out", out, *given
    )
    assert code == 0, err
    record = json.loads((out / "config.json").read_text())
    assert record["name"] == name and record["config"]["lr"] == 5e-7 and record["config"]["G"] == 8
    assert record["config"] == json.loads(find_preset(name).config(**small).to_json())
    assert name in (out / "final" / "README.md").read_text()
    code, _, err = run(
        "sweep", "--preset", "sweep-qwen2.5-7b", "--problems", problems, "--model", "no/such"
    )
    assert code == 2 and "no/such" in complaint(err)


def test_a_preset_brings_its_template_with_its_model(run, tmp_path, monkeypatch):  # noqa: F811
    asked, problems = [], tmp_path / "words.jsonl"
    problems.write_text('{"prompt": "w1 w2", "answer": "w3"}')

    def stop(name, *_, **__):
        asked.append(name)
        raise SeptError("no model here")

    monkeypatch.setattr("sept.policy.load_policy", stop)
    train, sweep = (
        ["train", "--preset", MATH, "--out", tmp_path / "x"],
        ["sweep", "--preset", "sweep-llama-3.1-8b"],
    )
    for verb in (
        train,
        [*train, "--template", "chat"],
        [*train, "--model", "H"],
        sweep,
        [*sweep, "--model", "H:plain"],
    ):
        code, _, err = run(*verb, "--problems", problems)
        assert code == 2 and "no model here" in complaint(err)
    qwen, llama = SHAPES["qwen2.5-math-7b"].hub, SHAPES["llama-3.1-8b"].hub
    assert asked == [
        f"{qwen}:qwen_base_and_math",
        f"{qwen}:chat",
        "H",
        f"{llama}:chat_reasoning",
        "H:plain",
    ]


def test_keys_are_the_recorded_ones():
    """A changed key makes what was trained and measured under the old one unfindable."""
    runs = {f"{n}:{v}": find_preset(f"{n}:{v}").config().key() for n in names()[:22] for v in VARIANTS}
    arms = {arm: preset(arm).key() for arm in PRESETS}
    assert [digest(keys)[:12] for keys in (runs, arms)] == ["fc837cfb8a48", "b503f1b62ebb"]
