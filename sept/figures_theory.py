"""Drawings of the exact theory: each takes a table made by `sept.tabular` and returns a Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sept.figures import COLOURS, PAGE, use_style

# tau_s of the arms in their arms' colours: 0.6 SePT, 1 Coupled, 1.4 Inverted.
PALETTE: dict[float, str] = {
    0.3: "#333333",
    0.6: COLOURS["SePT"],
    1.0: COLOURS["Coupled"],
    1.4: COLOURS["Inverted"],
}
_SPARE = ("#333333", "#0072B2", "#CC79A7", "#56B4E9", "#E69F00", "#009E73", "#D55E00")
_ARMS = ("#0072B2", "#333333", "#CC79A7", "#56B4E9", "#E69F00", "#009E73", "#D55E00")
_MARKERS = "osD^vPX"
_GREY = "#666666"


def _need(table: pd.DataFrame, artefact: str, columns: Sequence[str]) -> None:
    missing = [c for c in columns if c not in table.columns]
    if missing or table.empty:
        what = f"column(s) {', '.join(missing)} missing" if missing else "the table has no rows"
        raise ValueError(f"{artefact}: {what}; make it with the row builders of sept.tabular")


def _panels(height: float, ratios: Sequence[float], sharey: bool = False) -> tuple[Figure, list]:
    use_style()
    fig = Figure(figsize=(PAGE, height), layout="constrained")
    axes = fig.subplots(1, len(ratios), width_ratios=ratios, sharey=sharey)
    return fig, list(np.atleast_1d(axes))


def _plain_log(ax: Axes, ticks: Sequence[float], zero: float = -1.0) -> None:
    """A logarithmic y axis with these ticks written as plain numbers, `zero` written as 0."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(FixedLocator(list(ticks)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: "0" if v == zero else f"{v:g}"))


