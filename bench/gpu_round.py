"""One SePT round at a published model's true shape, with random weights: speed, and memory by part.

    python bench/gpu_round.py [--shape auto] [--engine vllm] [--prompt 150] [--set max_new_tokens=1024]

Draws answers, trains on them, refreshes the sampler, as `sept train` does, twice; the second round counts.
Random weights end no answer, so every answer has max_new_tokens. `--shape auto` takes the largest that full
fine-tuning can hold on this device; a shape that `sept plan`'s memory model refuses is refused here. Then the
embedded world, end to end: base H trained on the same device for `--rounds` rounds, scored before and after.
Writes gpu_round_SHAPE.json, and .csv with bytes by part, measured and planned. It has never been run on a GPU:
none was at hand. On a CPU it runs at `--shape tiny`; there activations are what autograd saves.

model FLOP utilisation: (6 P + 6 layers hidden context) flops a token, prompts included, recomputation not
counted, over training seconds and the device's dense bfloat16 rate (a CPU's is measured).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sept import plan
from sept.cli import _fields
from sept.config import Config, SeptError, preset
from sept.distributed import Ranks
from sept.evaluation import evaluate, family_means, question_scores
from sept.loop import _prepare, train
from sept.policy import Policy, load_policy
from sept.presets import SHAPES, Shape
from sept.problems import load_problems
from sept.provenance import environment, write_json, write_text
from sept.sampling import make_sampler
from sept.steps import take_steps

TINY = Shape("tiny", 128, 2, 2, 1, 256, 512, 512, bias=True)
GPU = torch.cuda.is_available()


def machine() -> plan.Machine:
    """This one; of a known GPU the rate that its maker states."""
    here = plan.this_machine()
    known = [d for name, d in plan.DEVICES.items() if name in here.name]
    return replace(here, flops=known[0].flops) if known else here


def choose(
    name: str, config: Config, here: plan.Machine, prompt: int
) -> tuple[str, Shape, dict[str, float]]:
    """A shape by name with its planned bytes by part. SeptError if the plan says that it cannot fit."""
    shapes = {"tiny": TINY, **{n: s for n, s in SHAPES.items() if s.bias}}  # Qwen2's
    if name != "auto" and name not in shapes:
        raise SeptError(f"shape {name!r}: unknown, choose auto or one of {', '.join(shapes)}")
    names = sorted(shapes, key=lambda n: -shapes[n].parameters) if name == "auto" else [name]
    for name in names:
        parts = plan.memory(config, shapes[name], here, prompt)
        if parts["peak"] <= 0.95 * here.memory:
            return name, shapes[name], parts
    raise SeptError(
        f"shape {name!r} cannot fit: {parts['peak'] / 1e9:.0f} GB are needed on {here.name} with "
        f"{here.memory / 1e9:.0f} GB; take --shape auto, or --set lora_rank=16"
    )


def build(shape: Shape, device: str) -> Policy:
    """A Qwen2 model of that shape with random float32 weights, made on the device, and a tokenizer of words."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = {"<eos>": 0, **{f"w{i}": i for i in range(1, shape.vocab)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>")
    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2ForCausalLM(config).float().eval()
    return Policy(model, tokenizer, shape.hub, compute=torch.bfloat16 if GPU else torch.float32)


