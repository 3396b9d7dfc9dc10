"""Shared fixtures: one thread, no network, small models made here."""

import os

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


def random_policy(
    model_type="qwen2", vocab=320, hidden=32, layers=2, heads=4, kv=2, seed=0, tied=True
):
    """A policy with random weights over `vocab` tokens (3 special ones) and a word tokenizer for them.

    Logits are scaled up to an ordinary spread, so that truncation and temperature errors show.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    from sept.policy import Policy

    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(vocab - 3))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<pad>",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    )
    kinds = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    make_config, make_model = kinds[model_type]
    torch.manual_seed(seed)
    model = make_model(
        make_config(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            max_position_embeddings=96,
            tie_word_embeddings=tied,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "embed" not in name and "head" not in name:
                parameter.mul_(8)
        model.get_output_embeddings().weight.mul_(12)
    # Several end-of-sequence ids, as many hub models have, and likely enough to be drawn.
    model.generation_config.eos_token_id = [2, *range(vocab - 20, vocab)]
    return Policy(model.eval(), tokenizer, f"random-{model_type}")


@pytest.fixture(scope="session")
def qwen():
    return random_policy("qwen2")


@pytest.fixture(scope="session")
def llama():
    return random_policy("llama", tied=False)
