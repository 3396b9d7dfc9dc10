"""Peak memory and time of the loss at a real vocabulary: in chunks, and from all logits at once.

    python bench/loss_memory.py [--tokens 4096] [--vocabulary 151936] [--hidden 256] [--repeats 2] [--out FILE]

Forward and backward of the mean negative log-likelihood from hidden states and the output layer, in float32
on one thread. Each way runs in processes of its own, by turns. Peak: resident memory beyond what states, output
layer and the program itself take. Seconds: processor time. Prints medians, ratios and the largest difference of
the gradients relative to their largest entry; writes a row per run to --out (CSV). The plain way takes
about three arrays of all logits, 7.5 GB by default, and is not started where that is not free.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from sept import objectives, steps

WAYS = ("plain", "chunks")


def status(key: str) -> float:
    """A field of this process in MiB, as Linux counts it."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(key + ":")[1].split()[0]) / 1024


def measure(way: str, tokens: int, vocabulary: int, hidden: int) -> dict[str, object]:
    """peak (MiB), seconds and gradients of one loss in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    states = torch.randn(tokens, hidden, requires_grad=True)
    drawn = torch.randint(vocabulary, (tokens, 1))
    head = (torch.randn(vocabulary, hidden) / hidden**0.5).requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, started = status("VmRSS"), time.process_time()
    if way == "plain":
        loss = objectives.nll((states @ head.t())[:, None], drawn, 1.0).sum() / tokens
    else:

        def of(logits: torch.Tensor, chunk: slice) -> torch.Tensor:
            return objectives.nll(logits, drawn[chunk], 1.0).sum() / tokens

        loss = steps.HeadLoss.apply(states, head, None, torch.float32, of)
    loss.backward()
    out = {"way": way, "peak_mib": status("VmHWM") - before, "seconds": time.process_time() - started}
    return {**out, "gradients": [states.grad, head.grad]}


def compare(tokens: int, vocabulary: int, hidden: int, repeats: int) -> tuple[pd.DataFrame, float]:
    """A row per run, by turns, and the largest relative difference of the gradients."""
    needed, free = 3 * 4 * tokens * vocabulary / 1e9, 0.0
    for line in Path("/proc/meminfo").read_text().splitlines():
        free = int(line.split()[1]) / 1e6 if line.startswith("MemAvailable") else free
    if needed > free:
        sys.exit(f"the plain way needs {needed:.1f} GB and {free:.1f} GB are free; lower --tokens")
    rows, gradients = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(repeats * len(WAYS)):
            path = Path(folder) / f"{i}.pt"
            sizes = [str(n) for n in (tokens, vocabulary, hidden)]
            subprocess.run([sys.executable, __file__, "--child", WAYS[i % 2], path, *sizes], check=True)
            got = torch.load(path, weights_only=True)
            gradients[got["way"]] = got.pop("gradients")
            path.unlink()
            rows.append({**got, "tokens": tokens, "vocabulary": vocabulary, "hidden": hidden})
    off = [((a - b).abs().max() / a.abs().max()).item() for a, b in zip(*gradients.values(), strict=True)]
    return pd.DataFrame(rows), max(off)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        way, path, *sizes = sys.argv[2:]
        torch.save(measure(way, *map(int, sizes)), path)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in (("tokens", 4096), ("vocabulary", 151_936), ("hidden", 256), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    table, off = compare(a.tokens, a.vocabulary, a.hidden, a.repeats)
    middle = table.groupby("way", sort=False)[["peak_mib", "seconds"]].median()
    for way, row in middle.iterrows():
        print(f"{way:<8}{row['peak_mib']:>9,.0f} MiB{row['seconds']:>9.1f} s")
    share = middle.loc["chunks"] / middle.loc["plain"]
    print(
        f"chunks / plain: memory 1/{1 / share['peak_mib']:.1f}, time {share['seconds']:.2f}; "
        f"gradients differ by {off:.1e} of their largest"
    )
    if a.out is not None:
        table.to_csv(a.out, index=False)


if __name__ == "__main__":
    main()
