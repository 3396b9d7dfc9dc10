"""Drawing of one question under two models (Figure 2, with the responses of Figures 8 and 9)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from . import published
from .cases import BRANCHES, MODELS, margins
from .figures import COLOURS, PAGE, TINT, checked, new_figure, titled

RED = "#D55E00"  # the wrong answer that the base drew
_SHOWN = {"base": "base", "trained": "SePT"}
_PATHS = {"base": (RED, ("A", "B|A")), "trained": (COLOURS["SePT"], ("A^", "B^|A^"))}
_SHADE = "#DDE3EA"  # behind a prefix
_WIDTH = 105  # characters of a line
_LONGEST = 450  # characters of a prefix or suffix that are shown; the table holds all of them
_CENTRED: dict[str, Any] = {"ha": "center", "va": "center"}
_COLUMNS = ("model", "branch", "log_prob", "tokens", "text")
_SHARED = ("prompt", "answer", "base_right", "trained_right", "n")
_ROOT, _LEFT, _RIGHT = (0.5, 1.0), (0.25, 0.55), (0.75, 0.55)
# Ends of the branches' edges; a leaf stands below its prefix.
_STARTS = (_ROOT, _ROOT, _LEFT, _LEFT, _RIGHT, _RIGHT)
_ENDS = (_LEFT, _RIGHT, (0.1, 0.0), (0.4, 0.0), (0.6, 0.0), (0.9, 0.0))


def _number(value: float) -> str:
    """Two decimals, none for printed integers; a proper minus, and none before a rounded zero."""
    text = f"{value:.0f}" if float(value).is_integer() else f"{value:.2f}"
    return text.replace("-0.00", "0.00").replace("-", "\u2212")


def _symbol(name: str) -> str:
    return rf"$\hat{{{name[0]}}}$" if name.endswith("^") else f"${name}$"


def _event(branch: str) -> str:
    """`B^|A` as it stands within log p( )."""
    return r" \mid ".join(_symbol(part).strip("$") for part in branch.split("|"))


def _tree(ax: Axes, score: pd.Series, model: str, title: str, ground: str) -> None:
    """One model's tree; score: log-probs by branch. The path that the model drew is thick."""
    colour, path = _PATHS[model]
    for branch, (x0, y0), (x1, y1) in zip(BRANCHES, _STARTS, _ENDS, strict=True):
        drawn = branch in path
        shade, width = (colour, 2.2) if drawn else ("#8A8A8A", 0.9)
        ax.plot([x0, x1], [y0, y1], color=shade, linewidth=width, zorder=2 if drawn else 1)
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
        value = ax.text(*middle, _number(score[branch]), fontsize=8, zorder=3, **_CENTRED)
        value.set_bbox({"boxstyle": "round,pad=0.15", "facecolor": ground, "edgecolor": "none"})
        value.set(color=colour if drawn else "#333333", fontweight="bold" if drawn else "normal")
        node = ax.text(x1, y1, _symbol(branch.split("|")[0]), fontsize=9, zorder=4, **_CENTRED)
        node.set_bbox({"boxstyle": "circle,pad=0.25", "fc": "white", "ec": shade, "lw": width / 1.5})
    root = ax.text(0.5, 1.0, "question", fontsize=8, zorder=4, **_CENTRED)
    root.set_bbox({"boxstyle": "round,pad=0.3", "fc": "white", "ec": "#8A8A8A", "lw": 0.9})
    ax.set(xlim=(0, 1), ylim=(-0.12, 1.1), title=title)
    ax.axis("off")


def _statements(ax: Axes, table: pd.DataFrame, model: str) -> None:
    """Which of each pair of texts is likelier, by how much, and whether training moved it to the right one."""
    for line, row in enumerate(margins(table).to_dict("records")):
        margin = row[model]
        one, two = (_event(branch) for branch in (BRANCHES[2 * line + 1], BRANCHES[2 * line]))
        sign = ">" if margin > 0 else "<" if margin < 0 else "="
        moved = "" if model == "base" else ", margin up" if row["up"] else ", margin not up"
        text = rf"$\log p({one}) {sign} \log p({two})$  by {_number(abs(margin))}{moved}"
        ax.text(0.02, 1 - line / 3, text, va="top", fontsize=8)
    ax.axis("off")


