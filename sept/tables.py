"""Tables of the paper, measured above published, as CSV, HTML and LaTeX."""

from __future__ import annotations

import html as html_escape
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from . import published
from .figures import TINT, checked, root_of
from .figures_scores import ROW_COLUMNS, gain_of, reference_of
from .provenance import write_text

PAPER_METRICS = ["pass@1", "pass@8", "pass@32", "AVG"]
Body = list[tuple[str, str, str, list[str]]]
"""Lines of a table: source (measured or published), model, method, cells."""


def save_table(
    number: int, table: pd.DataFrame, out_dir: str | Path, measured: str = "embedded base"
) -> str:
    """Write table_N.csv, .html and .tex of Table 1 to 12 to `out_dir`; returns the HTML.

    Tables 1, 2, 4, 5, 6: columns as in `figure_1c`, optionally with delta, delta_lo and delta_hi (a paired
    difference to the first baseline; without them the difference of the rounded values is shown) and with
    `model`, where there are several. Table 3: the same, the metrics being tasks. Tables 7 to 12: the
    columns of `evaluation.detail_table`, optionally with `model`.
    """
    if number >= 7:
        blocks = _detail(number, table, measured)
    elif number == 3:
        tasks = list(table["metric"].unique())
        printed = published.tables().query("table == 3")
        rows = [
            ("published", str(m), str(method), [f"{v:.1f}" for v in part["value"]])
            for (m, method), part in printed.groupby(["model", "method"], sort=False)
        ]
        blocks = [
            (tasks, _measured(3, table, measured, tasks)),
            (list(printed["benchmark"].unique()), rows),
        ]
    else:
        body = _measured(number, table, measured, PAPER_METRICS) + _printed(number)
        blocks = [(PAPER_METRICS, body)]
    folder, name = Path(out_dir), f"table_{number}"
    html = "\n".join(_html(body, metrics) for metrics, body in blocks)
    write_text(folder / f"{name}.html", html)
    write_text(folder / f"{name}.tex", "\n".join(_latex(body, metrics) for metrics, body in blocks))
    write_text(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    return html


def _measured(number: int, table: pd.DataFrame, measured: str, metrics: Sequence[str]) -> Body:
    what = f"table_{number}"
    checked(table, what, ROW_COLUMNS)
    body: Body = []
    table = table if "model" in table else table.assign(model=measured)
    for model, part in table.groupby("model", sort=False):
        reference = reference_of(part, what)
        for method in part["method"].unique():
            rows = part[part["method"] == method].set_index("metric")
            cells = [
                _cell(rows.loc[m], gain_of(part, method, m, reference), method) if m in rows.index else "-"
                for m in metrics
            ]
            body.append(("measured", str(model), method, cells))
    return body


def _printed(number: int) -> Body:
    body: Body = []
    printed = published.tables().query("table == @number and benchmark == 'mean'")
    printed = printed.assign(lo=printed["value"], hi=printed["value"])
    for (model, data), part in printed.groupby(["model", "train_data"], sort=False):
        base = printed[(printed["model"] == model) & (printed["train_data"] == "none")]
        rows = part if data == "none" else pd.concat([base, part])
        for method, own in part.groupby("method", sort=False):
            shown = str(method)
            if number in (2, 6) and data != "none":
                shown += f" ({data.replace('-', ' minus ')})"
            cells = [
                _cell(r, gain_of(rows, str(method), r["metric"], "Baseline"), shown)
                for _, r in own.iterrows()
            ]
            body.append(("published", str(model), shown, cells))
    return body


def _detail(number: int, table: pd.DataFrame, measured: str) -> list[tuple[list[str], Body]]:
    """Benchmark by benchmark: the measured families, then the published rows."""
    checked(table, f"table_{number}", ("method", "family", *ROW_COLUMNS[1:]))
    table = table if "model" in table else table.assign(model=measured)
    printed = published.tables().query("table == @number and benchmark != 'mean'")
    printed = printed.assign(family=printed["benchmark"], lo=printed["value"], hi=printed["value"])
    if number in (8, 12):
        data = " (" + printed["train_data"].str.replace("-", " minus ") + ")"
        printed = printed.assign(method=printed["method"] + data.where(printed["train_data"] != "none", ""))
    metrics = [str(m) for m in printed["metric"].unique()]
    blocks = []
    for source, part in (("measured", table), ("published", printed)):
        body: Body = []
        for (model, method, family), rows in part.groupby(["model", "method", "family"], sort=False):
            rows = rows.set_index("metric")
            cells = [_value(rows.loc[m], str(method)) if m in rows.index else "-" for m in metrics]
            body.append((source, str(model), f"{method}, {family}", cells))
        blocks.append((metrics, body))
    return blocks


def _value(row: pd.Series, method: str) -> str:
    text = f"{row['value']:+.1f}" if " minus " in method else f"{row['value']:.1f}"
    return text + (f" [{row['lo']:.1f}, {row['hi']:.1f}]" if row["hi"] > row["lo"] else "")


def _cell(row: pd.Series, gain: float, method: str) -> str:
    text = _value(row, method)
    if " minus " in method or root_of(method) == "Baseline":
        return text
    if pd.notna(row.get("delta")):
        inside = f"{row['delta']:+.1f}"
        if pd.notna(row.get("delta_lo")) and pd.notna(row.get("delta_hi")):
            inside += f" [{row['delta_lo']:+.1f}, {row['delta_hi']:+.1f}]"
        return f"{text} ({inside})"
    return f"{text} ({gain:+.1f})"


def _html(body: Body, metrics: Sequence[str]) -> str:
    names = ("", "model", "method", *metrics)
    head = "".join(f"<th>{html_escape.escape(name)}</th>" for name in names)
    lines = ["<table>", f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for source, model, method, cells in body:
        tint = f' style="background:{TINT};color:black"' if source == "published" else ""
        cols = "".join(f"<td>{html_escape.escape(c)}</td>" for c in (source, model, method, *cells))
        lines.append(f"<tr{tint}>{cols}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>", ""])


def _latex(body: Body, metrics: Sequence[str]) -> str:
    words = {"\\": "textbackslash", "^": "textasciicircum", "~": "textasciitilde"}
    special = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {c: f"\\{w}{{}}" for c, w in words.items()})
    lines = [r"\begin{tabular}{lll" + "r" * len(metrics) + "}", r"\toprule"]
    lines += [" & ".join(name.translate(special) for name in ("", "model", "method", *metrics)) + r" \\"]
    block = ("", "")
    for source, model, method, cells in body:
        if (source, model) != block:
            lines.append(r"\midrule")
        first = (source, model) if (source, model) != block else ("", "")
        block = (source, model)
        lines.append(" & ".join(c.translate(special) for c in (*first, method, *cells)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
