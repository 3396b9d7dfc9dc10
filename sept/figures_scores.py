"""Drawings of scores: over decoding temperatures (Figures 1a, 6, 7) and as bars (Figure 1c)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MultipleLocator

from . import published
from .figures import DASHES, band, blocks, checked, legend_below, looks_of, note, root_of

# Figure 1a's colours and markers. The embedded families take the same six slots in order.
_SLOTS = list(
    zip(("#1F77B4", "#FF7F0E", "#2CA02C", "#D62728", "#9467BD", "#8C564B"), "os^DvP", strict=True)
)
_BENCHMARKS = ("MATH-500", "AMC-23", "Olympiad", "Minerva", "AIME-24", "AIME-25")
FAMILY_STYLE: dict[str, tuple[str, str]] = {
    **dict(zip(_BENCHMARKS, _SLOTS, strict=True)),
    **dict(zip(("add3", "sub3", "add4", "sub4", "add5", "sub5"), _SLOTS, strict=True)),
    "Mean": ("#000000", "X"),
}
_HATCHES = dict(zip(DASHES, ("", "////", "....", "xxxx"), strict=True))
ROW_COLUMNS = ("method", "metric", "value", "lo", "hi")
_SWEEP_COLUMNS = ("family", "temperature", "metric", "value", "lo", "hi")
_PAPER_MODEL, _PAPER_METRICS = "Qwen2.5-Math-7B", ["pass@1", "pass@32"]


def _ends(table: pd.DataFrame, artefact: str) -> list[str]:
    """`pass@1` and the table's largest `pass@k`; short profiles draw fewer samples than 32."""
    found = [str(m) for m in table["metric"].unique() if str(m).startswith("pass@")]
    if "pass@1" not in found:
        raise ValueError(f"{artefact}: column 'metric' holds no 'pass@1'")
    return ["pass@1", max(found, key=lambda metric: int(metric.removeprefix("pass@")))]


def _printed(
    figure: str, names: Iterable[str], panels: Sequence[str] = ("left", "right"), key: str = "family"
) -> pd.DataFrame:
    """Published curves in the layout of a measured table; without intervals, lo = hi = value."""
    parts = [published.curve(figure, panel, name) for panel in panels for name in names]
    columns = {"series": key, "x": "temperature", "y_metric": "metric", "y": "value"}
    return pd.concat(parts).rename(columns=columns).assign(lo=lambda f: f.value, hi=lambda f: f.value)


# ------------------------------------------------------------------------------------------ sweeps


def _temperature_axis(ax: Axes, metric: str, ylabel: bool, xlabel: bool = True) -> None:
    ax.set(title=metric, ylabel="score (%)" if ylabel else "")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MultipleLocator(0.5))
    if xlabel:
        ax.set_xlabel("decoding temperature")


def _sweep_panel(ax: Axes, rows: pd.DataFrame, metric: str) -> None:
    """Families thin, their mean thick, dashed and last, so that it lies on top."""
    rows = rows[rows["metric"] == metric]
    for index, family in enumerate(sorted(rows["family"].unique(), key=lambda f: f == "Mean")):
        line = rows[rows["family"] == family].sort_values("temperature")
        colour, marker = FAMILY_STYLE.get(family, _SLOTS[index % len(_SLOTS)])
        dash, width, size = ("--", 2.0, 4.5) if family == "Mean" else ("-", 0.9, 3)
        if family == "Mean":
            band(ax, line, "temperature", colour)
        style = {"color": colour, "marker": marker, "linestyle": dash, "label": family}
        ax.plot(line["temperature"], line["value"], linewidth=width, markersize=size, **style)


def figure_1a(table: pd.DataFrame, measured: str = "embedded base") -> Figure:
    """pass@1 and the largest pass@k of an untrained model against the decoding temperature, above the
    paper's own panels.

    Columns: family (one of them `Mean`), temperature, metric, value, lo, hi; scores in percent. `measured`
    names the model that was measured.
    """
    metrics = _ends(checked(table, "figure_1a", _SWEEP_COLUMNS), "figure_1a")
    fig, *parts = blocks(5.8, measured, f"{_PAPER_MODEL}, Figure 1a (no intervals)")
    tables = table, _printed("1a", (*_BENCHMARKS, "Mean"))
    for block, rows, shown in zip(parts, tables, (metrics, _PAPER_METRICS), strict=True):
        axes = block.subplots(1, 2)
        for ax, metric in zip(axes, shown, strict=True):
            _sweep_panel(ax, rows, metric)
            _temperature_axis(ax, metric, ylabel=ax is axes[0])
        legend_below(block, columns=7)
    return fig


def figure_7(table: pd.DataFrame) -> Figure:
    """Sweeps of untrained models, one a row: measured | published.

    Columns: model, family (one of them `Mean`), temperature, metric, value, lo, hi.
    """
    metrics = _ends(checked(table, "figure_7", ("model", *_SWEEP_COLUMNS)), "figure_7")
    printed = {}
    for row, model in enumerate(published.curves().query("figure == '7'")["model"].unique(), 1):
        sides = (f"row{row} left", f"row{row} right")
        printed[str(model)] = _printed("7", (*_BENCHMARKS, "Mean"), sides)
    measured = {str(m): rows for m, rows in table.groupby("model", sort=False)}
    height = 1.0 + 1.55 * max(len(printed), len(measured))
    fig, *parts = blocks(height, "untrained models", "untrained models", beside=True)
    for block, models, shown in zip(parts, (measured, printed), (metrics, _PAPER_METRICS), strict=True):
        axes = block.subplots(len(models), 2, squeeze=False)
        for line, (model, rows) in zip(axes, models.items(), strict=True):
            for ax, metric in zip(line, shown, strict=True):
                _sweep_panel(ax, rows, metric)
                _temperature_axis(ax, "", ylabel=False, xlabel=line[0] is axes[-1][0])
                ax.set_ylabel(f"{metric} (%)", fontsize=7, labelpad=1)
                ax.tick_params(labelsize=7)
            line[0].set_title(model, loc="left", fontweight="bold", fontsize=8)
        legend_below(block, columns=4)
    return fig


