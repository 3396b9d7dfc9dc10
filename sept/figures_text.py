"""Drawings made of words: one round of the loop as a diagram, and the chat templates as text."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from . import published
from .config import Config, SeptError
from .figures import COLOURS, PAGE, TINT, checked, new_figure
from .prompts import published_template

_WIDTH = 72 * PAGE  # drawings here are laid out in points, the unit of font sizes
_KINDS: dict[str, dict[str, Any]] = {
    "data": {"edgecolor": COLOURS["Baseline"], "facecolor": "#F5F5F5"},
    "model": {"edgecolor": COLOURS["SePT"], "facecolor": "#E5F1F8"},
    "absent": {"edgecolor": COLOURS["Offline"], "facecolor": "white", "linestyle": ":"},
    "step": {"color": "black"},
    "cut": {"color": COLOURS["Offline"], "linestyle": ":"},
    "effect": {"color": COLOURS["EM-FT"], "linestyle": (0, (4, 2))},
}
_COLUMNS = ["kind", "label", "equation", "x0", "y0", "x1", "y1", "x", "y"]
_ARROW: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 2, "shrinkB": 2, "lw": 1.1}


def _page(height: float) -> tuple[Figure, Axes]:
    fig = new_figure(PAGE, height / 72)
    fig.set_layout_engine("none")
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def _box(ax: Axes, x: float, y: float, width: float, height: float, **style: Any) -> None:
    shape = "round,pad=0,rounding_size=4"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, **{"linewidth": 0.9, **style}))


def loop_table(config: Config) -> pd.DataFrame:
    """What `figure_1b` draws, in points: boxes and arrows of one round, with the config's numbers."""
    if config.objective != "nll":
        raise SeptError(f"objective = {config.objective!r}: figure 1b draws plain SFT ('nll') only")
    tied, moving, every = config.tau_t is None, config.tau_s_schedule != "constant", config.refresh_every
    tau_s = f"{config.tau_s:g}" + (rf" \to {config.tau_s_end:g}" if moving else "")
    tau_t = tau_s if tied else f"{config.tau_t:g}"
    ratio = 1.0 if tied else (config.tau_t or 1.0) / config.tau_s
    level, sign = ("low", "<") if ratio > 1 else ("high", ">") if ratio < 1 else ("equal", "=")
    gains = "performance gains" if ratio > 1 else "what it does"
    margins = rf"margins $\times\,\tau_t/\tau_s = {ratio:.3g}$" + " at first" * (moving and not tied)
    steps = config.questions // config.mini_batch * config.mu
    draws = f"draws {config.G} answer{'s' * (config.G > 1)} each"
    when = "never" if every is None else "every round" if every == 1 else f"every {every} rounds"
    copy = r"$\pi_{old} \leftarrow \pi_\theta$" if every else r"$\pi_{old}$ stays the untrained model"
    sampled = r"$o \sim \pi_{old}(\cdot\,|\,q;\,\tau_s)$"
    loss = r"$\min_\theta\; -\log\,\pi_\theta(o\,|\,q;\,\tau_t)$"
    left_out = "no reward, no verifier,\nno reference model"
    rows = [  # ..., corners of a box or ends of an arrow, centre of the text
        ("data", "question set", "prompts only", 8, 146, 88, 196, 48, 171),
        ("model", r"model $\pi_{old}$", draws, 158, 146, 258, 196, 208, 171),
        ("data", "self-generated pairs", r"$(q,\,o)$, right or wrong", 386, 146, 489, 196, 437, 171),
        ("model", "training", f"AdamW steps: {steps}", 386, 30, 489, 80, 437, 55),
        ("model", r"updated model $\pi_\theta$", "same weights, moved", 158, 30, 258, 80, 208, 55),
        ("absent", "not in the loop", left_out, 8, 30, 116, 80, 62, 59),
        ("step", r"question $q$", f"{config.questions} a round", 88, 171, 158, 171, 123, 171),
        ("step", rf"drawn at {level} $\tau_s = {tau_s}$", sampled, 258, 171, 386, 171, 321, 171),
        ("step", "all are kept", "nobody grades them", 479, 146, 479, 80, 434, 113),
        ("step", rf"plain SFT at $\tau_t = {tau_t}$", loss, 386, 66, 258, 66, 321, 66),
        ("step" if every else "cut", f"refresh: {when}", copy, 208, 80, 208, 146, 146, 113),
        ("effect", rf"{level}-$\tau$ preference", rf"$\tau_s {sign} \tau_t$", 321, 153, 392, 80, 300, 113),
        ("effect", gains, margins, 386, 41, 258, 41, 321, 25),
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def figure_1b(table: pd.DataFrame) -> Figure:
    """One round of the loop. Columns: as `loop_table` makes them; positions in points."""
    checked(table, "figure_1b", _COLUMNS)
    if unknown := sorted(set(table["kind"]) - set(_KINDS)):
        raise ValueError(f"figure_1b: column 'kind' holds {unknown[0]!r}; known: {', '.join(_KINDS)}")
    fig, ax = _page(208)
    for row in table.to_dict("records"):
        style, ends = _KINDS[row["kind"]], ((row["x0"], row["y0"]), (row["x1"], row["y1"]))
        colour = style.get("color", "black")
        if "color" in style:
            ax.add_patch(FancyArrowPatch(ends[0], ends[1], **_ARROW, **style))
        else:
            _box(ax, *ends[0], row["x1"] - row["x0"], row["y1"] - row["y0"], **style)
        place: dict[str, Any] = {"ha": "center", "color": colour}
        ax.text(row["x"], row["y"] + 3, row["label"], va="bottom", fontsize=8, fontweight="bold", **place)
        ax.text(row["x"], row["y"] - 3, row["equation"], va="top", fontsize=7.5, linespacing=1.1, **place)
    return fig


# ------------------------------------------------------------------------------------------ Figure 4

_TITLES = {
    "qwen_base_and_math": "Qwen base and Math models",
    "qwen_instruct": "Qwen Instruct",
    "deepseek_math_instruct": "DeepSeek-Math Instruct",
}


def templates_table(question: str) -> pd.DataFrame:
    """The published templates as text, and each of them filled in with `question`."""
    known = published.settings()["chat_templates"]
    prompt, rows = known["reasoning_prompt"]["value"], []
    for name, title in _TITLES.items():
        text = published_template(name)
        example = text.replace("{question}", question).replace("{reasoning_prompt}", prompt)
        rows.append({"source": "published", "model": title, "template": text, "example": example})
    return pd.DataFrame(rows)


_SPECIAL = re.compile(r"(<[|\w]+>|\{[A-Za-z_ ]+\}|↵)")
_LOOKS = {"<": (COLOURS["SePT"], "bold"), "{": (COLOURS["Offline"], "normal"), "↵": ("#666666", "normal")}
_FONT, _LINE = 7.2, 10.0
_MONO: dict[str, Any] = {"family": "monospace", "fontsize": _FONT, "parse_math": False}  # $ means $


def _lines(text: str) -> list[str]:
    """Wrapped to half a page. True line ends are marked: a template differs from another by as little."""
    real = text.replace("\n", "↵\n").removesuffix("\n").split("\n")
    return [piece for line in real for piece in textwrap.wrap(line, 52, subsequent_indent="  ")]


def figure_4(table: pd.DataFrame) -> Figure:
    """Chat templates as text boxes, each beside a filled-in example; the published ones are tinted.

    Columns: source (`published` or another word), model, template, example.
    """
    checked(table, "figure_4", ("source", "model", "template", "example"))
    boxes = [(row, _lines(row["template"]), _lines(row["example"])) for row in table.to_dict("records")]
    heights = [22 + _LINE * max(len(left), len(right)) for _, left, right in boxes]
    top = sum(heights) + 7 * len(heights) + 7
    fig, ax = _page(top)
    for (row, *halves), height in zip(boxes, heights, strict=True):
        top -= height + 7
        face = TINT if row["source"] == "published" else "white"
        _box(ax, 7, top, _WIDTH - 14, height, facecolor=face, edgecolor=COLOURS["Baseline"])
        heads = (f"{row['source']}: {row['model']}", "filled in")
        for x, head, lines in zip((14, 14 + _WIDTH / 2 - 5), heads, halves, strict=True):
            y = top + height - 12
            ax.text(x, y, head, fontsize=8, fontweight="bold", parse_math=False)
            for line in lines:
                y, column = y - _LINE, 0
                for piece in filter(None, _SPECIAL.split(line)):
                    colour, weight = _LOOKS.get(piece[0], ("black", "normal"))
                    # Set in place with spaces: their width, unlike a number here, is rounded as the glyphs' is.
                    ax.text(x, y, " " * column + piece, color=colour, fontweight=weight, **_MONO)
                    column += len(piece)
    return fig
