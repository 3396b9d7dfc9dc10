"""Drawings: one style, one save call, one function per artefact of the paper.

Every drawing function takes a table (a DataFrame), draws only what the table and
`sept.published` hold, and returns a Figure. `save_figure` is the only way to write one: it puts
the table beside the drawing, so any figure can be drawn again without running anything.

Measured and published numbers are never on the same axes. They sit in two blocks, the published
one tinted, because they come from different models and are compared in shape, not in height.
"""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sept import published
from sept.config import SeptError
from sept.durable import writing

try:
    import matplotlib
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
except ImportError as error:
    raise ImportError("drawing needs matplotlib: pip install 'sept[notebooks]'") from error

COLUMN = 3.4  # inches, one column of a two-column page
PAGE = 6.9  # inches, the full text width

# Okabe-Ito, told apart with any colour vision; a method has the same colour in every figure.
COLOURS = {
    "Baseline": "#7F7F7F",
    "SePT": "#0072B2",
    "GRPO": "#E69F00",
    "EM-FT": "#009E73",
    "Offline": "#D55E00",
    "Coupled": "#CC79A7",
    "Inverted": "#56B4E9",
    "Base@1": "#000000",
}
MARKERS = dict(zip(COLOURS, "osD^vPX*", strict=True))
# Names for the same arm, as the paper and the tables print them.
_ALIASES = {"SePT (Offline)": "Offline", "Coupling": "Coupled", "Decoupling": "SePT"}

# Figure 1a's colours and markers. The embedded families take the same six slots in order.
_SLOTS = [
    ("#1F77B4", "o"),
    ("#FF7F0E", "s"),
    ("#2CA02C", "^"),
    ("#D62728", "D"),
    ("#9467BD", "v"),
    ("#8C564B", "P"),
]
FAMILY_STYLE: dict[str, tuple[str, str]] = {
    **dict(zip(("MATH-500", "AMC-23", "Olympiad", "Minerva", "AIME-24", "AIME-25"), _SLOTS, strict=True)),
    **dict(zip(("add3", "sub3", "add4", "sub4", "add5", "sub5"), _SLOTS, strict=True)),
    "Mean": ("#000000", "X"),
}

TINT = "#F4EFE2"  # behind everything published
_PAPER_MODEL = "Qwen2.5-Math-7B"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.6,
    "figure.dpi": 120,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType, so that text in the PDF stays text
    "ps.fonttype": 42,
}


def use_style() -> None:
    """Set the house style for every figure drawn after this call."""
    matplotlib.rcParams.update(_STYLE)
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it remarks on every font it embeds
    if "ipykernel" in sys.modules:
        # Loading the inline backend is what makes a notebook show a Figure that a cell returns.
        plt.switch_backend(matplotlib.get_backend())


# ------------------------------------------------------------------------------------------ saving


def save_figure(
    draw: Callable[..., Figure],
    name: str,
    table: pd.DataFrame,
    out_dir: str | Path,
    provenance: Mapping[str, Any],
    **options: Any,
) -> Figure:
    """Draw `draw(table, **options)` and write `name`.csv, .png and .pdf to `out_dir`.

    `provenance` (commit, config hash, seeds, versions), the drawing function's name and its options (things
    that JSON can hold) go into the metadata of both drawings: PNG key `Description`, PDF key `Subject`. So a
    picture and its table are enough to draw it again (`redraw`). The same input gives the same bytes,
    since no date is written. A file is replaced whole or not at all.
    """
    fig = draw(table, **options)
    folder = Path(out_dir)
    drawn_by = f"{draw.__module__.removeprefix('sept.')}.{draw.__name__}"
    described = {**provenance, "drawn_by": drawn_by, "options": options}
    record = json.dumps(described, sort_keys=True, default=str)
    png = {"Title": name, "Description": record, "Software": None}
    pdf = {"Title": name, "Subject": record, "CreationDate": None}
    writers: dict[str, Callable[[Path], Any]] = {
        "csv": partial(table.to_csv, index=False, lineterminator="\n"),
        "png": partial(fig.savefig, format="png", metadata=png),
        "pdf": partial(fig.savefig, format="pdf", metadata=pdf),
    }
    for suffix, write in writers.items():
        with writing(folder / f"{name}.{suffix}") as scratch:
            write(scratch)
    return fig


