"""Drawings: one style, one save call, and what the drawing functions in `figures_*.py` share.

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

import pandas as pd

from .config import SeptError
from .durable import writing

try:
    import matplotlib
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
except ImportError:
    raise SeptError("drawing needs matplotlib: pip install 'sept[notebooks]'") from None

COLUMN, PAGE = 3.4, 6.9  # inches: one column of a two-column page, the full text width

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
# For series that are no methods.
SPARE = ("#332288", "#999933", "#882255", "#DDAA66", "#5B7083", "#8C564B")
MARKERS, DASHES = "osD^vPX*", ("-", "--", ":", "-.")
TINT = "#F4EFE2"  # behind everything published
# Names for the same arm, as the paper and the tables print them.
_ALIASES = {"SePT (Offline)": "Offline", "Coupling": "Coupled", "Decoupling": "SePT"}


def use_style() -> None:
    """Set the house style for every figure drawn after this call."""
    plt.style.use(Path(__file__).parent / "data" / "sept.mplstyle")
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


# ------------------------------------------------------------------------------ tables and methods


def checked(
    table: pd.DataFrame, artefact: str, columns: Sequence[str], holed: Sequence[str] = ()
) -> pd.DataFrame:
    """The table, or a ValueError that names the column at fault. holed: columns with empty cells."""
    for column in (*columns, *holed):
        if column not in table.columns:
            raise ValueError(
                f"{artefact}: column {column!r} is missing; the table has: "
                + ", ".join(map(str, table.columns))
            )
        if column not in holed and (absent := int(table[column].isna().sum())):
            raise ValueError(f"{artefact}: column {column!r} has {absent} empty value(s)")
    if table.empty:
        raise ValueError(f"{artefact}: the table has no rows")
    return table


def root_of(method: str) -> str:
    """The method of COLOURS that a variant is named after, or nothing."""
    fitting = [known for known in COLOURS if method.startswith(known)]
    return _ALIASES.get(method) or max(fitting, key=len, default="")


def method_colour(method: str) -> str:
    """Colour of a method, or of the one a variant is named after: `SePT (x)` is SePT's blue."""
    return COLOURS.get(root_of(method), "#333333")


def looks_of(methods: Iterable[str]) -> dict[str, dict[str, str]]:
    """Colour, marker and dash of each method; variants of a method differ in dash only."""
    looks: dict[str, dict[str, str]] = {}
    for method in methods:
        root, before = root_of(method), [root_of(other) for other in looks]
        marker = MARKERS[list(COLOURS).index(root)] if root else "o"
        dash = DASHES[before.count(root) % len(DASHES)]
        looks[method] = {"color": method_colour(method), "marker": marker, "linestyle": dash}
    return looks


# ------------------------------------------------------------------------------------------- panels


def new_figure(width: float, height: float) -> Figure:
    use_style()
    return Figure(figsize=(width, height), layout="constrained")


def panels(count: int, columns: int, base: float, each: float) -> tuple[Figure, list[Axes]]:
    """`count` panels in rows of `columns`; height in inches: `base` and `each` row."""
    columns = min(columns, count)
    rows = -(-count // columns)
    fig = new_figure(PAGE if columns > 1 else COLUMN, base + each * rows)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.set_visible(False)
    return fig, list(axes[:count])


def blocks(
    height: float,
    measured: str,
    published: str,
    beside: bool = False,
    ratios: Sequence[float] | None = None,
) -> tuple[Figure, SubFigure, SubFigure]:
    """A page with a measured block above (or left of) a published one, each labelled by what it shows."""
    fig = new_figure(PAGE, height)
    rows, columns = (1, 2) if beside else (2, 1)
    one, two = fig.subfigures(rows, columns, squeeze=False, height_ratios=ratios).ravel()
    return fig, titled(one, "measured", measured), titled(two, "published", published)


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
    style: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "title_fontsize": 8}
    block.legend(shown.values(), shown.keys(), title=title, **style)


def band(ax: Axes, rows: pd.DataFrame, x: str, colour: str) -> None:
    ax.fill_between(rows[x], rows["lo"], rows["hi"], color=colour, alpha=0.22, linewidth=0)


def note(ax: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Text `offset` points away from `at`."""
    ax.annotate(text, at, offset, textcoords="offset points", **style)
