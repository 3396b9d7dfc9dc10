"""The explorer: what rounds of SePT do to the tokens of one prefix, drawn again as sliders move."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.special import softmax, xlogy

from .figures import COLOURS, PAGE, checked, use_style
from .policy import Policy
from .problems import Problem
from .sampling import make_sampler
from .tabular import Array

SHOWN = 8  # likeliest tokens that are drawn as bars
START = {"tau_s": 0.6, "tau_t": 1.0, "rounds": 1, "samples": 0}
"""Where the sliders stand at first; 0 samples means infinitely many."""


def explored(
    tokens: Sequence[str],
    logits: Array,
    tau_s: float,
    tau_t: float = 1.0,
    rounds: int = 1,
    samples: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Table of one prefix before and after `rounds` rounds, each trained to its optimum: a row per token.

    logits [A]. samples: draws per round at this prefix, from the same uniform numbers whatever the
    temperatures; 0: infinitely many, which is Theorem 1. The optimum of a round with finitely many is
    tau_t log(counts), so a token that was not drawn is gone for good: its logit is minus infinity. Columns:
    token, old_logit, new_logit, old, trained (probabilities at temperature 1), sampled (of the last round),
    tau_s, tau_t, rounds, samples.
    """
    old = np.asarray(logits, dtype=float) - np.max(logits)
    new = sampled = old
    for number in range(rounds):
        sampled = softmax(new / tau_s)
        if samples:
            drawn = np.random.default_rng([seed, number]).random(samples)
            edges = np.cumsum(sampled) / sampled.sum()
            counts = np.bincount(
                np.minimum(edges.searchsorted(drawn, "right"), old.size - 1), minlength=old.size
            )
            with np.errstate(divide="ignore"):
                new = tau_t * np.log(counts / counts.max())
        else:
            new = new * (tau_t / tau_s)
    columns: dict[str, Any] = {"token": list(tokens), "old_logit": old, "new_logit": new}
    columns |= {"old": softmax(old), "sampled": sampled, "trained": softmax(new)}
    return pd.DataFrame(columns | {"tau_s": tau_s, "tau_t": tau_t, "rounds": rounds, "samples": samples})


def prefixes_of(
    policy: Policy, problem: Problem, count: int = 6, seed: int = 0, max_new_tokens: int = 56
) -> dict[str, tuple[list[str], Array]]:
    """Where a policy was least certain as it answered, at temperature 1: all tokens and their logits by prefix.

    The least certain comes first. The model runs once.
    """
    prompt = policy.encode(problem.prompt)
    drawn = make_sampler(policy).sample([prompt], [problem.id], 1, 1.0, max_new_tokens, seed)
    answer = drawn.tokens[0, : drawn.lengths[0]].tolist()
    with torch.no_grad():
        found = policy.model(torch.tensor([prompt + answer])).logits[
            0, len(prompt) - 1 : -1, : policy.vocab
        ]
    logits = found.double().numpy()
    least = np.argsort(softmax(logits, axis=1).max(axis=1), kind="stable")[:count]
    words = policy.tokenizer.convert_ids_to_tokens(range(logits.shape[1]))
    return {f"{problem.prompt}{policy.decode(answer[:i])}": (words, logits[i]) for i in least}


def measured(table: pd.DataFrame) -> dict[str, float]:
    """What an `explored` table says in numbers.

    slope: of new on old margins over all pairs of tokens that are left, least squares; theory:
    (tau_t / tau_s) ** rounds; entropy before and after in nats; lost: tokens that are gone.
    """
    row, old, new = table.iloc[0], *_margins(table)
    return {
        "slope": float(old @ new / (old @ old)) if old.any() else float("nan"),
        "theory": float((row["tau_t"] / row["tau_s"]) ** row["rounds"]),
        "entropy_old": float(-xlogy(table["old"], table["old"]).sum()),
        "entropy_new": float(-xlogy(table["trained"], table["trained"]).sum()),
        "lost": float(np.isneginf(table["new_logit"]).sum()),
    }


def _margins(table: pd.DataFrame) -> tuple[Array, Array]:
    """Old and new margins of every pair of tokens that are left."""
    left = table[np.isfinite(table["new_logit"])]
    i, j = np.triu_indices(len(left), 1)
    old, new = (left[c].to_numpy() for c in ("old_logit", "new_logit"))
    return old[i] - old[j], new[i] - new[j]


