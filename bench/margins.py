"""How fast margins are measured at a real vocabulary, and what share of the machine's limit that is.

    python bench/margins.py [--threads 2] [--vocabulary 151936] [--prefixes 256]

Prints prefixes a second given logits (float32; slope, R2, KL, intercept, unweighted slope), and the two limits
first: bytes read (two arrays of logits) over the measured copy bandwidth, and exponentials (two a token) over
the measured exponentials a second, each at the same number of threads. Median of 5.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from sept import margins


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall-clock seconds of a call, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--prefixes", type=int, default=256)
    a = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    old = torch.randn(a.prefixes, a.vocabulary) * 3
    new = old * 1.6 + torch.randn_like(old) * 0.3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = seconds(lambda: margins.prefix_statistics(old, new, 0.6, order=False, threads=a.threads))
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    target = torch.empty_like(old)

    def side_by_side(function: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
        with ThreadPoolExecutor(a.threads) as pool:
            list(pool.map(function, old.chunk(a.threads), target.chunk(a.threads)))

    def exponentials(x: torch.Tensor, y: torch.Tensor) -> None:
        for row, out in zip(x, y, strict=True):
            torch.exp(row, out=out)

    copy = seconds(lambda: side_by_side(lambda x, y: y.copy_(x)))
    exp = seconds(lambda: side_by_side(exponentials))
    by_copy, by_exp = copy, 2 * exp  # a copy reads and writes as many bytes as the measure reads
    limit = max(by_copy, by_exp)
    print(f"limits: copy {a.prefixes / by_copy:,.0f}, exponentials {a.prefixes / by_exp:,.0f} prefixes/s")
    print(
        f"measured: {a.prefixes / took:,.0f} prefixes/s at V = {a.vocabulary:,} on {a.threads} threads, "
        f"{limit / took:.0%} of the larger limit; {extra:,.0f} MiB beyond the logits"
    )


if __name__ == "__main__":
    main()
