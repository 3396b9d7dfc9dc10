"""The claims table as a picture: interval, threshold and verdict of every claim."""

from __future__ import annotations

import textwrap

import pandas as pd
from matplotlib.figure import Figure

from .figures import COLOURS, PAGE, TINT, checked, new_figure

VERDICTS = {
    "holds here": ("o", COLOURS["SePT"]),
    "does not hold here": ("X", COLOURS["Offline"]),
    "undecided": ("D", COLOURS["Baseline"]),
    "not measured": ("", COLOURS["Baseline"]),
}


def figure_claims(table: pd.DataFrame) -> Figure:
    """One line per claim: text, published value, measured value with interval and threshold, verdict.

    Columns: text, rule, published, value, lo, hi, verdict (`claims.claims_table`; empty numbers are allowed).
    """
    checked(table, "figure_claims", ("text", "rule", "verdict"), ("published", "value", "lo", "hi"))
    fig = new_figure(PAGE, 0.8 + 0.36 * len(table))
    ax = fig.subplots()
    ax.set_ylim(len(table) - 0.4, -1.2)
    ax.axvspan(-58, -38, color=TINT, linewidth=0)
    reach = 30.0
    for y, row in enumerate(table.to_dict("records")):
        marker, colour = VERDICTS[row["verdict"]]
        ax.text(-142, y, textwrap.fill(row["text"], 38), va="center", fontsize=7.5)
        printed = "-" if pd.isna(row["published"]) else f"{row['published']:+.1f}"
        ax.text(-48, y, printed, va="center", ha="center")
        kind, threshold = row["rule"].split()
        for t in (float(threshold),) if kind != "within" else (-float(threshold), float(threshold)):
            ax.plot([t, t], [y - 0.35, y + 0.35], color="#999999", linewidth=0.8)
        if marker:
            # What leaves the axis is an arrow at its edge; the numbers beside it are the true ones.
            low, high, value = (min(max(float(row[c]), -reach), reach) for c in ("lo", "hi", "value"))
            ax.plot([low, high], [y, y], color=colour, linewidth=1.6)
            beyond = abs(row["value"]) > reach
            ax.plot(value, y, "<>"[value > 0] if beyond else marker, color=colour, markersize=5)
            shown = f"{row['value']:+.1f} [{row['lo']:.1f}, {row['hi']:.1f}]"
            if 0 < abs(row["value"]) < 0.005:
                shown = f"{row['value']:.0e}"
            ax.text(reach + 3, y, shown, va="center", fontsize=7)
        ax.text(reach + 40, y, row["verdict"], va="center", color=colour, fontsize=8, fontweight="bold")
    for x, text in ((-142, "claim"), (-48, "published"), (0, "measured, 95%"), (reach + 40, "verdict")):
        place = "left" if x in (-142, reach + 40) else "center"
        ax.text(x, -0.95, text, ha=place, va="center", fontweight="bold", fontsize=8)
    ax.set_xlim(-142, reach + 74)
    ax.set_xticks([-30, -15, 0, 15, 30])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_xlabel("points of score (or what the statistic says)", fontsize=7, x=0.73)
    return fig
