"""General abilities beside the paper's Table 3."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from . import published
from .figures import PAGE, checked, new_figure, titled
from .figures_scores import draw_bars

HEADLINE = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc")
"""The first of these that a task has stands for it."""


def figure_general(table: pd.DataFrame, measured: str = "embedded base") -> Figure:
    """Bars of the untrained and the trained model, task by task, measured | published.

    Columns: those of `general.rows_of`; parts of groups are left out, and a task is shown by one metric.
    """
    checked(table, "figure_general", ("task", "metric", "base", "trained", "delta"))
    rows = table[table["group"].isna() | (table["group"] == "")]
    rows = rows.assign(rank=rows["metric"].map({m: i for i, m in enumerate(HEADLINE)}))
    rows = rows.dropna(subset=["rank"]).sort_values("rank", kind="stable").drop_duplicates("task")
    rows["metric"] = rows["task"].str.removeprefix("leaderboard_").str.replace("_", " ")
    parts = []
    for method, who in (("Baseline", "base"), ("SePT", "trained")):
        named = {f"{who}{end}": name for end, name in (("", "value"), ("_lo", "lo"), ("_hi", "hi"))}
        parts.append(
            rows.rename(columns=named)[["metric", "value", "lo", "hi", "delta"]].assign(method=method)
        )
    fig = new_figure(PAGE, 4.8)
    top, bottom = fig.subfigures(2, 1, squeeze=False).ravel()
    if not rows["task"].str.startswith("leaderboard_").all():
        measured += " (local tasks, not the paper's)"
    draw_bars(titled(top, "measured", measured), pd.concat(parts), list(rows.sort_index()["metric"]))
    printed = published.tables().query("table == 3").assign(metric=lambda t: t["benchmark"])
    printed["method"] = printed["method"].replace("Base", "Baseline")
    printed = printed.assign(lo=printed["value"], hi=printed["value"])
    draw_bars(
        titled(bottom, "published", f"{printed['model'].iloc[0]}, Table 3 (no intervals)"),
        printed,
        list(printed["benchmark"].unique()),
    )
    return fig
