"""Drawings of the measured map: gains over two axes, base by base, and against what foretells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .figures import COLOURS, MARKERS, PAGE, SPARE, checked, legend_below, new_figure, panels

STARTS = {"F": SPARE[0], "small": SPARE[1], "nothing": SPARE[2]}
"""Colours of bases by where they started."""


def figure_regime(table: pd.DataFrame, x: str, y: str, columns: int = 2) -> Figure:
    """One map per `panel`: purple above 0, orange below, the value and its interval in every cell.

    Columns: panel, x, y, value, lo, hi, bases (how many a cell averages). x and y: what the axes are.
    Cells without a base stay grey. Bold is an interval clear of 0; a black line is where the value passes 0,
    drawn only on a full grid, between neighbouring cells of different sign.
    """
    checked(table, "figure_regime", ("panel", "x", "y", "value", "lo", "hi", "bases"))
    names, xs, ys = list(dict.fromkeys(table["panel"])), sorted(set(table["x"])), sorted(set(table["y"]))
    fig, axes = panels(len(names), columns, base=0.3, each=0.75 + 0.42 * len(ys))
    reach = max(1.0, float(table["value"].abs().max()))
    drawn = None
    for ax, name in zip(axes, names, strict=True):
        rows = table[table["panel"] == name]
        grid = rows.pivot(index="y", columns="x", values="value").reindex(index=ys, columns=xs).to_numpy()
        drawn = ax.imshow(grid, cmap="PuOr", vmin=-reach, vmax=reach, aspect="auto", origin="lower")
        ax.set_facecolor("#DDDDDD")
        for row in rows.itertuples():
            light = "white" if abs(row.value) > 0.6 * reach else "black"
            clear = "bold" if row.lo > 0 or row.hi < 0 else "normal"
            at = (xs.index(row.x), ys.index(row.y))
            ax.text(
                *at,
                f"{row.value:+.0f}",
                ha="center",
                va="bottom",
                color=light,
                fontweight=clear,
                fontsize=8,
            )
            ax.text(*at, f"{row.lo:+.0f} … {row.hi:+.0f}", ha="center", va="top", color=light, fontsize=5.5)
        if np.isfinite(grid).all():
            for i, j in np.ndindex(grid.shape):
                if j + 1 < len(xs) and grid[i, j] * grid[i, j + 1] < 0:
                    ax.plot([j + 0.5] * 2, [i - 0.5, i + 0.5], color="black", linewidth=2)
                if i + 1 < len(ys) and grid[i, j] * grid[i + 1, j] < 0:
                    ax.plot([j - 0.5, j + 0.5], [i + 0.5] * 2, color="black", linewidth=2)
        ax.set_xticks(range(len(xs)), [f"{v:,g}" for v in xs])
        ax.set_yticks(range(len(ys)), [f"{v:,g}" for v in ys])
        ax.set(title=name, xlabel=x, ylabel=y)
        ax.grid(False)
    assert drawn is not None
    fig.colorbar(drawn, ax=axes, label="gain (points)", shrink=0.8, aspect=30)
    return fig


def figure_bases(table: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Every base a row, sorted by SePT's first metric: each arm's gain with its interval, a panel per metric.

    Columns: base, arm, metric, value, lo, hi.
    """
    checked(table, "figure_bases", ("base", "arm", "metric", "value", "lo", "hi"))
    first = table[(table["arm"] == "SePT") & (table["metric"] == metrics[0])].sort_values("value")
    order = list(first["base"])
    fig = new_figure(PAGE, 0.9 + 0.2 * len(order))
    axes = fig.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        for number, (arm, rows) in enumerate(table[table["metric"] == metric].groupby("arm", sort=False)):
            y = np.array([order.index(b) for b in rows["base"]]) + 0.22 * (1 - number)
            error = [rows["value"] - rows["lo"], rows["hi"] - rows["value"]]
            style = {"color": COLOURS[str(arm)], "marker": MARKERS[number], "label": arm}
            ax.errorbar(
                rows["value"], y, xerr=error, linestyle="none", markersize=3, elinewidth=0.8, **style
            )
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set(title=metric, xlabel="gain (points)", ylim=(-0.6, len(order) - 0.4))
        ax.set_yticks(range(len(order)), order, fontsize=6)
        ax.grid(axis="y", visible=False)
    legend_below(fig, columns=3)
    return fig


def figure_foretold(table: pd.DataFrame, ylabel: str, columns: int = 4) -> Figure:
    """One panel per `panel`: a point per base, coloured by where it started; the dashed line is a gain of 0.

    Columns: panel, start, x, value, lo, hi. A panel's name is its x axis's.
    """
    checked(table, "figure_foretold", ("panel", "start", "x", "value", "lo", "hi"))
    names = list(dict.fromkeys(table["panel"]))
    fig, axes = panels(len(names), columns, base=0.35, each=1.75)
    for number, (ax, name) in enumerate(zip(axes, names, strict=True)):
        for marker, (start, colour) in zip(MARKERS, STARTS.items(), strict=False):
            rows = table[(table["panel"] == name) & (table["start"] == start)]
            error = [rows["value"] - rows["lo"], rows["hi"] - rows["value"]]
            style: dict[str, Any] = {"color": colour, "marker": marker, "label": f"start: {start}"}
            ax.errorbar(
                rows["x"],
                rows["value"],
                yerr=error,
                linestyle="none",
                markersize=3.5,
                elinewidth=0.6,
                **style,
            )
        ax.axhline(0, color="#444444", linestyle="--", linewidth=0.8)
        ax.set(xlabel=name, ylabel="" if number % columns else ylabel)
    legend_below(fig, columns=3)
    return fig


def figure_predicted(table: pd.DataFrame) -> Figure:
    """Measured gain over the prediction for a base that was held out, and the errors beside a constant guess's.

    Columns: base, start, value, predicted, constant (`regime.held_out`).
    """
    checked(table, "figure_predicted", ("base", "start", "value", "predicted", "constant"))
    fig = new_figure(PAGE, 2.8)
    left, right = fig.subplots(1, 2)
    both = table[["value", "predicted"]]
    ends = [both.min().min() - 3, both.max().max() + 3]
    left.plot(ends, ends, color="#444444", linestyle="--", linewidth=0.8)
    for marker, (start, colour) in zip(MARKERS, STARTS.items(), strict=False):
        rows = table[table["start"] == start]
        style = {"color": colour, "marker": marker, "label": f"start: {start}"}
        left.plot(rows["predicted"], rows["value"], linestyle="none", **style)
        errors = [(rows[name] - rows["value"]).abs() for name in ("constant", "predicted")]
        right.plot(*errors, linestyle="none", **style)
    reach = float(max((table[name] - table["value"]).abs().max() for name in ("constant", "predicted"))) + 2
    right.plot([0, reach], [0, reach], color="#444444", linestyle="--", linewidth=0.8)
    left.set(xlabel="predicted gain (points of AVG)", ylabel="measured gain", title="bases held out")
    right.set(
        xlabel="error of a constant guess (points)",
        ylabel="error of the predictor",
        title="below the line: better",
    )
    legend_below(fig, columns=3)
    return fig
