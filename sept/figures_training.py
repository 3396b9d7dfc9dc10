"""Drawings of training: curves over rounds, scores over learning rates."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from . import published
from .figures import (
    COLOURS,
    DASHES,
    PAGE,
    band,
    blocks,
    checked,
    legend_below,
    looks_of,
    method_colour,
    new_figure,
    note,
    panels,
    root_of,
)

# Figure 5's series: one more answer per question, one more colour.
G_COLOURS = {"G = 1": "#0072B2", "G = 4": "#E69F00", "G = 8": "#009E73"}
_COLUMNS = ("arm", "seed", "round", "metric", "value")


def figure_training(table: pd.DataFrame) -> Figure:
    """One panel per metric over rounds: seeds thin, their mean thick with a 95% t interval.

    Columns: arm, seed, round, metric, value.
    """
    checked(table, "figure_training", _COLUMNS)
    metrics = list(table["metric"].unique())
    looks = looks_of(table["arm"].unique())
    fig, axes = panels(len(metrics), columns=3, base=0.5, each=1.9)
    for ax, metric in zip(axes, metrics, strict=True):
        for arm, look in looks.items():
            rows = table[table["arm"] == arm]
            label, rows = _with_seeds(arm, rows), rows[rows["metric"] == metric]
            if not rows.empty:
                _over_seeds(ax, rows, look["color"], look["linestyle"], label)
        ax.set(title=metric, xlabel="round")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    legend_below(fig, columns=4 if max(map(len, looks)) < 12 else 3)
    return fig


def _with_seeds(arm: str, rows: pd.DataFrame) -> str:
    seeds = rows["seed"].nunique()
    return f"{arm} ({seeds} seed{'s' * (seeds > 1)})"


def _over_seeds(ax: Axes, rows: pd.DataFrame, colour: str, dash: str, label: str) -> None:
    """Seeds thin, their mean thick, a 95% t interval where there are several."""
    wide = rows.pivot_table(index="round", columns="seed", values="value")
    if wide.shape[1] > 1:
        ax.plot(wide.index, wide, color=colour, linestyle=dash, linewidth=0.5, alpha=0.5)
        n = wide.count(axis=1)
        half = stats.t.ppf(0.975, n.clip(lower=2) - 1) * wide.sem(axis=1)
        spread = pd.DataFrame({"lo": wide.mean(axis=1) - half, "hi": wide.mean(axis=1) + half})
        band(ax, spread.reset_index(), "round", colour)
    ax.plot(wide.index, wide.mean(axis=1), color=colour, linestyle=dash, label=label)


def figure_5(table: pd.DataFrame, baseline: Mapping[str, float], measured: str = "embedded base") -> Figure:
    """Scores at temperature 1 over training for G answers per question, measured above published.

    Columns: arm (`G = 1`, ...), seed, round, metric (two of them), value. baseline: metric -> score of the
    untrained model at its best temperature, a level line.
    """
    checked(table, "figure_5", _COLUMNS)
    what = "Qwen2.5-Math-7B, Figure 5 (one run each)"
    fig, top, bottom = blocks(5.4, measured, what, ratios=(1.1, 1))
    names = {f"SePT {arm.replace(' ', '')}": arm for arm in G_COLOURS}
    sides = {"left": "pass@1", "right": "pass@32"}
    parts = [published.curve("5", side, name) for side in sides for name in names]
    columns = {"x": "round", "y": "value", "y_metric": "metric"}
    printed = pd.concat(parts).rename(columns=columns).assign(seed=0)
    printed["arm"] = printed["series"].map(names)
    level = {m: published.curve("5", side, "Baseline")["y"].iloc[0] for side, m in sides.items()}
    for block, part, base, x in (
        (top, table, baseline, "round"),
        (bottom, printed, level, "training step"),
    ):
        axes = block.subplots(1, 2)
        for ax, metric in zip(axes, part["metric"].unique(), strict=True):
            for arm, rows in part[part["metric"] == metric].groupby("arm", sort=False):
                label = _with_seeds(str(arm), rows) if part is table else str(arm)
                _over_seeds(ax, rows, G_COLOURS.get(str(arm), "#333333"), "-", label)
            ax.axhline(base[metric], color=COLOURS["Baseline"], linestyle="--", label="Baseline, best T")
            ax.set(title=metric, xlabel=x)
        axes[0].set_ylabel("score (%)")
        legend_below(block, columns=4)
    return fig


def figure_3(table: pd.DataFrame) -> Figure:
    """AVG of the untrained model at its best temperature, of EM-FT and of SePT, one panel a model.

    Columns: model, method (Baseline..., EM-FT, SePT), value, lo, hi. Measured | published.
    """
    checked(table, "figure_3", ("model", "method", "value", "lo", "hi"))
    printed = published.curves().query("figure == '3'").rename(columns={"series": "method", "y": "value"})
    printed = printed.assign(lo=printed["value"], hi=printed["value"])
    fig, *both = blocks(2.9, "AVG, 95% intervals", "Figure 3 (no intervals)", beside=True)
    for block, part in zip(both, (table, printed), strict=True):
        models = list(part["model"].unique())
        axes = block.subplots(1, len(models), squeeze=False).ravel()
        for ax, model in zip(axes, models, strict=True):
            rows = part[part["model"] == model]
            ax.plot(range(len(rows)), rows["value"], color="#999999", linestyle="--", linewidth=0.9)
            looks = looks_of(rows["method"]).values()
            for place, (row, look) in enumerate(zip(rows.to_dict("records"), looks, strict=True)):
                error = [[row["value"] - row["lo"]], [row["hi"] - row["value"]]]
                ax.errorbar(place, row["value"], error, markersize=6, **{**look, "linestyle": "none"})
                note(ax, f"{row['value']:.1f}", (place, row["hi"]), (0, 4), ha="center", fontsize=8)
            ax.set_xticks(range(len(rows)), [root_of(m) for m in rows["method"]], fontsize=7)
            ax.set_title(model.replace("-Instruct", "\nInstruct"), fontsize=8)
            ax.margins(x=0.25, y=0.2)
        axes[0].set_ylabel("AVG (%)")
    return fig


def figure_learning_rates(table: pd.DataFrame, untrained: Mapping[str, float]) -> Figure:
    """Score of every arm against its learning rate, with intervals.

    Columns: arm, lr, value, lo, hi; untrained: scores of the base by name, drawn as level lines. One panel
    for the arms that train on their own sharpened answers, one for the others.
    """
    checked(table, "figure_learning_rates", ("arm", "lr", "value", "lo", "hi"))
    fig = new_figure(PAGE, 3.0)
    axes = fig.subplots(1, 2, sharey=True)
    own = table["arm"].str.startswith(("SePT", "Offline"))
    for ax, title, part in ((axes[0], "tau_s < tau_t", table[own]), (axes[1], "other arms", table[~own])):
        looks = looks_of(part["arm"].unique())
        for place, (arm, look) in enumerate(looks.items()):
            rows = part[part["arm"] == arm].sort_values("lr")
            x = rows["lr"] * (1 + 0.06 * (place - (len(looks) - 1) / 2))  # beside each other
            error = [rows["value"] - rows["lo"], rows["hi"] - rows["value"]]
            ax.errorbar(x, rows["value"], error, label=arm, **{**look, "marker": "o"})
        for (name, value), dash in zip(untrained.items(), DASHES, strict=False):
            ax.axhline(value, color=method_colour("Baseline"), linestyle=dash, linewidth=0.9, label=name)
        ax.set(xscale="log", xlabel="learning rate", title=title, ylim=(0, 100))
    axes[0].set_ylabel("AVG on dev questions (%)")
    legend_below(fig, columns=4)
    return fig
