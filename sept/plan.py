"""What a run would take: tokens, memory by part, disk, hours. An estimate from a stated model of cost.

P parameters, T of them trained, per device of D that share the work as the authors' sharded trainer does
(weights, gradients and optimizer divided by D; each device draws its share of the answers with a whole copy
of the weights): `sept train` with sharding = fsdp. Bytes of a number: c = 2 in bfloat16, 4 on a CPU.

    fixed        4 P / D weights, 8 T / D AdamW
    training     4 T / D gradients, activations, logits in chunks: 24 bytes each, head and its gradient 2 c V h
    activations  m = micro_batch x (prompt + max_new_tokens) tokens; one layer at work takes
                 c m (10 h + 5 i) bytes; the others 4 m h each if recomputed, else the same
    sampling     c P sampler's weights; keys and values, 2 c layers kv_heads head_dim bytes a token, for as many
                 whole answers as fit. On a GPU the sampler (vLLM) gives all that back while the model trains;
                 the built-in engines keep their weights, which counts as fixed on a CPU
    peak         fixed + the larger of training and sampling; at most 95% of a device may be used
    decoding     one token of b answers takes max(2 P b / (0.5 flops), (c P + b k) / (0.6 bandwidth)), k the
                 bytes of keys and values at half length; a round has at least max_new_tokens such steps
                 (some answer is always cut), at most 1 in b of its tokens
    gradients    (6 P + 6 layers h context) flops a token, prompts included, at 40% of the device's rate;
                 2 P more if recomputed, 2 P fewer for frozen weights (LoRA)
    disk         three checkpoints of 4 P + 8 T (4 P more if the sampler lags) and the final 4 P

Rates of this machine are measured. A factor of two either way is to be expected.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from .config import Config, SeptError
from .presets import LIMIT, SAMPLES, Preset, Shape
from .published import N_SCORED
from .steps import CHUNK

QUESTIONS = sum(N_SCORED.values())
PROMPT, LENGTH = 150, 1000
"""Mean tokens of a prompt and of an answer, assumed unless told otherwise."""
IN_FLIGHT = 256
"""Answers that a device decodes side by side at most."""


@dataclass(frozen=True)
class Machine:
    """Devices of one kind. flops: dense matrix products a second; bandwidth, memory in bytes."""

    name: str
    flops: float
    bandwidth: float
    memory: float
    gpus: int = 1
    bytes: int = 2

    def label(self) -> str:
        return f"{self.gpus} x {self.name}" if self.bytes == 2 else self.name


DEVICES = {
    "H100": Machine("H100", 989e12, 3.35e12, 80e9),
    "H200": Machine("H200", 989e12, 4.8e12, 141e9),
    "A800": Machine("A800", 312e12, 2.04e12, 80e9),
    "A100": Machine("A100", 312e12, 2.04e12, 80e9),
    "L40S": Machine("L40S", 362e12, 0.86e12, 48e9),
    "4090": Machine("4090", 165e12, 1.01e12, 24e9),
}


def this_machine() -> Machine:
    """What is here: a GPU or the CPU's cores, its rates timed on one product and one copy."""
    import torch

    cuda = torch.cuda.is_available()
    how: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16} if cuda else {}
    size = 8192 if cuda else 1024
    a, big = torch.ones(size, size, **how), torch.ones(2**27 if cuda else 2**26, **how)

    def seconds(what: Callable[[], Any]) -> float:
        taken = []
        for _ in range(3):  # the first one warms up
            started = time.perf_counter()
            what()
            if cuda:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
        return min(taken)

    rates = 2 * size**3 / seconds(lambda: a @ a), 2 * 2**28 / seconds(big.clone)
    if cuda:
        card = torch.cuda.get_device_properties(0)
        return Machine(card.name, *rates, float(card.total_memory))
    return Machine(
        "this CPU", *rates, float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), bytes=4
    )


