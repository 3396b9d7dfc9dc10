"""Drawings of when a model helps itself: maps of gain with the contour where it is zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .figures import COLOURS, SPARE, checked, legend_below, panels


def figure_maps(
    table: pd.DataFrame,
    labels: Mapping[str, Sequence[str]],
    unit: str,
    points: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """One map per `panel`: value over x and y, purple above 0, orange below, black where it is 0.

    Columns: panel, x, y, value, on a full grid in each panel. labels: panel -> x label, y label; unit: what the
    colours mean; points: panel -> x, y of a cross.
    """
    checked(table, "figure_maps", ("panel", "x", "y", "value"))
    names = list(dict.fromkeys(table["panel"]))
    fig, axes = panels(len(names), 2, base=0.2, each=2.5)
    reach = float(table["value"].abs().max())
    drawn: Any = None
    for ax, name in zip(axes, names, strict=True):
        grid = table[table["panel"] == name].pivot(index="y", columns="x", values="value")
        x, y, value = grid.columns.to_numpy(), grid.index.to_numpy(), grid.to_numpy()
        levels = np.linspace(-reach, reach, 25)
        drawn = ax.contourf(x, y, value, levels, cmap="PuOr")
        drawn.set_edgecolor("face")  # else viewers of the PDF show seams
        if value.min() < 0 < value.max():
            ax.contour(x, y, value, [0.0], colors="black", linewidths=1.4)
        for at in (points or {}).items():
            if at[0] == name:
                ax.plot(*at[1], "x", color="black", markersize=7, markeredgewidth=1.8)
        ax.set(title=name, xlabel=labels[name][0], ylabel=labels[name][1])
        ax.grid(False)
    bar = fig.colorbar(drawn, ax=axes, label=unit, shrink=0.8, aspect=30)
    bar.ax.axhline(0, color="black", linewidth=1.4)
    return fig


def figure_points(
    table: pd.DataFrame, labels: Mapping[str, Sequence[str]], diagonal: Sequence[str] = ()
) -> Figure:
    """One panel of points per `panel`, a point per base. diagonal: panels with the line of equal values.

    Columns: panel, base, x, value. labels: panel -> x label, y label. Bases that go on from F are discs, models
    stopped early crosses, small ones diamonds (by the beginning of their names).
    """
    checked(table, "figure_points", ("panel", "base", "x", "value"))
    names = list(dict.fromkeys(table["panel"]))
    fig, axes = panels(len(names), 2, base=0.4, each=2.4)
    looks = {"F": ("o", COLOURS["SePT"]), "nothing": ("X", COLOURS["Offline"]), "small": ("D", SPARE[1])}
    shown = {"F": "goes on from F", "nothing": "stopped early", "small": "smaller model"}
    kind = table["base"].str.split("-").str[0]
    for ax, name in zip(axes, names, strict=True):
        own = table["panel"] == name
        for start, (marker, colour) in looks.items():
            rows = table[own & (kind == start)]
            if len(rows):
                look: dict[str, Any] = {
                    "color": colour,
                    "label": shown[start],
                    "markersize": 5,
                    "alpha": 0.85,
                }
                ax.plot(rows["x"], rows["value"], marker, **look)
        if name in diagonal:
            ends = [0.0, float(table.loc[own, ["x", "value"]].max().max())]
            ax.plot(ends, ends, "--", color="#444444", linewidth=1, zorder=1)
        else:
            ax.axhline(0, color="#444444", linewidth=0.8, zorder=1)
        ax.set(title=name, xlabel=labels[name][0], ylabel=labels[name][1])
    legend_below(fig, columns=3)
    return fig
