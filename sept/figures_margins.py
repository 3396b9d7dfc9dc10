"""Drawings of the theorem on language models: panels of lines with intervals and what the theory says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from .figures import COLOURS, MARKERS, SPARE, band, checked, legend_below, panels, root_of


def figure_lines(
    table: pd.DataFrame,
    labels: Mapping[str, Sequence[str]],
    theory: Mapping[str, Sequence[Sequence[float]]] | None = None,
    log: Sequence[str] = (),
    columns: int = 3,
) -> Figure:
    """One panel per `panel`, one line per `series` with its interval where lo and hi are given.

    Columns: panel, series, x, value, lo, hi (lo and hi may be empty). labels: panel -> x label, y label;
    theory: panel -> x values, y values of a dashed line; log: panels whose x axis is logarithmic.
    """
    checked(table, "figure_lines", ("panel", "series", "x", "value"), holed=("lo", "hi"))
    table = table.astype({"lo": float, "hi": float})
    names = list(dict.fromkeys(table["panel"]))
    fig, axes = panels(len(names), columns, base=0.45, each=2.2)
    order = list(dict.fromkeys(table["series"]))
    spare = cycle(SPARE)
    colours = {s: COLOURS[root_of(s)] if root_of(s) else next(spare) for s in order}
    for ax, name in zip(axes, names, strict=True):
        for number, series in enumerate(order):
            rows = table[(table["panel"] == name) & (table["series"] == series)].sort_values("x")
            if rows.empty:
                continue
            colour = colours[series]
            known = rows.dropna(subset=["lo", "hi"])
            if len(known) > 1:
                band(ax, known, "x", colour)
            elif len(known) == 1:
                ax.plot([known["x"], known["x"]], [known["lo"], known["hi"]], color=colour)
            ax.plot(rows["x"], rows["value"], MARKERS[number % 8] + "-", color=colour, label=series)
        if theory and name in theory:
            ax.plot(*theory[name], "--", color="#444444", linewidth=1, label="theory", zorder=1)
        if name in log:
            ax.set_xscale("log")
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set(title=name, xlabel=labels[name][0], ylabel=labels[name][1])
    legend_below(fig, columns=4 if max(map(len, order)) < 16 else 3)
    return fig
