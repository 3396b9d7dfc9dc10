"""What every benchmark here shares: interleaved runs, ratios with their spread, limits of the machine.

Contenders take turns in one process, so that whatever else the machine does hits all of them alike. Ratios are
made run by run and then summarised; seconds alone are worth little on a machine that is shared.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import resource
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch

Work = Callable[[], float]
"""One run of a contender; returns the units of work that it did (tokens, prefixes, rounds)."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PACKAGES = ("torch", "transformers", "trl", "math-verify", "numpy")


def cpu_seconds() -> float:
    """Processor time of this process and of its finished children."""
    own, others = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def interleave(
    contenders: dict[str, tuple[int, Work]], repeats: int, budget: float = 120.0
) -> pd.DataFrame:
    """Long table contender, threads, run, units, wall, cpu: `repeats` turns each after one to warm up.

    contenders: name -> (threads of torch, work). Their order turns with every run. Stops early, after three
    runs at least, when `budget` seconds are over.
    """
    rows, before = [], torch.get_num_threads()
    names, started = list(contenders), time.monotonic()
    gc.collect()
    for run in range(-1, repeats):
        if run >= 3 and time.monotonic() - started > budget:
            break
        turn = max(run, 0) % len(names)
        for name in names[turn:] + names[:turn]:
            threads, work = contenders[name]
            torch.set_num_threads(threads)
            cpu, wall = cpu_seconds(), time.perf_counter()
            units = work()
            wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
            if run >= 0:
                rows.append(dict(contender=name, threads=threads, run=run, units=units, wall=wall, cpu=cpu))
    torch.set_num_threads(before)
    return pd.DataFrame(rows)


def best(runs: pd.DataFrame, contender: str) -> pd.Series:
    """Units a second, run by run, of a contender at whichever of its thread counts has the best median.

    Contenders of one name at several thread counts are called `name/threads`.
    """
    own = runs[runs["contender"].str.split("/").str[0] == contender]
    speed = (own["units"] / own["wall"]).groupby([own["contender"], own["run"]]).first()
    chosen = speed.groupby("contender").median().idxmax()
    return speed[chosen].rename(chosen)


def ratio(runs: pd.DataFrame, ours: str, peer: str) -> dict[str, Any]:
    """How many times faster `ours` is than `peer`, each at its best thread count: median and quartiles.

    by_cpu: the same of their processor time, which says more on a machine that is busy with other work.
    """
    a, b = best(runs, ours), best(runs, peer)
    per_unit = (runs["cpu"] / runs["units"]).groupby(runs["contender"]).median()
    each = (a / b).dropna()
    low, mid, high = np.quantile(each, [0.25, 0.5, 0.75])
    return dict(
        ours=float(a.median()), peer=float(b.median()), ratio=float(mid), lo=float(low), hi=float(high),
        ours_as=str(a.name), peer_as=str(b.name), runs=len(each), by_cpu=per_unit[b.name] / per_unit[a.name],
    )  # fmt: skip


def quickest(work: Callable[[], object], repeats: int = 20) -> float:
    """Seconds of the fastest of some calls: for limits, which are about what the machine can do."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


@lru_cache
def rates() -> dict[str, float]:
    """What this machine does at most: `flops` of float32 matrix products, `bytes` copied (read and written).

    All cores; each the fastest of twenty products of 1,024 squared, and of copies far beyond the caches.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(CORES)
    a, b, out = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.empty(1024, 1024)
    flops = 2 * 1024**3 / quickest(lambda: torch.mm(a, b, out=out))
    old, new = torch.randn(2**26), torch.empty(2**26)
    copied = 8 * 2**26 / quickest(lambda: new.copy_(old), 5)
    torch.set_num_threads(before)
    return {"flops": flops, "bytes": copied}


def limits(
    model: Any, prompts: list[int], answers: list[int], n: int = 1, passes: int = 0, steps: int = 0
) -> tuple[float, float]:
    """Least seconds for a work: its operations over the rate of products, its bytes over that of copies.

    prompts: tokens of each question, read once; answers: tokens of each of its n answers in turn, drawn.
    passes, steps: how often all of that is trained on, forward and backward (three times the operations),
    and in how many optimizer steps (weights, gradients and two moments read, three of them written).
    Bytes are those of weights, once a decode step for all rows, and of the attention's cache.
    """
    c = model.config
    dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    heads, kv = c.num_attention_heads * dim, c.num_key_value_heads * dim
    body = c.num_hidden_layers * (
        c.hidden_size * (2 * heads + 2 * kv) + 3 * c.hidden_size * c.intermediate_size
    )
    head = c.hidden_size * c.vocab_size
    read, drawn = sum(prompts), sum(answers)
    pairs = [(prompts[i // n], t) for i, t in enumerate(answers)]
    spans = sum(p * t + t * (t + 1) / 2 for p, t in pairs)  # slots that the drawn tokens attend to
    own = sum(p * (p + 1) / 2 for p in prompts)
    attention = 4 * heads * c.num_hidden_layers
    flops = 2 * body * (read + drawn) + 2 * head * drawn + attention * (spans + own)
    moved = 4 * (max(answers) + 1) * (body + head) + 4 * 2 * kv * c.num_hidden_layers * spans
    tokens = sum(p + t for p, t in pairs)
    trained = sum((p + t) * (p + t + 1) / 2 for p, t in pairs)
    flops += passes * 3 * (2 * body * tokens + 2 * head * drawn + attention * trained)
    moved += steps * 4 * 7 * (body + head)
    return flops / rates()["flops"], moved / rates()["bytes"]


def machine() -> dict[str, str]:
    """Versions and hardware, for the record."""
    found = {p: importlib.metadata.version(p) for p in PACKAGES if _installed(p)}
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    most = {name: f"{rate / 1e9:.1f} G/s" for name, rate in rates().items()}
    return {
        "python": platform.python_version(), **found, "cpu": model, "cores": str(CORES),
        "capability": torch.backends.cpu.get_cpu_capability(), "load": f"{load:.1f}", **most,
    }  # fmt: skip


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False
