"""Tables of the paper, measured above published, as CSV, HTML and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
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
    what = f"table_{number}"
    checked(table, what, (*ROW_COLUMNS, *(["family"] if number >= 7 else [])))
    csv = table.to_csv(index=False, lineterminator="\n")
    table = table if "model" in table else table.assign(model=measured)
    printed = published.tables().query("table == @number").rename(columns={"benchmark": "family"})
    printed = printed.assign(lo=printed["value"], hi=printed["value"])
    if number in (2, 6, 8, 12):  # two training sets, or their difference
        data = printed["train_data"].str.replace("-", " minus ")
        printed["method"] += (" (" + data + ")").where(data != "none", "")
    if number in (2, 6):  # set by set
        printed = pd.concat(rows for _, rows in printed.groupby(["model", "train_data"], sort=False))
    if number >= 7:
        table, printed = (t.assign(method=t["method"] + ", " + t["family"]) for t in (table, printed))
    if number == 3:
        printed["metric"] = printed["family"]
    if number < 7 and number != 3:
        both = _body("measured", table, PAPER_METRICS, what) + _body(
            "published", printed, PAPER_METRICS, what
        )
        blocks = [(both, PAPER_METRICS)]
    else:
        known = [str(m) for m in printed["metric"].unique()]
        own, gains = ([str(m) for m in table["metric"].unique()], what) if number == 3 else (known, "")
        blocks = [(_body("measured", table, own, gains), own), (_body("published", printed, known), known)]
    html = "\n".join(_html(*block) for block in blocks)
    write_text(Path(out_dir, f"{what}.html"), html)
    write_text(Path(out_dir, f"{what}.tex"), "\n".join(_latex(*block) for block in blocks))
    write_text(Path(out_dir, f"{what}.csv"), csv)
    return html


def _body(source: str, table: pd.DataFrame, metrics: Sequence[str], gains: str = "") -> Body:
    """gains: the artefact's name where cells show gains over the model's baseline."""
    body: Body = []
    for model, part in table.groupby("model", sort=False):
        reference = reference_of(part, gains) if gains else ""
        for name, rows in part.groupby("method", sort=False):
            by_metric, cells, method = rows.set_index("metric"), [], str(name)
            for metric in metrics:
                row = by_metric.loc[metric] if metric in by_metric.index else None
                gain = gain_of(part, method, metric, reference) if gains else None
                cells.append("-" if row is None else _cell(row, gain, method))
            body.append((source, str(model), method, cells))
    return body


def _cell(row: pd.Series, gain: float | None, method: str) -> str:
    """Value, interval and, unless gain is None or the row is a baseline or a difference, the gain."""
    apart = " minus " in method
    text = f"{row['value']:+.1f}" if apart else f"{row['value']:.1f}"
    text += f" [{row['lo']:.1f}, {row['hi']:.1f}]" if row["hi"] > row["lo"] else ""
    if apart or gain is None or root_of(method) == "Baseline":
        return text
    if pd.isna(row.get("delta")):
        return f"{text} ({gain:+.1f})"
    inside = f"{row['delta']:+.1f}"
    if pd.notna(row.get("delta_lo")) and pd.notna(row.get("delta_hi")):
        inside += f" [{row['delta_lo']:+.1f}, {row['delta_hi']:+.1f}]"
    return f"{text} ({inside})"


def _html(body: Body, metrics: Sequence[str]) -> str:
    names = ("", "model", "method", *metrics)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = ["<table>", f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for source, model, method, cells in body:
        tint = f' style="background:{TINT};color:black"' if source == "published" else ""
        cols = "".join(f"<td>{escape(c)}</td>" for c in (source, model, method, *cells))
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