def figure_6(table: pd.DataFrame, measured: str = "embedded base") -> Figure:
    """Mean scores of trained models against the decoding temperature, measured | published.

    Columns: method (SePT, GRPO, Baseline, ...), temperature, metric, value, lo, hi.
    """
    checked(table, "figure_6", ("method", *_SWEEP_COLUMNS[1:]))
    metrics = _ends(table, "figure_6")
    fig, *parts = blocks(4.4, measured, f"{_PAPER_MODEL}, Figures 6 and 1a", beside=True)
    untrained = _printed("1a", ["Mean"], key="method").assign(method="Baseline")
    printed = pd.concat([untrained, _printed("6", ["SePT", "GRPO"], key="method")])
    for block, rows, shown in zip(parts, (table, printed), (metrics, _PAPER_METRICS), strict=True):
        axes = block.subplots(2, 1, sharex=True)
        for ax, metric in zip(axes, shown, strict=True):
            for method, look in looks_of(rows["method"].unique()).items():
                line = rows[(rows["method"] == method) & (rows["metric"] == metric)].sort_values(
                    "temperature"
                )
                band(ax, line, "temperature", look["color"])
                ax.plot(line["temperature"], line["value"], label=method, **look)
            _temperature_axis(ax, metric, ylabel=True, xlabel=ax is axes[-1])
        legend_below(block, columns=3)
    return fig


# -------------------------------------------------------------------------------------------- bars


def gain_of(rows: pd.DataFrame, method: str, metric: str, reference: str) -> float:
    """Difference of the one-decimal values, as the paper prints its gains."""
    value = rows.set_index(["method", "metric"])["value"].round(1)
    return float(value.get((method, metric), np.nan) - value.get((reference, metric), np.nan))


def reference_of(table: pd.DataFrame, artefact: str) -> str:
    """The baseline that gains refer to: the first one in the table."""
    for method in table["method"].unique():
        if root_of(method) == "Baseline":
            return method
    raise ValueError(f"{artefact}: column 'method' holds no 'Baseline'")


def draw_bars(block: SubFigure, table: pd.DataFrame, metrics: Sequence[str]) -> None:
    ax = block.subplots()
    looks = looks_of(table["method"].unique())
    reference = reference_of(table, "figure_1c")
    width = 0.84 / len(looks)
    for index, (method, look) in enumerate(looks.items()):
        rows = table[table["method"] == method].set_index("metric").reindex(list(metrics))
        x = np.arange(len(metrics)) + (index - (len(looks) - 1) / 2) * width
        error = np.stack([rows["value"] - rows["lo"], rows["hi"] - rows["value"]]).clip(min=0)
        style: dict[str, Any] = {"edgecolor": "white", "linewidth": 0, "hatch": _HATCHES[look["linestyle"]]}
        ax.bar(x, rows["value"], width * 0.92, color=look["color"], label=method, **style)
        if error[np.isfinite(error)].any():
            ax.errorbar(x, rows["value"], error, fmt="none", ecolor="black", elinewidth=0.8)
        for place, (metric, row) in zip(x, rows.iterrows(), strict=True):
            if pd.isna(row["value"]):
                continue
            paired = row.get("delta")
            gain = gain_of(table, method, str(metric), reference) if pd.isna(paired) else paired
            base = root_of(method) == "Baseline"
            text, weight = (f"{row['value']:.1f}", "normal") if base else (f"{gain:+.1f}", "bold")
            small: dict[str, Any] = {
                "ha": "center",
                "fontsize": 7,
                "color": "#333333",
                "fontweight": weight,
            }
            note(ax, text, (place, row["hi"]), (0, 1.5), **small)
    ax.set_xticks(range(len(metrics)), metrics)
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel("score (%)")
    ax.margins(y=0.1)
    gains = f"bold: gain over {reference}" if len(looks) > 1 else None
    legend_below(block, columns=3, title=gains)


def figure_1c(table: pd.DataFrame, measured: str = "embedded base") -> Figure:
    """Bars of each method, measured | published; baselines carry their value, others their gain.

    Columns: method, metric, value, lo, hi. Several baselines are allowed, told apart by hatching;
    gains refer to the first one in the table, as the paired `delta` where the table has one.
    """
    shown = _ends(checked(table, "figure_1c", ROW_COLUMNS), "figure_1c")
    shown += ["AVG"] * ("AVG" in set(table["metric"]))
    what, metrics = f"{_PAPER_MODEL}, Table 1 (no intervals)", [*_PAPER_METRICS, "AVG"]
    fig, top, bottom = blocks(5.0, measured, what, ratios=(1.25, 1))
    draw_bars(top, table, shown)
    rows = [
        {"method": method, "metric": m, "value": v, "lo": v, "hi": v}
        for method in ("Baseline", "SePT", "GRPO")
        for m, v in published.table_row(1, _PAPER_MODEL, method)[metrics].items()
    ]
    draw_bars(bottom, pd.DataFrame(rows), metrics)
    return fig
