"""Drawing of the experiments on causes: one panel an experiment, gains with intervals."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from .figures import COLOURS, checked, legend_below, panels

# Lightest for one answer, the summary in front.
_LOOKS = {"pass@1": ("#56B4E9", "o"), "pass@32": ("#E69F00", "^"), "AVG": (COLOURS["Base@1"], "D")}


def figure_causes(table: pd.DataFrame, measured: str = "embedded base") -> Figure:
    """Gain over the untrained model at its best temperature, one panel an experiment, arms from top to bottom.

    Columns: panel (its title), arm, metric, value, lo, hi, seeds; points of a score in percent. An arm may
    lack metrics; with one seed, whose interval covers the questions only, its markers are hollow.
    `measured` names the model.
    """
    checked(table, "figure_causes", ("panel", "arm", "metric", "value", "lo", "hi", "seeds"))
    groups = list(table.groupby("panel", sort=False))
    most = max(rows["arm"].nunique() for _, rows in groups)
    fig, axes = panels(len(groups), 2, 0.9, 0.35 + 0.22 * most)
    low, high = table["lo"].min(), table["hi"].max()
    for ax, (title, rows) in zip(axes, groups, strict=True):
        arms = list(rows["arm"].unique())
        for metric, (colour, marker) in _LOOKS.items():
            for alone in (False, True):
                part = rows[(rows["metric"] == metric) & ((rows["seeds"] == 1) == alone)]
                place = [arms.index(a) + 0.24 * (list(_LOOKS).index(metric) - 1) for a in part["arm"]]
                error = [part["value"] - part["lo"], part["hi"] - part["value"]]
                style: dict[str, Any] = {
                    "color": colour,
                    "marker": marker,
                    "markersize": 3.5,
                    "linestyle": "none",
                }
                style |= {"markerfacecolor": "white"} if alone else {"label": metric}
                if len(part) or not alone:
                    ax.errorbar(part["value"], place, xerr=error, elinewidth=1.0, **style)
        ax.axvline(0, color="#777777", linewidth=0.8, zorder=0)
        ax.set_yticks(range(len(arms)), arms)
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        ax.set_title(title, loc="left", fontsize=8.5, fontweight="bold")
        ax.tick_params(axis="y", length=0, labelsize=8)
        ax.grid(axis="y", visible=False)
    for ax in axes[-2:]:
        ax.set_xlabel("gain over the base at its best temperature", fontsize=8)
    fig.suptitle(f"measured: {measured}", fontsize=9, fontweight="bold", x=0.012, ha="left")
    legend_below(fig, columns=3)
    return fig
