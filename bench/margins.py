"""How fast margins are measured at a real vocabulary, and what share of the machine's limit that is.

    python bench/margins.py [--threads 2] [--vocabulary 151936] [--prefixes 256]

Prefixes a second given logits (float32; slope, R2, KL, intercept) against the larger of two limits: bytes read
(two arrays of logits) over the measured copy bandwidth, and exponentials (two a token) over the measured
exponentials a second, each at the same number of threads. The three take turns, five times.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from harness import interleave

from sept import margins


def measure(threads: int, vocabulary: int, prefixes: int) -> dict[str, Any]:
    """ours and peer (the limit) in prefixes a second, ratio with quartiles, MiB beyond the logits."""
    torch.manual_seed(0)
    old = torch.randn(prefixes, vocabulary) * 3
    new = old * 1.6 + torch.randn_like(old) * 0.3
    target = torch.empty_like(old)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    margins.prefix_statistics(old, new, 0.6, order=False, threads=threads)
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024

    def side_by_side(function: Callable[[torch.Tensor, torch.Tensor], object]) -> float:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(function, old.chunk(threads), target.chunk(threads)))
        return prefixes

    def exponentials(x: torch.Tensor, y: torch.Tensor) -> None:
        for row, out in zip(x, y, strict=True):
            torch.exp(row, out=out)

    def ours() -> float:
        margins.prefix_statistics(old, new, 0.6, order=False, threads=threads)
        return prefixes

    works = {
        "ours": ours,
        "copy": lambda: side_by_side(lambda x, y: y.copy_(x)),  # reads and writes what the measure reads
        "exp": lambda: side_by_side(exponentials) / 2,
    }
    runs = interleave({name: (1, work) for name, work in works.items()}, 5)
    speed = (runs["units"] / runs["wall"]).groupby([runs["contender"], runs["run"]]).first()
    limit = min(("copy", "exp"), key=lambda name: speed[name].median())
    share = speed["ours"] / speed[limit]
    return dict(
        ours=speed["ours"].median(), peer=speed[limit].median(), ratio=share.median(),
        lo=share.quantile(0.25), hi=share.quantile(0.75), ours_as=f"ours/{threads}",
        peer_as=f"{limit}/{threads}", runs=len(share), extra=extra,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--prefixes", type=int, default=256)
    a = parser.parse_args()
    r = measure(a.threads, a.vocabulary, a.prefixes)
    print(
        f"{r['ours']:,.0f} prefixes/s at V = {a.vocabulary:,} on {a.threads} threads, {r['ratio']:.0%} of the "
        f"limit ({r['peer_as']}, {r['peer']:,.0f}); {r['extra']:,.0f} MiB beyond the logits"
    )


if __name__ == "__main__":
    main()
