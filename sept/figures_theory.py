"""Drawings of the exact theory: each takes a table made by `sept.statements` and returns a Figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .figures import COLOURS, MARKERS, PAGE, SPARE, checked, new_figure, note

# tau_s of the arms in their arms' colours: 0.6 SePT, 1 Coupled, 1.4 Inverted.
_TAUS = {0.3: "#333333", 0.6: COLOURS["SePT"], 1.0: COLOURS["Coupled"], 1.4: COLOURS["Inverted"]}
_SCHEDULES = (COLOURS["SePT"], "#333333", COLOURS["Coupled"], COLOURS["Inverted"], *SPARE)
_GREY = "#666666"


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
        floor = max((ax.transData.transform((x, y))[1] - low) / (high - low), floor + gap)
        style = {"xycoords": "axes fraction", "va": "center", "annotation_clip": False}
        note(ax, text, (1.0, floor), (6, 0), color=colour, **style)


def figure_margins(table: pd.DataFrame) -> Figure:
    """New against old margin of every prefix and pair with lines of slope tau_t / tau_s; residuals.

    Columns: tau_s, tau_t, ratio, margin_old, margin_new, residual (`statements.margin_rows`).
    """
    columns = ("tau_s", "tau_t", "ratio", "margin_old", "margin_new", "residual")
    checked(table, "figure_margins", columns)
    fig = new_figure(PAGE, 3.3)
    ax, small = fig.subplots(1, 2, width_ratios=(1.9, 1))
    reach, top = 1.04 * table["margin_old"].abs().max(), 1.06 * table["margin_new"].abs().max()
    ends = []
    for index, ((tau_s, ratio), rows) in enumerate(table.groupby(["tau_s", "ratio"])):
        colour, marker = _TAUS.get(tau_s, SPARE[index % len(SPARE)]), MARKERS[index % len(MARKERS)]
        ax.plot([-reach, reach], [-ratio * reach, ratio * reach], color=colour, linewidth=0.9)
        hollow = {"facecolor": "none", "edgecolor": colour, "linewidth": 0.7}
        ax.scatter(rows["margin_old"], rows["margin_new"], s=9, marker=marker, **hollow)
        ends.append((ratio * reach, rf"$\tau_s = {tau_s:.1f}$:  $\times${ratio:.2f}", colour))
        old, off = rows["margin_old"].abs(), rows["residual"].abs().clip(lower=1e-17)
        small.scatter(old, off, s=5, marker=marker, color=colour, linewidth=0)
    ax.axhline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.set(xlim=(-reach, reach), ylim=(-top, top))
    _label_ends(ax, reach, ends)
    ax.set_xlabel(r"logit margin before the round, $z_i - z_j$")
    ax.set_ylabel(r"after the round, $z'_i - z'_j$")
    ax.set_title(f"{len(table) // table['tau_s'].nunique():,} pairs per temperature", loc="left")
    _plain_log(small, [1e-17, 1e-15, 1e-13, 1e-11, 1e-9], zero=1e-17)
    small.set(ylim=(3e-18, 3e-8), xlim=(0, reach), xlabel=r"$|z_i - z_j|$")
    small.axhline(1e-9, color=_GREY, linestyle="--", linewidth=0.9)
    small.text(0.98 * reach, 1.6e-9, "tolerance", color=_GREY, ha="right", va="bottom", fontsize=8)
    small.set_title("distance from the line", loc="left")
    return fig


def figure_rounds(table: pd.DataFrame) -> Figure:
    """Growth of the margins over rounds (points) and the product of tau_t / tau_s (lines).

    Columns: schedule, round, tau_s, product, growth (`statements.round_rows`).
    """
    checked(table, "figure_rounds", ("schedule", "round", "product", "growth"), holed=("tau_s",))
    fig = new_figure(PAGE, 2.7)
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.45))
    last, ends = int(table["round"].max()), []
    for index, (name, rows) in enumerate(table.groupby("schedule", sort=False)):
        colour, marker = _SCHEDULES[index % len(_SCHEDULES)], MARKERS[index % len(MARKERS)]
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
    right.set_title(r"growth of all margins: fitted (points), $\prod\tau_t/\tau_s$ (lines)", loc="left")
    return fig


def figure_finite_sample(table: pd.DataFrame) -> Figure:
    """Error of a fit to n samples at one prefix: log-odds and KL, measured and predicted.

    Columns: n, rms, predicted_rms, kl, predicted_kl, full_support (`statements.finite_sample_rows`).
    """
    holed = ("rms", "predicted_rms", "kl")
    rows = checked(table, "figure_finite_sample", ("n", "predicted_kl", "full_support"), holed).sort_values(
        "n"
    )
    fig = new_figure(PAGE, 2.6)
    parts = (
        ("rms", "RMS error of a margin", r"$\tau_t\sqrt{(1/q_i + 1/q_j)/N}$", COLOURS["SePT"]),
        ("kl", "KL to the teacher (nats)", r"$(A - 1)/(2N)$", COLOURS["Offline"]),
    )
    for ax, (name, title, formula, colour) in zip(fig.subplots(1, 2), parts, strict=True):
        ax.plot(rows["n"], rows[f"predicted_{name}"], color="#333333", linewidth=0.9)
        ax.plot(rows["n"], rows[name], "o", color=colour, markersize=5)
        ax.set(xscale="log", yscale="log", xlabel="samples $N$ at the prefix")
        ax.set_title(title, loc="left")
        ticks = [m * 10.0**k for k in range(-8, 2) for m in ((1, 2, 5) if name == "rms" else (1,))]
        low, high = ax.get_ylim()
        _plain_log(ax, [t for t in ticks if low <= t <= high])
        ax.set_ylim(low, high)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        corner = {"transform": ax.transAxes, "ha": "right", "va": "top"}
        ax.text(0.98, 0.93, f"line: {formula}", bbox=box, **corner)
    return fig


def normalisation_label(reduction: str, batch: float | None) -> str:
    """How a row of `statements.normalisation_rows` is called in a figure."""
    if pd.isna(batch):
        return "token mean, whole stream" if reduction == "token" else reduction.replace("-", " ")
    where = "micro-batches" if reduction == "microbatch-token" else "batches"
    return f"token mean, {where} of {int(batch or 0)}"


def figure_normalisations(table: pd.DataFrame) -> Figure:
    """How far each loss reduction bends Equation 2 and Theorem 1, one row per reduction.

    Columns: reduction, batch, eq2_norm, max_bend (`statements.normalisation_rows`).
    """
    checked(table, "figure_normalisations", ("reduction", "eq2_norm", "max_bend"), holed=("batch",))
    rows = table.sort_values("max_bend", ascending=False, kind="stable").reset_index(drop=True)
    fig = new_figure(PAGE, 0.9 + 0.24 * len(rows))
    axes = fig.subplots(1, 2, sharey=True)
    exact = rows["max_bend"] < 1e-9
    columns = (
        ("max_bend", 1.0, "largest bend of a log-odds (nats)", "Theorem 1: should be 0"),
        ("eq2_norm", 100.0, "gradient when coupled (% of SePT's)", "Equation 2: should be 0"),
    )
    for ax, (column, scale, label, title) in zip(axes, columns, strict=True):
        for y, (value, good) in enumerate(zip(scale * rows[column], exact, strict=True)):
            colour = COLOURS["SePT"] if good else COLOURS["Offline"]
            ax.plot([0, value], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
            ax.plot(value, y, "o" if good else "s", color=colour, markersize=5.5, zorder=4, clip_on=False)
            text = "0" if good else f"{value:.2g}" if scale == 1 else f"{value:.0f}%"
            note(ax, text, (value, y), (7, 0), color=colour, va="center", fontsize=8)
        ax.set(xlim=(0, 1.16 * scale * rows[column].max()), xlabel=label)
        ax.set_title(title, loc="left")
        ax.grid(False)
        ax.tick_params(axis="y", length=0, pad=6)
    labels = [normalisation_label(*row) for row in zip(rows["reduction"], rows["batch"], strict=True)]
    axes[0].set_yticks(range(len(rows)), labels)
    axes[0].set_ylim(-0.6, len(rows) - 0.4)
    return fig
