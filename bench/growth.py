"""How time grows with the size of the work: batch, answer length, model size, vocabulary, samples a question.

    python bench/growth.py [--smoke] [--out bench/results]

Each curve varies one size of sampling with the built-in engine (vocabulary: of the margins measure) on one
thread and fits seconds = a size^b to its last three points, where the fixed costs of a step count least. Writes
growth.csv and growth.png. Random models, answers of a fixed length, fastest of three runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from harness import quickest

from sept import margins
from sept.policy import Policy, load_policy
from sept.sampling_static import StaticEngine

PROMPT = list(range(3, 14))


def engine(hidden: int, layers: int) -> StaticEngine:
    """The engine over a random model whose answers never end by themselves."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    base = load_policy("H")
    config = Qwen2Config(
        vocab_size=base.model.config.vocab_size, hidden_size=hidden, intermediate_size=8 * hidden // 3,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=1, max_position_embeddings=2048,
        tie_word_embeddings=True, eos_token_id=base.model.config.vocab_size,
    )  # fmt: skip
    torch.manual_seed(0)
    made = StaticEngine()
    made.refresh(Policy(Qwen2ForCausalLM(config).eval(), base.tokenizer, "random"))
    return made


def sampling(hidden: int = 96, layers: int = 3, B: int = 64, n: int = 1, length: int = 32) -> float:
    """Seconds for n answers of `length` tokens to each of B prompts."""
    made, names = engine(hidden, layers), [str(i) for i in range(B)]
    return quickest(lambda: made.sample([PROMPT] * B, names, n, 1.0, length, 0), 3)


def statistics(V: int) -> float:
    """Seconds to measure the margins of 128 prefixes."""
    old = torch.randn(128, V)
    new = old * 1.5
    return quickest(lambda: margins.prefix_statistics(old, new, 0.6, order=False), 3)


CURVES: dict[str, tuple[Callable[[int], float], list[int]]] = {
    "batch (prompts)": (lambda B: sampling(B=B), [1, 4, 16, 64, 256, 1024]),
    "answer length (tokens)": (lambda T: sampling(length=T), [8, 32, 128, 512, 1024]),
    "model (hidden size)": (lambda h: sampling(hidden=h, B=32), [64, 128, 256, 512, 1024]),
    "samples a question": (lambda n: sampling(B=8, n=n), [1, 4, 16, 64, 256]),
    "vocabulary (margins)": (statistics, [256, 1024, 4096, 16384, 65536, 151936]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (seconds, sizes) in CURVES.items():
        sizes = sizes[:2] if a.smoke else sizes
        took = [seconds(size) for size in sizes]
        exponent = float(np.polyfit(np.log(sizes[-3:]), np.log(took[-3:]), 1)[0])
        rows += [
            dict(curve=name, size=s, seconds=t, exponent=exponent) for s, t in zip(sizes, took, strict=True)
        ]
        print(f"{name}: exponent {exponent:.2f}, {took[0]:.3g} to {took[-1]:.3g} s", flush=True)
    a.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(a.out / "growth.csv", index=False, float_format="%.4g")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(CURVES), figsize=(3 * len(CURVES), 3), layout="constrained")
    for axis, (name, part) in zip(axes, table.groupby("curve", sort=False), strict=True):
        size, seconds, exponent = part["size"], part["seconds"], part["exponent"].iloc[0]
        middle = np.exp(np.log(seconds[-3:]).mean() - exponent * np.log(size[-3:]).mean())
        axis.loglog(size, middle * size**exponent, "--", color="grey")
        axis.loglog(size, seconds, "o-")
        axis.set(xlabel=name, ylabel="seconds", title=f"seconds ~ size^{exponent:.2f}")
    figure.savefig(a.out / "growth.png", dpi=120)


if __name__ == "__main__":
    main()