def redraw(folder: str | Path, out_dir: str | Path) -> list[str]:
    """Draw every figure in `folder` again, from the table beside it and nothing else; their names."""
    from PIL import Image

    use_style()
    names = []
    for path in sorted(Path(folder).glob("*.png")):
        with Image.open(path) as image:
            record = json.loads(image.text.get("Description", "{}"))  # type: ignore[attr-defined]
        module, _, function = record.pop("drawn_by", ".").partition(".")
        if not (module.startswith("figures") and function.startswith("figure_")):
            raise SeptError(f"figure {str(path)!r}: its metadata name no drawing function of this package")
        try:
            draw = getattr(import_module(f"sept.{module}"), function)
            options, table = record.pop("options", {}), pd.read_csv(path.with_suffix(".csv"))
            save_figure(draw, path.stem, table, out_dir, record, **options)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise SeptError(f"figure {str(path)!r} cannot be drawn again: {error}") from None
        names.append(path.stem)
    if not names:
        raise SeptError(f"folder {str(folder)!r}: no figures to draw again; run `sept figures` first")
    return names


# ----------------------------------------------------------------------------------------- helpers


def checked(table: pd.DataFrame, artefact: str, columns: Sequence[str]) -> pd.DataFrame:
    """The table, or a ValueError that names the column at fault."""
    for column in columns:
        if column not in table.columns:
            raise ValueError(
                f"{artefact}: column {column!r} is missing; the table has: "
                + ", ".join(map(str, table.columns))
            )
        absent = int(table[column].isna().sum())
        if absent:
            raise ValueError(f"{artefact}: column {column!r} has {absent} empty value(s)")
    if table.empty:
        raise ValueError(f"{artefact}: the table has no rows")
    return table


def _pass_metrics(table: pd.DataFrame, artefact: str) -> list[str]:
    """The `pass@k` metrics in the table by rising k; short profiles draw fewer samples than 32."""
    found = [str(m) for m in table["metric"].unique() if str(m).startswith("pass@")]
    if "pass@1" not in found:
        raise ValueError(f"{artefact}: column 'metric' holds no 'pass@1'")
    return sorted(found, key=lambda metric: int(metric.removeprefix("pass@")))


def method_colour(method: str) -> str:
    """Colour of a method, or of the one a variant is named after: `SePT (x)` is SePT's blue."""
    return COLOURS.get(root_of(method), "#333333")


def root_of(method: str) -> str:
    if method in _ALIASES:
        return _ALIASES[method]
    fitting = [known for known in COLOURS if method.startswith(known)]
    return max(fitting, key=len, default="")


def variants_of(methods: Iterable[str]) -> dict[str, int]:
    """Number of each method among those of its colour, so that variants differ in dash or hatch."""
    seen: dict[str, int] = {}
    number = {}
    for method in methods:
        root = root_of(method)
        number[method] = seen.get(root, 0)
        seen[root] = number[method] + 1
    return number


def new_figure(width: float, height: float) -> Figure:
    use_style()
    return Figure(figsize=(width, height), layout="constrained")


def titled(block: SubFigure, source: str, what: str) -> SubFigure:
    """Label a block `measured: ...` or `published: ...`; the published one is tinted."""
    block.set_facecolor(TINT if source == "published" else "white")
    inches = block.bbox.width / block.figure.dpi
    what = textwrap.fill(what, int(inches * 12))  # about twelve bold letters to the inch
    label = f"{source}: {what}" if inches > COLUMN + 0.5 else f"{source}:\n{what}"
    block.suptitle(label, fontsize=9, fontweight="bold", x=0.012, ha="left")
    return block


