"""Drawings of the theorem on language models: panels of lines with intervals and what the theory says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from .figures import COLOURS, PAGE, band, checked, legend_below, new_figure, root_of

_SPARE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#7F7F7F")
_MARKERS = "osD^vPX*"


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
    checked(table, "figure_lines", ("panel", "series", "x", "value"))
    for column in ("lo", "hi"):
        if column not in table:
            raise ValueError(f"figure_lines: column {column!r} is missing")
    table = table.astype({"lo": float, "hi": float})
    names = list(dict.fromkeys(table["panel"]))
    columns = min(columns, len(names))
    lines = -(-len(names) // columns)
    fig = new_figure(PAGE, 0.45 + 2.2 * lines)
    axes = fig.subplots(lines, columns, squeeze=False).ravel()
    order = list(dict.fromkeys(table["series"]))
    named = {s: COLOURS[root_of(s)] for s in order if root_of(s)}
    free = iter([c for c in _SPARE if c not in named.values()] * len(order))
    colours = {s: named.get(s) or next(free) for s in order}
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(axes, names, strict=False):
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
            ax.plot(rows["x"], rows["value"], _MARKERS[number % 8] + "-", color=colour, label=series)
        for x, y in [theory[name]] if theory and name in theory else []:
            ax.plot(x, y, "--", color="#444444", linewidth=1, label="theory", zorder=1)
        if name in log:
            ax.set_xscale("log")
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(name)
        ax.set_xlabel(labels[name][0])
        ax.set_ylabel(labels[name][1])
    legend_below(fig, columns=4 if max(map(len, order)) < 16 else 3)
    return fig
