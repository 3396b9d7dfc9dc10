"""Drawings of training: curves over rounds, scores over learning rates."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from .figures import COLUMN, PAGE, band, checked, legend_below, method_colour, new_figure, variants_of


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
            wide = rows.pivot_table(index="round", columns="seed", values="value")
            colour, dash = method_colour(arm), ("-", "--", ":", "-.")[variant % 4]
            if wide.shape[1] > 1:
                ax.plot(wide.index, wide, color=colour, linestyle=dash, linewidth=0.5, alpha=0.5)
                n = wide.count(axis=1)
                half = stats.t.ppf(0.975, n.clip(lower=2) - 1) * wide.sem(axis=1)
                spread = pd.DataFrame({"lo": wide.mean(axis=1) - half, "hi": wide.mean(axis=1) + half})
                band(ax, spread.reset_index(), "round", colour)
            seeds = table.loc[table["arm"] == arm, "seed"].nunique()
            label = f"{arm} ({seeds} seed{'s' * (seeds > 1)})"
            ax.plot(wide.index, wide.mean(axis=1), color=colour, linestyle=dash, label=label)
        ax.set_title(metric)
        ax.set_xlabel("round")
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=5, integer=True))
    legend_below(fig, columns=4 if max(map(len, number)) < 12 else 3)
    return fig


def figure_learning_rates(table: pd.DataFrame, untrained: Mapping[str, float]) -> Figure:
    """Score of every arm against its learning rate: mean of the tuning seeds, bars from low to high.

    Columns: arm, lr, seed, value; untrained: scores of the base by name, drawn as level lines. One panel
    for the arms that train on their own answers, one for the others.
    """
    checked(table, "figure_learning_rates", ("arm", "lr", "seed", "value"))
    fig = new_figure(PAGE, 3.0)
    axes = fig.subplots(1, 2, sharey=True)
    own = table["arm"].str.startswith(("SePT", "Offline"))
    for ax, title, part in ((axes[0], "tau_s < tau_t", table[own]), (axes[1], "other arms", table[~own])):
        number = variants_of(part["arm"].unique())
        for place, (arm, variant) in enumerate(number.items()):
            by_rate = (
                part[part["arm"] == arm].groupby("lr")["value"].agg(["mean", "min", "max"]).sort_index()
            )
            x = by_rate.index.to_numpy() * (1 + 0.06 * (place - (len(number) - 1) / 2))  # beside each other
            error = [by_rate["mean"] - by_rate["min"], by_rate["max"] - by_rate["mean"]]
            dash = ("-", "--", ":", "-.")[variant % 4]
            ax.errorbar(x, by_rate["mean"], error, color=method_colour(arm), fmt="o" + dash, label=arm)
        for (name, value), dash in zip(untrained.items(), ("-", "--", ":"), strict=False):
            ax.axhline(value, color=method_colour("Baseline"), linestyle=dash, linewidth=0.9, label=name)
        ax.set(xscale="log", xlabel="learning rate", title=title, ylim=(0, 100))
    axes[0].set_ylabel("AVG on dev questions (%)")
    legend_below(fig, columns=4)
    return fig