def machines(device: str | None, gpus: int | None, memory: float | None) -> list[Machine]:
    """The one that is asked for, or 1 x H100, 8 x A800 and this machine. memory in GB, of each device."""
    if device is None and gpus is None and memory is None:
        return [DEVICES["H100"], replace(DEVICES["A800"], gpus=8), this_machine()]
    name = (device or "H100").upper()
    if name not in DEVICES:
        raise SeptError(f"device {device!r}: unknown, choose one of {', '.join(DEVICES)}")
    if (gpus is not None and gpus < 1) or (memory is not None and not memory > 0):
        few = gpus is not None and gpus < 1
        given = (
            f"--gpus {gpus}: must be at least 1" if few else f"--memory {memory}: must be above 0, in GB"
        )
        raise SeptError(given)
    found = replace(DEVICES[name], gpus=gpus or 1)
    return [replace(found, memory=memory * 1e9) if memory else found]


def trained(shape: Shape, lora_rank: int) -> int:
    """Parameters that an optimizer step changes: all, or adapters on every linear layer but the last."""
    if not lora_rank:
        return shape.parameters
    h, kv, inner = shape.hidden, shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim
    ends = [(h, inner), (h, kv), (h, kv), (inner, h), *[(h, shape.intermediate)] * 3]
    return shape.layers * lora_rank * sum(a + b for a, b in ends)