def _trees(block: SubFigure, table: pd.DataFrame, titles: dict[str, str], ground: str) -> None:
    axes = block.subplots(2, 2, height_ratios=(3.2, 1))
    for column, model in enumerate(MODELS):
        score = table[table["model"] == model].set_index("branch")["log_prob"]
        _tree(axes[0, column], score, model, titles[model], ground)
        _statements(axes[1, column], table, model)


def _lines(prefix: str, suffix: str) -> list[tuple[str, str]]:
    """A text as lines of at most `_WIDTH` characters, each as its part of the prefix and of the suffix."""
    parts = [re.sub(r"\s+", " ", part) for part in (prefix, suffix)]
    half = _LONGEST // 2
    parts = [part if len(part) <= _LONGEST else f"{part[:half]} [...] {part[-half:]}" for part in parts]
    whole, cut = "".join(parts), len(parts[0])
    starts = range(0, len(whole), _WIDTH)
    return [(whole[k : min(k + _WIDTH, cut)], whole[max(k, cut) : k + _WIDTH]) for k in starts]


def _texts(block: SubFigure, texts: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Texts under their headings, every prefix shaded. Units of height: lines."""
    ax = block.subplots()
    style: dict[str, Any] = {"family": "monospace", "fontsize": 7, "va": "top", "parse_math": False}
    height = 0.0
    for heading, lines in texts.items():
        ax.text(0.012, height + 1, heading, va="baseline", fontsize=8)  # hats do not move the line
        height += 1.4
        for head, tail in lines:
            box = {"boxstyle": "square,pad=0.1", "facecolor": _SHADE, "edgecolor": "none"} if head else None
            first = ax.text(0.017, height, head, bbox=box, **style)
            # The tail begins where the head ends, whatever the width of a letter.
            at: Any = ((1, 1), first) if head else ((0.017, height), "data")
            ax.annotate(tail, at[0], xycoords=at[1], **style)
            height += 1.0
        height += 0.4
    ax.set(xlim=(0, 1), ylim=(height, -0.1))
    ax.axis("off")


def _published_case() -> pd.DataFrame:
    """The printed integers in the layout of a measured table."""
    rows = published.curves().query("figure == '2'")
    branch = [s.replace("hat", "^").replace("q,", "").removesuffix("|q") for s in rows["series"]]
    model = rows["panel"].replace("SePT", "trained")
    return pd.DataFrame({"model": model, "branch": branch, "log_prob": rows["y"]})


def figure_2(table: pd.DataFrame, measured: str = "embedded base") -> Figure:
    """Two trees of log-probs (base, SePT) and the two responses behind them, above the paper's own trees.

    table: `cases.find_case`; measured names the model. Sums over tokens at temperature 1, nats. The path that
    the base drew is red, the one that SePT drew is blue; the lines below compare right with wrong.
    """
    checked(table, "figure_2", (*_COLUMNS, *_SHARED))
    if sorted(zip(table["model"], table["branch"], strict=True)) != sorted(product(MODELS, BRANCHES)):
        each = f"each of {', '.join(BRANCHES)} once for each of base, trained"
        raise ValueError(f"figure_2: column 'branch' must hold {each}")
    first, base = table.iloc[0], table[table["model"] == "base"].set_index("branch")
    texts = {"Question:": _lines("", f"{first['prompt']}  (answer {first['answer']})")}
    for owner, a, b in (("The base's wrong", "A", "B|A"), ("SePT's right", "A^", "B^|A^")):
        sizes = f"{base.loc[a, 'tokens']} + {base.loc[b, 'tokens']} tokens"
        heading = f"{owner} answer, {_symbol(a)} (shaded) and {_symbol(b.split('|')[0])}, {sizes}:"
        texts[heading] = _lines(str(base.loc[a, "text"]), str(base.loc[b, "text"]))
    heights = (3.0, 0.1 + 0.135 * sum(len(lines) + 1.8 for lines in texts.values()), 3.0)
    fig = new_figure(PAGE, sum(heights))
    top, middle, bottom = fig.subfigures(3, 1, squeeze=False, height_ratios=heights).ravel()
    titles = {m: f"{_SHOWN[m]}: {first[f'{m}_right']} of {first['n']} answers right" for m in MODELS}
    _trees(titled(top, "measured", f"{measured} (log-probs in nats)"), table, titles, "white")
    _texts(middle, texts)
    what = "Qwen2.5-Math-7B, Figure 2 (one MATH-500 question)"
    _trees(titled(bottom, "published", what), _published_case(), _SHOWN, TINT)
    return fig
