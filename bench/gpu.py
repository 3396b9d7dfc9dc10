"""The same comparison on a GPU: tokens a second sampled and trained, shares of the card's limits, peak memory.

    python bench/gpu.py [--models H,1.5B,7B] [--rows 256] [--length 512] [--device cuda] [--out bench/results]

Models: the embedded H, and random weights in the shapes of Qwen2.5-Math-1.5B and 7B. Sampling with sept's
engine, transformers' `generate` and its continuous batching (`generate_batch`) take turns, 3 times each, on
prompts of 64 random tokens; answers have a fixed length. Then the gradient of one round on as many sequences.
Limits: bytes of weights and cache that a step reads over the measured copy bandwidth; 6 flops a parameter and
token over the measured rate of matrix products. Writes gpu.csv. Written without a GPU at hand: so far it ran
only with `--device cpu --models H --smoke`, which leaves continuous batching and the card's memory out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from harness import interleave, machine, ratio

from sept import objectives
from sept.policy import Policy, load_policy, make_batch, response_logits
from sept.sampling import make_sampler

SHAPES = {
    "1.5B": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                 num_key_value_heads=2, tie_word_embeddings=True),
    "7B": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
               num_key_value_heads=4, tie_word_embeddings=False),
}  # fmt: skip
PROMPT = 64


def policy_of(name: str, device: str) -> Policy:
    """Embedded H, or random weights of a shape at a vocabulary of 151,936, in bfloat16."""
    base = load_policy("H", device=device)
    base.compute = torch.float32 if device == "cpu" else torch.bfloat16
    if name == "H":
        return base
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936, max_position_embeddings=4096, eos_token_id=151_935, **SHAPES[name]
    )
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    return Policy(model.eval(), base.tokenizer, f"random, {name}", compute=torch.bfloat16)


def seconds(work: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Of the fastest call, finished on the device."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def limits(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Measured copy bandwidth in bytes a second (read and written) and flops a second of matrix products."""
    size = 2**24 if device == "cpu" else 2**29
    a = torch.zeros(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    side = 1024 if device == "cpu" else 8192
    x, y = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    copy, product = seconds(lambda: b.copy_(a), device), seconds(lambda: x @ y, device)
    return 2 * size / copy, 2 * side**3 / product


def rows_of(name: str, device: str, rows: int, length: int) -> list[dict[str, Any]]:
    """All comparisons of one model."""
    policy = policy_of(name, device)
    model, c = policy.model, policy.model.config
    vocab = c.vocab_size
    model.generation_config.eos_token_id = vocab  # never drawn: answers have a fixed length
    bandwidth, flops = limits(device, policy.compute)
    parameters = sum(p.numel() for p in model.parameters())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, min(vocab, 22) if name == "H" else vocab, (rows, PROMPT), generator=generator)
    length = min(length, policy.context - PROMPT)
    prompts, names = ids.tolist(), [str(i) for i in range(rows)]
    sampler = make_sampler(policy, "auto" if device == "cpu" else "transformers", training=False)
    if hasattr(sampler, "max_rows"):
        sampler.max_rows = rows
    on_device = ids.to(device)

    def done(units: float) -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return units

    def ours() -> float:
        return done(int(sampler.sample(prompts, names, 1, 1.0, length, 0).lengths.sum()))

    def generate() -> float:
        with torch.inference_mode(), policy.autocast():
            out = model.generate(
                on_device, attention_mask=torch.ones_like(on_device), do_sample=True, top_k=0, top_p=1.0,
                temperature=1.0, max_new_tokens=length, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        return done(out[:, PROMPT:].numel())

    def continuous() -> float:
        from transformers import GenerationConfig

        config = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=length, eos_token_id=-1,
            pad_token_id=0,
        )  # fmt: skip
        with torch.inference_mode():
            out = model.generate_batch(inputs=prompts, generation_config=config)
        return done(sum(len(o.generated_tokens) for o in out.values()))

    works = {"ours": ours, "generate": generate, "continuous": continuous}
    if device == "cpu":  # its paged attention wants a GPU
        del works["continuous"]
    runs = interleave({k: (torch.get_num_threads(), w) for k, w in works.items()}, 3, 600)
    head_dim = c.hidden_size // c.num_attention_heads
    of_cache = 2 * c.num_hidden_layers * c.num_key_value_heads * head_dim * (PROMPT + length / 2)
    read = policy.compute.itemsize * (parameters + rows * of_cache)
    speed = ratio(runs, "ours", "generate")["ours"]
    common = dict(model=name, device=device, rows=rows, length=length)
    out = [dict(common, what="decoding, share of bandwidth", value=speed / rows * read / bandwidth)]
    out += [dict(common, what="sampled tokens/s", value=speed)]
    out += [
        dict(common, what=f"ours / {k}", value=ratio(runs, "ours", k)["ratio"])
        for k in works
        if k != "ours"
    ]

    drawn = sampler.sample(prompts, names, 1, 1.0, length, 0)
    small = max(1, min(rows, 2**25 // (vocab * (PROMPT + length))) if vocab > 1000 else 64)

    def step() -> None:
        for first in range(0, rows, small):
            part = list(range(first, min(first + small, rows)))
            batch = make_batch(
                [prompts[i] for i in part], drawn.tokens[part], drawn.lengths[part], 0, device=device
            )
            with policy.autocast():
                losses = objectives.nll(response_logits(model, batch), batch.tokens, 1.0)
            (losses * batch.mask).sum().div(float(drawn.lengths.sum())).backward()

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    took = seconds(step, device, 2)
    trained = rows * (PROMPT + length)
    out += [dict(common, what="trained tokens/s", value=trained / took)]
    out += [dict(common, what="training, share of peak", value=6 * parameters * trained / took / flops)]
    out += [dict(common, what="round, s", value=rows * length / speed + took)]
    if device != "cpu":
        out += [dict(common, what="peak memory, GiB", value=torch.cuda.max_memory_allocated() / 2**30)]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="H,1.5B,7B")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    a = parser.parse_args()
    if a.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(
            "no GPU that torch can use; --device cpu --models H --smoke runs everything but the card"
        )
    rows: list[dict[str, Any]] = []
    for name in a.models.split(","):
        rows += rows_of(name, a.device, *((8, 8) if a.smoke else (a.rows, a.length)))
        for row in rows:
            if row["model"] == name:
                print(f"{name}: {row['what']} {row['value']:.4g}", flush=True)
        if a.device != "cpu":
            torch.cuda.empty_cache()
    a.out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(a.out / "gpu.csv", index=False, float_format="%.4g")
    (a.out / "gpu_machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