def legend_below(block: Figure | SubFigure, columns: int, title: str | None = None) -> None:
    """One legend below all panels, where it cannot cover data."""
    shown: dict[str, Any] = {}
    for ax in block.axes:  # a series may be missing from the first panel
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    block.legend(
        shown.values(),
        shown.keys(),
        loc="outside lower center",
        ncols=columns,
        title=title,
        title_fontsize=8,
    )


def _temperature_axis(ax: Axes, metric: str, ylabel: bool, xlabel: bool = True) -> None:
    ax.set_title(metric)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(matplotlib.ticker.MultipleLocator(0.5))
    if xlabel:
        ax.set_xlabel("decoding temperature")
    if ylabel:
        ax.set_ylabel("score (%)")


def band(ax: Axes, rows: pd.DataFrame, x: str, colour: str) -> None:
    ax.fill_between(rows[x], rows["lo"], rows["hi"], color=colour, alpha=0.22, linewidth=0)


# --------------------------------------------------------------------------------------- Figure 1a


def _sweep_panel(ax: Axes, rows: pd.DataFrame, metric: str) -> None:
    """Families thin, their mean thick, dashed and last, so that it lies on top."""
    rows = rows[rows["metric"] == metric]
    families = [f for f in rows["family"].unique() if f != "Mean"]
    for index, family in enumerate([*families, *(["Mean"] if "Mean" in set(rows.family) else [])]):
        line = rows[rows["family"] == family].sort_values("temperature")
        colour, marker = FAMILY_STYLE.get(family, _SLOTS[index % len(_SLOTS)])
        if family == "Mean":
            band(ax, line, "temperature", colour)
        ax.plot(
            line["temperature"],
            line["value"],
            color=colour,
            marker=marker,
            label=family,
            linestyle="--" if family == "Mean" else "-",
            linewidth=2.0 if family == "Mean" else 0.9,
            markersize=4.5 if family == "Mean" else 3,
        )


_SWEEP_COLUMNS = ("family", "temperature", "metric", "value", "lo", "hi")


def _published_sweep(
    series: Mapping[str, str], figure: str, key: str, panels: Sequence[str] = ("left", "right")
) -> pd.DataFrame:
    """Published curves in the layout of a measured table; without intervals, lo = hi = value."""
    parts = []
    for panel in panels:
        for name, label in series.items():
            points = published.curve(figure, panel, name)
            columns = {key: label, "temperature": points["x"], "metric": points["y_metric"]}
            parts.append(pd.DataFrame({**columns, "value": points["y"]}))
    return pd.concat(parts, ignore_index=True).assign(lo=lambda f: f.value, hi=lambda f: f.value)


def _draw_sweep(block: Figure | SubFigure, table: pd.DataFrame, metrics: Sequence[str]) -> None:
    axes = block.subplots(1, 2)
    for ax, metric in zip(axes, metrics, strict=True):
        _sweep_panel(ax, table, metric)
        _temperature_axis(ax, metric, ylabel=ax is axes[0])
    legend_below(block, columns=7)


def figure_1a(table: pd.DataFrame) -> Figure:
    """pass@1 and the largest pass@k of an untrained model against the decoding temperature.

    Columns: family (one of them `Mean`), temperature, metric, value, lo, hi; scores in percent.
    """
    metrics = _pass_metrics(checked(table, "figure_1a", _SWEEP_COLUMNS), "figure_1a")
    fig = new_figure(PAGE, 2.7)
    _draw_sweep(fig, table, [metrics[0], metrics[-1]])
    return fig