def memory(config: Config | None, shape: Shape, machine: Machine, prompt: int) -> dict[str, float]:
    """Bytes by part on one device at the peak. No config: sampling alone."""
    P, D, c = shape.parameters, machine.gpus, machine.bytes
    parts: dict[str, float] = {}
    fixed = training = 0.0
    if config is not None:
        T, m = trained(shape, config.lora_rank), config.micro_batch * (prompt + config.max_new_tokens)
        layer = c * m * (10 * shape.hidden + 5 * shape.intermediate)
        kept = 4 * m * shape.hidden if config.gradient_checkpointing else layer
        parts = {"weights": 4 * P / D, "optimizer": 8 * T / D}
        fixed = sum(parts.values()) + (c == 4) * c * P
        head = 24 * CHUNK + 2 * c * shape.vocab * shape.hidden
        passing = {
            "gradients": 4 * T / D,
            "activations": layer + (shape.layers - 1) * kept,
            "logits chunk": head,
        }
        parts, training = parts | passing, sum(passing.values())
    parts["sampler's weights"] = c * P
    awake = 0 if config and c == 4 else c * P
    answer = _answer_bytes(config, shape, machine, prompt)
    room = int((0.95 * machine.memory - fixed - awake) // answer)
    rows = ceil(config.questions * config.G / D) if config else IN_FLIGHT
    parts["KV cache"] = max(1, min(room, rows, IN_FLIGHT)) * answer  # one answer must fit
    parts["peak"] = fixed + max(training, awake + parts["KV cache"])
    return parts


def _answer_bytes(config: Config | None, shape: Shape, machine: Machine, prompt: int) -> float:
    """Keys and values of a longest answer and its prompt."""
    limit = config.max_new_tokens if config else LIMIT
    return (prompt + limit) * shape.kv_bytes * machine.bytes / 2


def decoding(
    answers: float, side: float, length: int, limit: int, shape: Shape, machine: Machine, prompt: int
):
    """Seconds that one device takes for `answers`, `side` of them side by side."""
    P, c = shape.parameters, machine.bytes
    keys = (prompt + length / 2) * shape.kv_bytes * c / 2
    step = max(2 * P * side / (0.5 * machine.flops), (c * P + side * keys) / (0.6 * machine.bandwidth))
    return step * max(limit, answers * length / side)


def plan(preset: Preset, machine: Machine, length: int, prompt: int, **fields: Any) -> dict[str, Any]:
    """Tokens, bytes and hours of a preset on a machine; `fits` says whether it can run there."""
    shape, config = preset.shape, preset.config(**fields) if preset.arm else None
    P, most = shape.parameters, 0.95 * machine.memory
    parts, alone = (memory(c, shape, machine, prompt) for c in (config, None))
    out: dict[str, Any] = {"machine": machine.label(), "gpus": machine.gpus, "memory": parts}
    out |= {"memory_each": machine.memory, "fits": parts["peak"] <= most}

    def drawn(answers: float, config: Config | None, cache: float) -> float:
        """Seconds for `answers`, shared by the devices."""
        side = cache / _answer_bytes(config, shape, machine, prompt)
        limit = config.max_new_tokens if config else LIMIT
        return decoding(answers / machine.gpus, side, min(length, limit), limit, shape, machine, prompt)

    test = QUESTIONS * SAMPLES
    one = drawn(test, None, alone["KV cache"]) / 3600 if alone["peak"] <= most else None
    if config is None:
        length, answers = min(length, LIMIT), 16 * test + QUESTIONS  # greedy draws one answer
        hours = {"sampling": one and one * answers / test}
        return out | {"tokens": {"sampled": answers * length, "trained": 0}, "disk": 2 * P, "hours": hours}
    length, per_round = min(length, config.max_new_tokens), config.questions * config.G
    sampling = config.rounds * drawn(per_round, config, parts["KV cache"])
    flops = 6 * P + 6 * shape.layers * shape.hidden * (prompt + length)
    flops += 2 * P * (config.gradient_checkpointing - bool(config.lora_rank))
    seen = per_round * config.rounds * (prompt + length) * config.mu
    training = seen * flops / (0.4 * machine.flops * machine.gpus)
    seconds = {"sampling": sampling, "training": training, "total": sampling + training}
    hours = {k: v / 3600 if out["fits"] else None for k, v in seconds.items()} | {"one evaluation": one}
    lag = 4 * P * (config.refresh_every != 1)
    disk = 3 * (4 * P + 8 * trained(shape, config.lora_rank) + lag) + 4 * P
    sampled = per_round * config.rounds * length
    return out | {"tokens": {"sampled": sampled, "trained": seen}, "disk": disk, "hours": hours}


def refuse(name: str, plans: list[dict[str, Any]]) -> None:
    """SeptError if none of the machines can hold it."""
    if not any(p["fits"] for p in plans):
        least = min(plans, key=lambda p: p["memory"]["peak"])
        raise SeptError(
            f"preset {name!r} cannot fit: {least['memory']['peak'] / 1e9:.0f} GB are needed on each of "
            f"{least['machine']} with {least['memory_each'] / 1e9:.0f} GB; take more --gpus, "
            "--set lora_rank=16, a smaller micro_batch or a smaller --model"
        )


def lines(preset: Preset, plans: list[dict[str, Any]], length: int, prompt: int) -> list[str]:
    """The plans of a preset, side by side, as text."""
    tokens, shape, what = plans[0]["tokens"], preset.shape, preset.arm or "temperature sweep"
    out = [
        f"{preset.name}: {shape.hub}, {shape.parameters / 1e9:.2f} B parameters, template {shape.template}, "
        f"{what} on {preset.problems or preset.evaluated_on}",
        f"{tokens['sampled'] / 1e6:,.0f} M tokens to sample, {tokens['trained'] / 1e6:,.0f} M to train on "
        f"(assumed: answers of {length}, prompts of {prompt} tokens; --length, --prompt)",
        f"{plans[0]['disk'] / 1e9:,.0f} GB of disk",
    ]

    def row(head: str, cells: Iterable[str]) -> None:
        out.append(f"{head:<26}" + "".join(f"{c:>16}" for c in cells))

    row("", (p["machine"] for p in plans))
    for part in plans[0]["memory"]:
        unit = "GB per device, " if part == "peak" else "  "
        row(unit + part, (f"{p['memory'][part] / 1e9:.1f}" for p in plans))
    row("fits", ("yes" if p["fits"] else "no" for p in plans))
    for part in plans[0]["hours"]:
        hours = (p["hours"][part] for p in plans)
        row(f"hours, {part}", ("-" if h is None else f"{h:,.2f}" for h in hours))
    if any(p["gpus"] > 1 for p in plans):
        out.append("several devices: under torchrun, with --set sharding=fsdp")
    return out
