"""Shared fixtures: one thread, no network, small models made here."""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quiet_and_isolated(tmp_path, monkeypatch):
    """Every test has a results store of its own and restores the thread count."""
    monkeypatch.setenv("SEPT_RESULTS", str(tmp_path / "results"))
    torch.set_num_threads(1)


def recorded(profile, notebook, key):
    """A number of a committed record; `a/0` is the first of the list behind `a`."""
    path = Path(__file__).resolve().parent.parent / "figures" / profile / f"{notebook}.json"
    value = json.loads(path.read_text())
    for part in key.split("/"):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return float(value)


def random_policy(
    model_type="qwen2",
    vocab=320,
    hidden=32,
    layers=2,
    heads=4,
    kv=2,
    seed=0,
    tied=True,
    rows=None,
    context=96,
):
    """A policy with random weights over `vocab` tokens (3 special ones) and a word tokenizer for them.

    rows: embeddings, where there are more of them than tokens (a padded vocabulary). Logits are scaled up
    to an ordinary spread, so that truncation and temperature errors show.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    from sept.policy import Policy

    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(vocab - 3))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<pad>", pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    size = {"vocab_size": rows or vocab, "hidden_size": hidden, "max_position_embeddings": context}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    modern = {
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "tie_word_embeddings": tied,
    }
    torch.manual_seed(seed)
    if model_type == "gpt2":  # absolute positions: rotary ones forgive a constant shift
        model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_head=heads, **size, **special))
    elif model_type == "llama":
        model = LlamaForCausalLM(LlamaConfig(**size, **special, **modern))
    elif model_type == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**size, **special, **modern, head_dim=hidden // heads))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**size, **special, **modern))
    model = model.float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "wpe" in name:
                parameter.normal_(0, 0.3)
            elif not any(part in name for part in ("embed", "head", "wte")):
                parameter.mul_(2 if model_type == "gpt2" else 8)
        model.get_output_embeddings().weight.mul_(5 if model_type == "gpt2" else 12)
    # Several end-of-sequence ids, as many hub models have, and likely enough to be drawn.
    model.generation_config.eos_token_id = [2, *range(vocab - 20, vocab)]
    return Policy(model.eval(), tokenizer, f"random-{model_type}")


@pytest.fixture(scope="session")
def qwen():
    return random_policy("qwen2")


@pytest.fixture(scope="session")
def llama():
    return random_policy("llama", tied=False)


@pytest.fixture(scope="session")
def gpt2():
    return random_policy("gpt2")