def figure_1a_beside(table: pd.DataFrame, measured: str = "embedded base") -> Figure:
    """`figure_1a` above the paper's own panels. `measured` names the model that was measured."""
    metrics = _pass_metrics(checked(table, "figure_1a_beside", _SWEEP_COLUMNS), "figure_1a_beside")
    fig = new_figure(PAGE, 5.8)
    top, bottom = fig.subfigures(2, 1, squeeze=False).ravel()
    _draw_sweep(titled(top, "measured", measured), table, [metrics[0], metrics[-1]])
    names = {name: name for name in (*list(FAMILY_STYLE)[:6], "Mean")}
    _draw_sweep(
        titled(bottom, "published", f"{_PAPER_MODEL}, Figure 1a (no intervals)"),
        _published_sweep(names, "1a", "family"),
        ["pass@1", "pass@32"],
    )
    return fig


# ---------------------------------------------------------------------------------------- Figure 7


def figure_7(table: pd.DataFrame) -> Figure:
    """Sweeps of untrained models, one a row: measured | published.

    Columns: model, family (one of them `Mean`), temperature, metric, value, lo, hi.
    """
    metrics = _pass_metrics(checked(table, "figure_7", ("model", *_SWEEP_COLUMNS)), "figure_7")
    names = {name: name for name in (*list(FAMILY_STYLE)[:6], "Mean")}
    printed = {}
    for row, model in enumerate(published.curves().query("figure == '7'")["model"].unique(), 1):
        panels = (f"row{row} left", f"row{row} right")
        printed[str(model)] = _published_sweep(names, "7", "family", panels)
    measured = {str(m): rows for m, rows in table.groupby("model", sort=False)}
    fig = new_figure(PAGE, 1.0 + 1.55 * max(len(printed), len(measured)))
    blocks = fig.subfigures(1, 2, squeeze=False).ravel()
    for block, source, models in zip(blocks, ("measured", "published"), (measured, printed), strict=True):
        axes = titled(block, source, "untrained models").subplots(len(models), 2, squeeze=False)
        shown = [metrics[0], metrics[-1]] if source == "measured" else ["pass@1", "pass@32"]
        for line, (model, rows) in zip(axes, models.items(), strict=True):
            for ax, metric in zip(line, shown, strict=True):
                _sweep_panel(ax, rows, metric)
                _temperature_axis(ax, "", ylabel=False, xlabel=line[0] is axes[-1][0])
                ax.set_ylabel(f"{metric} (%)", fontsize=7, labelpad=1)
                ax.tick_params(labelsize=7)
            line[0].set_title(model, loc="left", fontweight="bold", fontsize=8)
        legend_below(block, columns=4)
    return fig


# ---------------------------------------------------------------------------------------- Figure 6


def _draw_methods(block: SubFigure, table: pd.DataFrame, metrics: Sequence[str]) -> None:
    axes = block.subplots(2, 1, sharex=True)
    number = variants_of(table["method"].unique())
    for ax, metric in zip(axes, metrics, strict=True):
        for method, variant in number.items():
            line = table[(table["method"] == method) & (table["metric"] == metric)]
            line = line.sort_values("temperature")
            colour = method_colour(method)
            band(ax, line, "temperature", colour)
            ax.plot(
                line["temperature"],
                line["value"],
                color=colour,
                marker=MARKERS.get(root_of(method), "o"),
                linestyle=("-", "--", ":", "-.")[variant % 4],
                label=method,
            )
        _temperature_axis(ax, metric, ylabel=True, xlabel=ax is axes[-1])
    legend_below(block, columns=3)


def figure_6(table: pd.DataFrame, measured: str = "embedded base") -> Figure:
    """Mean scores of trained models against the decoding temperature, measured | published.

    Columns: method (SePT, GRPO, Baseline, ...), temperature, metric, value, lo, hi.
    """
    checked(table, "figure_6", ("method", "temperature", "metric", "value", "lo", "hi"))
    metrics = _pass_metrics(table, "figure_6")
    fig = new_figure(PAGE, 4.4)
    left, right = fig.subfigures(1, 2, squeeze=False).ravel()
    _draw_methods(titled(left, "measured", measured), table, [metrics[0], metrics[-1]])
    trained = _published_sweep({"SePT": "SePT", "GRPO": "GRPO"}, "6", "method")
    untrained = _published_sweep({"Mean": "Baseline"}, "1a", "method")
    _draw_methods(
        titled(right, "published", f"{_PAPER_MODEL}, Figures 6 and 1a"),
        pd.concat([untrained, trained], ignore_index=True),
        ["pass@1", "pass@32"],
    )
    return fig


