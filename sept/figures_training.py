"""Drawings of training: curves over rounds, scores over learning rates."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from . import published
from .figures import (
    COLOURS,
    COLUMN,
    MARKERS,
    PAGE,
    band,
    checked,
    legend_below,
    method_colour,
    new_figure,
    root_of,
    titled,
    variants_of,
)

# Figure 5's series: one more answer per question, one more colour.
G_COLOURS = {"G = 1": "#0072B2", "G = 4": "#E69F00", "G = 8": "#009E73"}


def figure_training(table: pd.DataFrame) -> Figure:
    """One panel per metric over rounds: seeds thin, their mean thick with a 95% t interval.

    Columns: arm, seed, round, metric, value.
    """
    checked(table, "figure_training", ("arm", "seed", "round", "metric", "value"))
    metrics = list(table["metric"].unique())
    number = variants_of(table["arm"].unique())
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    fig = new_figure(PAGE if columns > 1 else COLUMN, 0.5 + 1.9 * lines)
    axes = fig.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes[len(metrics) :]:
        ax.set_visible(False)
    for ax, metric in zip(axes, metrics, strict=False):
        for arm, variant in number.items():
            rows = table[(table["arm"] == arm) & (table["metric"] == metric)]
            if rows.empty:
                continue
            seeds = table.loc[table["arm"] == arm, "seed"].nunique()
            label = f"{arm} ({seeds} seed{'s' * (seeds > 1)})"
            _over_seeds(ax, rows, method_colour(arm), ("-", "--", ":", "-.")[variant % 4], label)
        ax.set_title(metric)
        ax.set_xlabel("round")
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=5, integer=True))
    legend_below(fig, columns=4 if max(map(len, number)) < 12 else 3)
    return fig


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
    checked(table, "figure_5", ("arm", "seed", "round", "metric", "value"))
    fig = new_figure(PAGE, 5.4)
    top, bottom = fig.subfigures(2, 1, squeeze=False, height_ratios=(1.1, 1)).ravel()
    axes = titled(top, "measured", measured).subplots(1, 2)
    for ax, metric in zip(axes, table["metric"].unique(), strict=True):
        for arm, rows in table[table["metric"] == metric].groupby("arm", sort=False):
            seeds = rows["seed"].nunique()
            label = f"{arm} ({seeds} seed{'s' * (seeds > 1)})"
            _over_seeds(ax, rows, G_COLOURS.get(str(arm), "#333333"), "-", label)
        ax.axhline(baseline[metric], color=COLOURS["Baseline"], linestyle="--", label="Baseline, best T")
        ax.set(title=metric, xlabel="round")
    axes[0].set_ylabel("score (%)")
    legend_below(top, columns=4)
    axes = titled(bottom, "published", "Qwen2.5-Math-7B, Figure 5 (one run each)").subplots(1, 2)
    for ax, panel, metric in zip(axes, ("left", "right"), ("pass@1", "pass@32"), strict=True):
        for arm, colour in G_COLOURS.items():
            points = published.curve("5", panel, f"SePT {arm.replace(' ', '')}")
            ax.plot(points["x"], points["y"], color=colour, label=arm)
        level = published.curve("5", panel, "Baseline")["y"].iloc[0]
        ax.axhline(level, color=COLOURS["Baseline"], linestyle="--", label="Baseline, best T")
        ax.set(title=metric, xlabel="training step")
    axes[0].set_ylabel("score (%)")
    legend_below(bottom, columns=4)
    return fig


def figure_3(table: pd.DataFrame) -> Figure:
    """AVG of the untrained model at its best temperature, of EM-FT and of SePT, one panel a model.

    Columns: model, method (Baseline..., EM-FT, SePT), value, lo, hi. Measured | published.
    """
    checked(table, "figure_3", ("model", "method", "value", "lo", "hi"))
    printed = published.curves().query("figure == '3'").rename(columns={"series": "method", "y": "value"})
    printed = printed.assign(lo=printed["value"], hi=printed["value"])
    fig = new_figure(PAGE, 2.9)
    blocks = fig.subfigures(1, 2, squeeze=False).ravel()
    names = ("AVG, 95% intervals", "Figure 3 (no intervals)")
    for block, source, part, what in zip(
        blocks, ("measured", "published"), (table, printed), names, strict=True
    ):
        models = list(part["model"].unique())
        axes = titled(block, source, what).subplots(1, len(models), squeeze=False).ravel()
        for ax, model in zip(axes, models, strict=True):
            rows = part[part["model"] == model]
            ax.plot(range(len(rows)), rows["value"], color="#999999", linestyle="--", linewidth=0.9)
            for place, (_, row) in enumerate(rows.iterrows()):
                error = [[row["value"] - row["lo"]], [row["hi"] - row["value"]]]
                style = {
                    "color": method_colour(row["method"]),
                    "fmt": MARKERS.get(root_of(row["method"]), "o"),
                }
                ax.errorbar(place, row["value"], error, markersize=6, **style)
                ax.annotate(
                    f"{row['value']:.1f}",
                    (place, row["hi"]),
                    (0, 4),
                    ha="center",
                    fontsize=8,
                    textcoords="offset points",
                )
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
        number = variants_of(part["arm"].unique())
        for place, (arm, variant) in enumerate(number.items()):
            rows = part[part["arm"] == arm].sort_values("lr")
            x = rows["lr"] * (1 + 0.06 * (place - (len(number) - 1) / 2))  # beside each other
            error = [rows["value"] - rows["lo"], rows["hi"] - rows["value"]]
            dash = ("-", "--", ":", "-.")[variant % 4]
            ax.errorbar(x, rows["value"], error, color=method_colour(arm), fmt="o" + dash, label=arm)
        for (name, value), dash in zip(untrained.items(), ("-", "--", ":"), strict=False):
            ax.axhline(value, color=method_colour("Baseline"), linestyle=dash, linewidth=0.9, label=name)
        ax.set(xscale="log", xlabel="learning rate", title=title, ylim=(0, 100))
    axes[0].set_ylabel("AVG on dev questions (%)")
    legend_below(fig, columns=4)
    return fig