def _label_ends(ax: Axes, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write (y, text, colour) beside the ends of lines, pushed apart where they would overlap."""
    low, high = ax.transData.transform([(x, ax.get_ylim()[k]) for k in (0, 1)])[:, 1]
    height = ax.get_position().height * ax.get_figure(root=True).get_size_inches()[1]  # type: ignore[union-attr]
    gap = 12 / (72 * height)  # 12 points as a share of the axis
    floor = -np.inf
    for y, text, colour in sorted(ends):
        at = (ax.transData.transform((x, y))[1] - low) / (high - low)
        floor = max(at, floor + gap)
        ax.annotate(
            text,
            (1.0, floor),
            (6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def figure_margins(table: pd.DataFrame, palette: Mapping[float, str] | None = None) -> Figure:
    """New against old margin of every prefix and pair with lines of slope tau_t / tau_s; residuals.

    Columns: tau_s, tau_t, ratio, margin_old, margin_new, residual (`statements.margin_rows`).
    """
    columns = ("tau_s", "tau_t", "ratio", "margin_old", "margin_new", "residual")
    _need(table, "figure_margins", columns)
    palette = palette or PALETTE
    fig, (ax, small) = _panels(3.3, (1.9, 1))
    reach, top = 1.04 * table["margin_old"].abs().max(), 1.06 * table["margin_new"].abs().max()
    ends = []
    for index, ((tau_s, ratio), rows) in enumerate(table.groupby(["tau_s", "ratio"])):
        colour = palette.get(tau_s, _SPARE[index % len(_SPARE)])
        marker = _MARKERS[index % len(_MARKERS)]
        ax.plot([-reach, reach], [-ratio * reach, ratio * reach], color=colour, linewidth=0.9)
        ax.scatter(
            rows["margin_old"],
            rows["margin_new"],
            s=9,
            marker=marker,
            facecolor="none",
            edgecolor=colour,
            linewidth=0.7,
        )
        ends.append((ratio * reach, rf"$\tau_s = {tau_s:.1f}$:  $\times${ratio:.2f}", colour))
        small.scatter(
            rows["margin_old"].abs(),
            rows["residual"].abs().clip(lower=1e-17),
            s=5,
            marker=marker,
            color=colour,
            linewidth=0,
        )
    ax.axhline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.set(xlim=(-reach, reach), ylim=(-top, top))
    _label_ends(ax, reach, ends)
    ax.set_xlabel(r"logit margin before the round, $z_i - z_j$")
    ax.set_ylabel(r"after the round, $z'_i - z'_j$")
    ax.set_title(f"{len(table) // table['tau_s'].nunique():,} pairs per temperature", loc="left")
    _plain_log(small, [1e-17, 1e-15, 1e-13, 1e-11, 1e-9], zero=1e-17)
    small.set(ylim=(3e-18, 3e-8), xlim=(0, reach))
    small.axhline(1e-9, color=_GREY, linestyle="--", linewidth=0.9)
    small.text(0.98 * reach, 1.6e-9, "tolerance", color=_GREY, ha="right", va="bottom", fontsize=8)
    small.set_xlabel(r"$|z_i - z_j|$")
    small.set_title("distance from the line", loc="left")
    return fig


def figure_rounds(table: pd.DataFrame, palette: Mapping[str, str] | None = None) -> Figure:
    """Growth of the margins over rounds (points) and the product of tau_t / tau_s (lines).

    Columns: schedule, round, tau_s, product, growth (`statements.round_rows`).
    """
    _need(table, "figure_rounds", ("schedule", "round", "tau_s", "product", "growth"))
    fig, (left, right) = _panels(2.7, (1, 1.45))
    last, ends = int(table["round"].max()), []
    for index, (name, rows) in enumerate(table.groupby("schedule", sort=False)):
        colour = (palette or {}).get(str(name), _ARMS[index % len(_ARMS)])
        marker = _MARKERS[index % len(_MARKERS)]
        left.plot(rows["round"], rows["tau_s"], color=colour, marker=marker, linewidth=0.9)
        right.plot(rows["round"], rows["product"], color=colour, linewidth=0.9)
        right.plot(rows["round"], rows["growth"], marker, color=colour, markerfacecolor="white")
        end = float(rows["product"].iloc[-1])
        ends.append((end, rf"{name}: $\times${end:.3g}", colour))
    left.set(ylim=(0, 1.1 * table["tau_s"].max()), xlabel="round", xticks=range(1, last + 1))
    left.set_title(r"sampling temperature $\tau_s$", loc="left")
    low, high = np.log2(table["product"].min()), np.log2(table["product"].max())
    _plain_log(right, [2.0**k for k in range(int(np.floor(low)), int(np.ceil(high)) + 1)])
    right.set(xlabel="round", xticks=range(last + 1))
    _label_ends(right, last, ends)
    title = r"growth of all margins: fitted (points), $\prod\tau_t/\tau_s$ (lines)"
    right.set_title(title, loc="left")
    return fig


def figure_finite_sample(table: pd.DataFrame) -> Figure:
    """Error of a fit to n samples at one prefix: log-odds and KL, measured and predicted.

    Columns: n, rms, predicted_rms, kl, predicted_kl, full_support (`statements.finite_sample_rows`).
    """
    columns = ("n", "rms", "predicted_rms", "kl", "predicted_kl", "full_support")
    _need(table, "figure_finite_sample", columns)
    fig, axes = _panels(2.6, (1, 1))
    parts = (
        ("rms", "RMS error of a margin", r"$\tau_t\sqrt{(1/q_i + 1/q_j)/N}$", COLOURS["SePT"]),
        ("kl", "KL to the teacher (nats)", r"$(A - 1)/(2N)$", COLOURS["Offline"]),
    )
    for ax, (name, title, formula, colour) in zip(axes, parts, strict=True):
        rows = table.sort_values("n")
        ax.plot(rows["n"], rows[f"predicted_{name}"], color="#333333", linewidth=0.9)
        ax.plot(rows["n"], rows[name], "o", color=colour, markersize=5)
        ax.set(xscale="log", yscale="log", xlabel="samples $N$ at the prefix")
        ax.set_title(title, loc="left")
        ticks = [m * 10.0**k for k in range(-8, 2) for m in ((1, 2, 5) if name == "rms" else (1,))]
        low, high = ax.get_ylim()
        _plain_log(ax, [t for t in ticks if low <= t <= high])
        ax.set_ylim(low, high)
        ax.text(
            0.98,
            0.93,
            f"line: {formula}",
            transform=ax.transAxes,
            ha="right",
            va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
        )
    return fig


def normalisation_label(reduction: str, batch: float | None) -> str:
    """How a row of `statements.normalisation_rows` is called in a figure."""
    if reduction == "token" and pd.isna(batch):
        return "token mean, whole stream"
    if pd.isna(batch):
        return reduction.replace("-", " ")
    where = "micro-batches" if reduction == "microbatch-token" else "batches"
    return f"token mean, {where} of {int(batch or 0)}"


def figure_normalisations(table: pd.DataFrame) -> Figure:
    """How far each loss reduction bends Equation 2 and Theorem 1, one row per reduction.

    Columns: reduction, batch, eq2_norm, max_bend (`statements.normalisation_rows`).
    """
    _need(table, "figure_normalisations", ("reduction", "batch", "eq2_norm", "max_bend"))
    rows = table.sort_values("max_bend", ascending=False, kind="stable").reset_index(drop=True)
    fig, axes = _panels(0.9 + 0.24 * len(rows), (1, 1), sharey=True)
    exact = rows["max_bend"] < 1e-9
    panels = (
        ("max_bend", 1.0, "largest bend of a log-odds (nats)", "Theorem 1: should be 0"),
        ("eq2_norm", 100.0, "gradient when coupled (% of SePT's)", "Equation 2: should be 0"),
    )
    for ax, (column, scale, label, title) in zip(axes, panels, strict=True):
        for y, (value, good) in enumerate(zip(scale * rows[column], exact, strict=True)):
            colour = COLOURS["SePT"] if good else COLOURS["Offline"]
            ax.plot([0, value], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
            ax.plot(value, y, "o" if good else "s", color=colour, markersize=5.5, zorder=4, clip_on=False)
            text = "0" if good else f"{value:.2g}" if scale == 1 else f"{value:.0f}%"
            ax.annotate(
                text, (value, y), (7, 0), textcoords="offset points", color=colour, va="center", fontsize=8
            )
        ax.set_xlim(0, 1.16 * scale * rows[column].max())
        ax.set_xlabel(label)
        ax.set_title(title, loc="left")
        ax.grid(False)
    pairs = zip(rows["reduction"], rows["batch"], strict=True)
    labels = [normalisation_label(name, batch) for name, batch in pairs]
    axes[0].set_yticks(range(len(rows)), labels)
    axes[0].set_ylim(-0.6, len(rows) - 0.4)
    for ax in axes:
        ax.tick_params(axis="y", length=0, pad=6)
    return fig