def size(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def measure(policy: Policy, shape: Shape, config: Config, engine: str, prompt: int) -> dict[str, Any]:
    """Two rounds: seconds of each part of the second, tokens, bytes by part."""
    sampler = make_sampler(policy, engine)
    weights = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.lr)
    parts: dict[str, float] = {"weights": size(policy.model.parameters())}
    own = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    saved: dict[int, int] = {}
    taken = [0]

    def at_step(*_: Any) -> None:
        parts["gradients"] = size(w.grad for w in weights if w.grad is not None)
        parts["activations"] = max(parts.get("activations", 0), sum(saved.values()))
        saved.clear()

    def pack(tensor: torch.Tensor) -> torch.Tensor:  # several operators may save one storage
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def timed(work: Callable[[], Any]) -> tuple[float, Any, int]:
        """Seconds, result, and the most bytes that torch held beyond those of before."""
        if GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before, started = torch.cuda.memory_allocated() if GPU else 0, time.perf_counter()
        result = work()
        if GPU:
            torch.cuda.synchronize()
            free, total = torch.cuda.mem_get_info()
            taken.append(total - free)  # by any allocator; torch's own keeps its peak
        return (
            time.perf_counter() - started,
            result,
            torch.cuda.max_memory_allocated() - before if GPU else 0,
        )

    optimizer.register_step_pre_hook(at_step)
    numbers = torch.Generator().manual_seed(0)
    ids = torch.randint(1, shape.vocab, (config.questions, prompt), generator=numbers).tolist()
    keys = [str(i) for i in range(config.questions)]
    tau_s, limit = config.tau_s, config.max_new_tokens
    for round in range(2):
        drawing, rollouts, drawn = timed(
            lambda r=round: sampler.sample(ids, keys, config.G, tau_s, limit, 0, r)
        )
        rewards = torch.zeros(len(rollouts))
        with (
            nullcontext() if GPU else torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        ):
            training, row, trained = timed(
                lambda r=rollouts, z=rewards: take_steps(
                    config, policy, optimizer, weights, r, 1.0, z, Ranks()
                )
            )
        refreshing, *_ = timed(lambda: sampler.refresh(policy))
    state = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t) and t.dim()]
    parts["optimizer"] = size(state)
    if hasattr(sampler, "llm"):
        parts["sampler's weights"] = sampler.llm.apply_model(lambda model: size(model.parameters()))[0]
        cache = sampler.llm.llm_engine.vllm_config.cache_config
        width = 1 if policy.compute == torch.bfloat16 else 2
        parts["KV cache"] = cache.num_gpu_blocks * cache.block_size * shape.kv_bytes * width
    elif GPU:
        parts |= {"sampler's weights": size(sampler.frozen.parameters()), "KV cache": drawn}  # type: ignore[attr-defined]
    if GPU:
        parts |= {"activations": trained - parts["gradients"], "peak": max(taken)}
    sampled = int(rollouts.lengths.sum())
    seen = (sampled + len(rollouts) * prompt) * config.mu
    return {
        "sampled tokens": sampled,
        "trained tokens": seen,
        "seconds": {"drawing": drawing, "training": training, "refreshing": refreshing},
        "sampled tokens per second": sampled / drawing,
        "trained tokens per second": seen / training,
        "flops per trained token": 6 * shape.parameters
        + 6 * shape.layers * shape.hidden * (prompt + limit),
        "sampler_gap": row["sampler_gap"],
        "bytes": parts,
    }


def embedded(device: str, rounds: int) -> dict[str, Any]:
    """Base H trained and scored on the device: pass@1 at temperature 1 before and after, in percent."""
    policy, test = load_policy("H", device=device), load_problems("toy:dev:32")

    def score() -> float:
        counts = evaluate(policy, make_sampler(policy), test, 1.0, 8)
        return 100 * float(family_means(question_scores(counts))["pass@1"])

    before, started = score(), time.perf_counter()
    config = preset("sept", rounds=rounds, warmup=min(10, rounds - 1))
    with tempfile.TemporaryDirectory() as folder:
        train(config, policy, load_problems("toy:train"), Path(folder) / "run")
    seconds = time.perf_counter() - started
    return {"device": device, "rounds": rounds, "seconds": seconds, "before": before, "after": score()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", default="auto")
    parser.add_argument("--engine", default="vllm" if GPU else "auto")
    parser.add_argument("--prompt", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--set", action="append", metavar="FIELD=VALUE")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    a = parser.parse_args()
    fields = {"questions": 128, "mini_batch": 64, "micro_batch": 4, "max_new_tokens": 1024, "lr": 1e-7}
    fields |= {"warmup": 0, "gradient_checkpointing": GPU, **_fields(a.set)}
    config, here, device = preset("sept", **fields), machine(), "cuda" if GPU else "cpu"
    name, shape, planned = choose(a.shape, config, here, a.prompt)
    print(f"{name}: {shape.parameters / 1e9:.2f} B parameters on {here.name}, engine {a.engine}")
    policy = build(shape, device)
    policy.model = _prepare(policy.model, config)
    found = measure(policy, shape, config, a.engine, a.prompt)
    found["MFU"] = found["flops per trained token"] * found["trained tokens per second"] / here.flops
    del policy
    found["embedded world"] = embedded(device, a.rounds)
    found |= {"shape": name, "engine": a.engine, "machine": vars(here), "planned": planned}
    found |= {"prompt": a.prompt, "config": vars(config), "provenance": environment()}
    write_json(a.out / f"gpu_round_{name}.json", found)
    rows = [(part, found["bytes"].get(part), planned[part]) for part in planned]
    table = pd.DataFrame(rows, columns=["part", "measured", "planned"])
    write_text(a.out / f"gpu_round_{name}.csv", table.to_csv(index=False))
    print(table.to_string(index=False))
    for key in ("sampled tokens per second", "trained tokens per second", "MFU", "embedded world"):
        print(f"{key}: {found[key]}")


if __name__ == "__main__":
    try:
        main()
    except SeptError as error:
        sys.exit(f"gpu_round: {error}")