def figure_explorer(table: pd.DataFrame) -> Figure:
    """A prefix's likeliest tokens, untrained, as sampled and as trained; beside them its margins, old and new.

    Columns: as `explored` makes them.
    """
    columns = ("token", "old_logit", "new_logit", "old", "sampled", "trained", "tau_s", "tau_t", "rounds")
    checked(table, "figure_explorer", columns)
    use_style()
    fig = Figure(figsize=(PAGE, 2.9))  # a layout engine would double the time that a picture takes
    fig.subplots_adjust(left=0.075, right=0.985, bottom=0.16, top=0.91, wspace=0.22)
    bars, ax = fig.subplots(1, 2, width_ratios=(1.5, 1))
    top, row = table.nlargest(SHOWN, "old", keep="first"), table.iloc[0]
    drawn = f"{row['samples']:g} draws" if row["samples"] else "all of it"
    series = (
        ("old", "untrained, at 1", COLOURS["Baseline"]),
        ("sampled", f"sampled, at {row['tau_s']:g}: {drawn}", COLOURS["Inverted"]),
        ("trained", f"trained at {row['tau_t']:g}, decoded at 1", COLOURS["SePT"]),
    )
    for k, (column, label, colour) in enumerate(series):
        bars.bar(np.arange(len(top)) + 0.28 * (k - 1), top[column], 0.26, color=colour, label=label)
    for x, lost in enumerate(np.isneginf(top["new_logit"])):
        if lost:
            bars.text(x + 0.28, 0.01, "x", ha="center", color=COLOURS["Offline"], fontweight="bold")
    bars.set_xticks(range(len(top)), top["token"])
    bars.set_ylim(0, 1)
    bars.set_ylabel("probability")
    bars.set_title(f"{int(row['rounds'])} round{'' if row['rounds'] == 1 else 's'}", loc="left")
    bars.legend(loc="upper right")
    numbers = measured(table)
    before, after = _margins(table)
    reach = 1.05 * max(np.abs(table["old_logit"]).max(), 1e-9)
    line = np.array([-reach, reach])
    ax.plot(line, line, color="#999999", linewidth=0.8, linestyle=":")
    ax.plot(line, numbers["theory"] * line, color=COLOURS["SePT"], linewidth=0.9)
    ax.plot(before, after, "o", color=COLOURS["SePT"], markersize=3, alpha=0.6)
    ax.set_xlabel("margin before")
    ax.set_ylabel("margin after")
    ax.set_title(f"slope {numbers['slope']:.3g}, Theorem 1: {numbers['theory']:.3g}", loc="left")
    return fig


class Explorer:
    """Sliders over `explored`. box: the widget to show; sliders by name; table: what is drawn now."""

    def __init__(self, prefixes: Mapping[str, tuple[Sequence[str], Array]]) -> None:
        """prefixes: tokens and logits by the name of each prefix, made once; a slider only rescales them."""
        import ipywidgets as w

        wide: dict[str, Any] = {"continuous_update": True, "style": {"description_width": "6em"}}
        self.prefixes = prefixes
        self.sliders: dict[str, Any] = {
            "prefix": w.Dropdown(options=list(prefixes), description="prefix", style=wide["style"]),
            "tau_s": w.FloatSlider(START["tau_s"], min=0.1, max=2, step=0.05, description="tau_s", **wide),
            "tau_t": w.FloatSlider(START["tau_t"], min=0.1, max=2, step=0.05, description="tau_t", **wide),
            "rounds": w.IntSlider(START["rounds"], min=0, max=8, description="rounds", **wide),
            "samples": w.SelectionSlider(
                options=[(f"{n:,}", n) for n in (8, 32, 128, 1024, 16384)] + [("all", 0)],
                value=START["samples"],
                description="samples",
                **wide,
            ),
        }
        self.picture, self.line = w.Image(format="png"), w.HTML()
        self.box = w.VBox([*self.sliders.values(), self.line, self.picture])
        for slider in self.sliders.values():
            slider.observe(self._draw, "value")
        self._draw()

    def _draw(self, _: Any = None) -> None:
        values = {name: slider.value for name, slider in self.sliders.items()}
        self.table = explored(*self.prefixes[values.pop("prefix")], **values)
        stream, n = io.BytesIO(), measured(self.table)
        figure_explorer(self.table).savefig(stream, format="png", dpi=110)
        self.picture.value = stream.getvalue()
        gone = f"; {n['lost']:.0f} tokens were never drawn and are gone" if n["lost"] else ""
        self.line.value = (
            f"margins grew by <b>{n['slope']:.3g}</b> (Theorem 1: {n['theory']:.3g}); "
            f"entropy {n['entropy_old']:.2f} to {n['entropy_new']:.2f} nats{gone}"
        )
