"""Time of a round on N devices, part by part, and where each way of refreshing the samplers stops scaling.

N devices draw `questions x G` answers and train on them, one engine in each process. P parameters, c = 2
bytes of one as it is computed in, 4 as it is stored; flops and bandwidths of a device as in `plan`.

    drawing     (decoding step of answers / N side by side) x (the device's own longest answer)
    waiting     the same step x (the longest answer of all - the device's own longest): stragglers
    training    as in `plan`, on the share of micro-batches that the busiest device gets
    gradients   FSDP2: per micro-batch two gathers of c P and one reduction of 4 P bytes over the slowest link
    refresh     memory  gather c P over the link (FSDP2) and copy it: the built-in engines
                folder  every process writes and reads its own c P on its node's disk: vLLM in the process
                server  one file of c P, read by N / 8 nodes from one shared disk

The longest of n answers is what `longest` expects of a given set of lengths; without one, lengths are taken
to be exponential up to the limit. Rates of links and disks are assumed: 300 GB/s inside a node of 8, 40 GB/s a
device between nodes, 2 GB/s a disk (a folder in memory is faster).
"""

from __future__ import annotations

from math import ceil, exp, log
from typing import Any

import numpy as np

from .config import Config
from .steps import part_size

NODE = 8
INSIDE, BETWEEN, DISK = 300e9, 40e9, 2e9
SHARE = 0.1
"""A refresh that takes more of a round than this has stopped scaling."""


def longest(lengths: Any, n: float) -> float:
    """Expected maximum of n independent draws from the observed lengths."""
    x = np.sort(np.asarray(lengths, dtype=float))
    at = np.arange(len(x) + 1) / len(x)
    return float((x * np.diff(at**n)).sum())


def assumed_lengths(mean: float, limit: int) -> np.ndarray:
    """10,000 quantiles of an exponential distribution, cut at the limit, with this mean (if that can be)."""
    u = (np.arange(10000) + 0.5) / 10000
    low, high = log(1e-3), log(1e6)
    for _ in range(60):  # its scale, by bisection
        scale = exp((low + high) / 2)
        drawn = np.minimum(-scale * np.log1p(-u), limit)
        low, high = (log(scale), high) if drawn.mean() < mean else (low, log(scale))
    return drawn


def turns(config: Config, N: int) -> int:
    """Micro-batches of the busiest device in one optimizer step, as `steps.take_steps` shares them out."""
    rows = config.mini_batch * config.G
    return ceil(ceil(rows / part_size(config, rows, N)) / N)


def refresh_bytes(P: int, c: int, N: int) -> dict[str, float]:
    """Bytes of one refresh through the narrowest place of each method, for all devices that share it."""
    return {
        "memory": c * P * (N - 1) / N,
        "folder": 2 * c * P * min(N, NODE),
        "server": c * P * ceil(N / NODE),
    }


def round_seconds(
    config: Config, shape: Any, machine: Any, N: int, prompt: int, lengths: np.ndarray
) -> dict[str, float]:
    """Seconds of one round on N devices, by part; `refresh` is the way through memory, the others beside it."""
    P, c, answers = shape.parameters, machine.bytes, config.questions * config.G
    link = INSIDE if N <= NODE else BETWEEN
    own = ceil(answers / N)
    mean = float(np.mean(lengths))
    keys = (prompt + mean / 2) * shape.kv_bytes * c / 2
    step = max(2 * P * own / (0.5 * machine.flops), (c * P + own * keys) / (0.6 * machine.bandwidth))
    last, first = longest(lengths, answers), longest(lengths, own)
    flops = (
        6 * P + 6 * shape.layers * shape.hidden * (prompt + mean) + 2 * P * config.gradient_checkpointing
    )
    steps = config.questions // config.mini_batch * config.mu
    busiest = turns(config, N) * part_size(config, config.mini_batch * config.G, N)
    rows = steps * min(busiest, config.mini_batch * config.G)
    moved = refresh_bytes(P, c, N)
    out = {
        "drawing": step * first,
        "waiting": step * (last - first),
        "training": rows * (prompt + mean) * flops / (0.4 * machine.flops),
        "gradients": steps * turns(config, N) * (2 * c + 4) * P * (N - 1) / N / link,
        "refresh": moved["memory"] / link + c * P / machine.bandwidth,
    }
    out["round"] = sum(out.values())
    return out | {"refresh, folder": moved["folder"] / DISK, "refresh, server": moved["server"] / DISK}


def scaling(config: Config, shape: Any, machine: Any, length: int, prompt: int) -> list[dict[str, float]]:
    """`round_seconds` for 1, 2, 4, ... devices, up to one answer for each or 1024."""
    lengths = assumed_lengths(length, config.max_new_tokens)
    counts = [2**k for k in range(11) if 2**k <= config.questions * config.G]
    return [{"gpus": N, **round_seconds(config, shape, machine, N, prompt, lengths)} for N in counts]


def lines(rows: list[dict[str, float]], name: str) -> list[str]:
    """The table as text, and the number of devices from which on each refresh takes over a tenth of a round."""
    parts = [p for p in rows[0] if p != "gpus"]
    out = [f"seconds of a round, by the number of {name}:"]
    out.append(f"{'gpus':>6}" + "".join(f"{p:>17}" for p in parts))
    out += [f"{r['gpus']:>6}" + "".join(f"{r[p]:>17,.2f}" for p in parts) for r in rows]
    for way in ("refresh", "refresh, folder", "refresh, server"):
        rest = {r["gpus"]: r["round"] - r["refresh"] for r in rows}
        over = [r["gpus"] for r in rows if r[way] > SHARE * (rest[r["gpus"]] + r[way])]
        shown = way if "," in way else "refresh, memory"
        out.append(
            f"{shown}: over {SHARE:.0%} of a round {f'from {over[0]} on' if over else 'nowhere here'}"
        )
    return out