# ------------------------------------------------------------------------------ Figure 1c, Table 1

_HATCHES = ("", "////", "....", "xxxx")
ROW_COLUMNS = ("method", "metric", "value", "lo", "hi")


def published_rows(model: str, metrics: Sequence[str]) -> pd.DataFrame:
    rows = []
    for method in ("Baseline", "SePT", "GRPO"):
        printed = published.table_row(1, model, method)
        rows += [{"method": method, "metric": m, "value": printed[m]} for m in metrics]
    return pd.DataFrame(rows).assign(lo=lambda f: f["value"], hi=lambda f: f["value"])


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


def _draw_bars(block: SubFigure, table: pd.DataFrame, metrics: Sequence[str]) -> None:
    ax = block.subplots()
    number = variants_of(table["method"].unique())
    reference = reference_of(table, "figure_1c")
    width = 0.84 / len(number)
    for index, (method, variant) in enumerate(number.items()):
        rows = table[table["method"] == method].set_index("metric").reindex(list(metrics))
        x = np.arange(len(metrics)) + (index - (len(number) - 1) / 2) * width
        error = np.stack([rows["value"] - rows["lo"], rows["hi"] - rows["value"]]).clip(min=0)
        ax.bar(
            x,
            rows["value"],
            width * 0.92,
            color=method_colour(method),
            edgecolor="white",
            linewidth=0,
            hatch=_HATCHES[variant % 4],
            label=method,
        )
        if error[np.isfinite(error)].any():
            ax.errorbar(x, rows["value"], error, fmt="none", ecolor="black", elinewidth=0.8)
        for place, metric in zip(x, metrics, strict=True):
            if pd.isna(rows.loc[metric, "value"]):
                continue
            is_base = root_of(method) == "Baseline"
            paired = rows.loc[metric].get("delta")
            gain = gain_of(table, method, metric, reference) if pd.isna(paired) else paired
            text = f"{rows.loc[metric, 'value']:.1f}" if is_base else f"{gain:+.1f}"
            ax.annotate(
                text,
                (place, rows.loc[metric, "hi"]),
                xytext=(0, 1.5),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color="#333333",
                fontweight="normal" if is_base else "bold",
            )
    ax.set_xticks(range(len(metrics)), metrics)
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel("score (%)")
    ax.margins(y=0.1)
    gains = f"bold: gain over {reference}" if len(number) > 1 else None
    legend_below(block, columns=3, title=gains)


def figure_1c(table: pd.DataFrame, measured: str = "embedded base") -> Figure:
    """Bars of each method, measured | published; baselines carry their value, others their gain.

    Columns: method, metric, value, lo, hi. Several baselines are allowed, told apart by hatching;
    gains refer to the first one in the table, as the paired `delta` where the table has one.
    """
    passes = _pass_metrics(checked(table, "figure_1c", ROW_COLUMNS), "figure_1c")
    shown = [passes[0], passes[-1], *(["AVG"] if "AVG" in set(table["metric"]) else [])]
    fig = new_figure(PAGE, 5.0)
    top, bottom = fig.subfigures(2, 1, squeeze=False, height_ratios=(1.25, 1)).ravel()
    _draw_bars(titled(top, "measured", measured), table, shown)
    metrics = ["pass@1", "pass@32", "AVG"]
    _draw_bars(
        titled(bottom, "published", f"{_PAPER_MODEL}, Table 1 (no intervals)"),
        published_rows(_PAPER_MODEL, metrics),
        metrics,
    )
    return fig
