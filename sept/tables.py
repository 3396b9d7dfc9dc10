"""Tables of the paper, measured above published, as HTML and as LaTeX."""

from __future__ import annotations

import html as html_escape
from collections.abc import Sequence

import pandas as pd

from . import published
from .figures import ROW_COLUMNS, TINT, checked, gain_of, reference_of, root_of

PAPER_METRICS = ["pass@1", "pass@8", "pass@32", "AVG"]


def paper_table(number: int, table: pd.DataFrame, measured: str = "embedded base") -> tuple[str, str]:
    """Table 1, 4, 5 or 6 of the paper as (HTML, LaTeX): the measured rows above the published ones.

    Columns as in `figure_1c`, optionally with delta, delta_lo and delta_hi, a paired difference to
    the first baseline; without them the difference of the rounded values is shown.
    """
    what = f"table_{number}"
    checked(table, what, ROW_COLUMNS)
    reference = reference_of(table, what)
    body: list[tuple[str, str, str, list[str]]] = []  # source, model, method, cells
    for method in table["method"].unique():
        rows = table[table["method"] == method].set_index("metric")
        cells = [
            _cell(rows.loc[m], gain_of(table, method, m, reference), method) if m in rows.index else "-"
            for m in PAPER_METRICS
        ]
        body.append(("measured", measured, method, cells))
    printed = published.tables().query("table == @number and benchmark == 'mean'")
    for (model, data), part in printed.groupby(["model", "train_data"], sort=False):
        rows = part if data == "none" else pd.concat([base_of(printed, model), part])
        rows = rows.assign(lo=rows["value"], hi=rows["value"])
        for method, own in part.assign(lo=part["value"], hi=part["value"]).groupby("method", sort=False):
            cells = [
                _cell(r, gain_of(rows, str(method), r["metric"], "Baseline"), str(method))
                for _, r in own.iterrows()
            ]
            shown = f"{method} ({data})" if number == 6 and data != "none" else str(method)
            body.append(("published", str(model), shown, cells))
    return _html(body, PAPER_METRICS), _latex(body, PAPER_METRICS)


def base_of(printed: pd.DataFrame, model: str) -> pd.DataFrame:
    """The published baseline rows of a model."""
    return printed[(printed["model"] == model) & (printed["train_data"] == "none")]


def _cell(row: pd.Series, gain: float, method: str) -> str:
    text = f"{row['value']:.1f}"
    if row["hi"] > row["lo"]:
        text += f" [{row['lo']:.1f}, {row['hi']:.1f}]"
    if root_of(method) == "Baseline":
        return text
    if pd.notna(row.get("delta")):
        inside = f"{row['delta']:+.1f}"
        if pd.notna(row.get("delta_lo")) and pd.notna(row.get("delta_hi")):
            inside += f" [{row['delta_lo']:+.1f}, {row['delta_hi']:+.1f}]"
        return f"{text} ({inside})"
    return f"{text} ({gain:+.1f})"


def _html(body: list[tuple[str, str, str, list[str]]], metrics: Sequence[str]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("", "model", "method", *metrics))
    lines = ["<table>", f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for source, model, method, cells in body:
        tint = f' style="background:{TINT};color:black"' if source == "published" else ""
        cols = "".join(f"<td>{html_escape.escape(c)}</td>" for c in (source, model, method, *cells))
        lines.append(f"<tr{tint}>{cols}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>", ""])


def _latex(body: list[tuple[str, str, str, list[str]]], metrics: Sequence[str]) -> str:
    special = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"})
    lines = [r"\begin{tabular}{lll" + "r" * len(metrics) + "}", r"\toprule"]
    lines += [" & ".join(["", "model", "method", *metrics]) + r" \\"]
    block = ("", "")
    for source, model, method, cells in body:
        if (source, model) != block:
            lines.append(r"\midrule")
        first = (source, model) if (source, model) != block else ("", "")
        block = (source, model)
        lines.append(" & ".join(c.translate(special) for c in (*first, method, *cells)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
