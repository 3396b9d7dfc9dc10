"""The diagram of the loop and the chat templates: drawn from their tables, literal, without overlaps."""

from __future__ import annotations

import itertools
import re

import pandas as pd
import pytest

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from sept import figures, figures_text, published
from sept.config import PRESETS, SeptError, preset

QUESTION = r"How much is $\frac{6}{2}$ in $, and 5_2^1?"
LOOP = ("kind", "label", "equation", "x0", "y0", "x1", "y1", "x", "y")
SUPERVISED = [arm for arm in PRESETS if preset(arm).objective == "nll"]


def loop(**overrides) -> pd.DataFrame:
    return figures_text.loop_table(preset("sept", **overrides))


def templates() -> pd.DataFrame:
    return figures_text.templates_table(QUESTION)


def texts(fig) -> list:
    return [text for text in fig.axes[0].texts if text.get_text()]


def squeezed(text: str) -> str:
    return re.sub(r"[\s↵]", "", text)


DRAWINGS = [
    (figures_text.figure_1b, loop, LOOP),
    (figures_text.figure_4, templates, ("source", "model", "template", "example")),
]


@pytest.mark.parametrize(("draw", "make", "columns"), DRAWINGS)
def test_draws_from_its_table_and_again_to_the_byte(draw, make, columns, tmp_path):
    table, name = make(), draw.__name__
    assert tuple(table.columns) == columns
    fig = figures.save_figure(draw, name, table, tmp_path, {"commit": "0123abc"})
    assert fig.get_size_inches()[0] == pytest.approx(figures.PAGE)
    pd.testing.assert_frame_equal(table, make())  # the caller's table is not touched
    assert figures.redraw(tmp_path, tmp_path / "again") == [name]
    for path in tmp_path.glob("figure*"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(("draw", "make", "columns"), DRAWINGS)
def test_broken_tables_are_refused_by_column(draw, make, columns):
    for column in columns:
        holed = make().astype({column: object})
        holed.loc[1, column] = None
        for broken in (make().drop(columns=column), holed):
            with pytest.raises(ValueError, match=f"^{draw.__name__}: column '{column}'"):
                draw(broken)
    with pytest.raises(ValueError, match="the table has no rows"):
        draw(make().iloc[:0])


def overlaps(fig) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap by more than a pixel."""
    renderer = FigureCanvasAgg(fig).get_renderer()
    boxes = [(t.get_text(), t.get_window_extent(renderer).padded(-1)) for t in texts(fig)]
    page = fig.bbox
    for text, box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text
    return [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)]


@pytest.mark.parametrize("arm", SUPERVISED)
def test_the_diagram_is_legible_for_every_supervised_arm(arm):
    fig = figures_text.figure_1b(figures_text.loop_table(preset(arm, G=8, refresh_every=10)))
    assert overlaps(fig) == []
    assert min(text.get_fontsize() for text in texts(fig)) >= 7


@pytest.mark.parametrize("dpi", [72, 120, 200])
def test_the_templates_stay_in_their_half_of_the_page(dpi):
    fig = figures_text.figure_4(templates())
    fig.set_dpi(dpi)
    renderer = FigureCanvasAgg(fig).get_renderer()
    middle = fig.bbox.width / 2
    lines: dict[tuple[bool, float], str] = {}
    for text in texts(fig):
        box, left = text.get_window_extent(renderer), text.get_position()[0] < figures.PAGE * 36
        assert box.x1 < (middle if left else fig.bbox.width - 7), text.get_text()
        place = (left, text.get_position()[1])
        before = lines.get(place, "")
        # Pieces of a line stand behind each other: each begins with as many spaces as came before.
        assert text.get_text().startswith(" " * len(before))
        lines[place] = before + text.get_text()[len(before) :]
    heights = sorted({y for left, y in lines if left})
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 9.5  # points between lines
    assert min(text.get_fontsize() for text in texts(fig)) >= 7


def test_the_numbers_of_the_diagram_are_those_of_the_config():
    shown = [" ".join(t.get_text() for t in texts(figures_text.figure_1b(t))) for t in (
        loop(),
        loop(tau_s=0.5, tau_t=2, questions=24, mini_batch=8, mu=2, G=4, refresh_every=5),
    )]  # fmt: skip
    ours = (
        r"\tau_s = 0.6$",
        r"\tau_t = 1$",
        "128 a round",
        "1 answer each",
        "steps: 2",
        "1.67",
        "every round",
    )
    other = (
        r"\tau_s = 0.5$",
        r"\tau_t = 2$",
        "24 a round",
        "4 answers each",
        "steps: 6",
        "= 4$",
        "every 5 rounds",
    )
    for mine, theirs in zip(ours, other, strict=True):
        assert mine in shown[0] and mine not in shown[1]
        assert theirs in shown[1] and theirs not in shown[0]


def test_the_diagram_says_what_an_arm_changes():
    def said(arm):
        table = figures_text.loop_table(preset(arm))
        return table, " ".join([*table["label"], *table["equation"]])

    base, text = said("sept")
    assert "no reward, no verifier" in text and "performance gains" in text and r"low-$\tau$" in text
    offline, text = said("offline")
    assert "refresh: never" in text and r"\leftarrow" not in text
    assert (offline["kind"] == "cut").sum() == 1 and "cut" not in set(base["kind"])
    for arm, sign, factor in (
        ("coupled", "=", "= 1$"),
        ("coupled-tau_s", "=", "= 1$"),
        ("inverted", ">", "0.714"),
    ):
        text = said(arm)[1]
        assert rf"\tau_s {sign} \tau_t" in text and factor in text and "gains" not in text
    assert r"0.6 \to 1" in said("sept-annealed")[1]
    with pytest.raises(SeptError, match="objective = 'grpo'"):
        said("grpo")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="figure_1b: column 'kind' holds 'reward'"):
        figures_text.figure_1b(loop().replace({"kind": {"absent": "reward"}}))


def test_every_published_template_is_drawn_in_full():
    drawn = squeezed("".join(t.get_text() for t in texts(figures_text.figure_4(templates()))))
    known = published.settings()["chat_templates"]
    table = templates()
    for column in ("template", "example"):
        for text in table[column]:
            assert squeezed(text) in drawn
    settings = [v["value"] for v in known.values() if isinstance(v["value"], dict)]
    assert len(settings) == len(table) == 3  # no template of the settings is left out
    reasoning = known["reasoning_prompt"]["value"]
    for value, row in zip(settings, table.to_dict("records"), strict=True):
        assert row["example"].count(reasoning) == 1 and row["example"].count(QUESTION) == 1
        parts = value.get("parts") or [value["system"], *value["user"].split(" + space + ")]
        for part in parts:
            assert part == "blank line" or part in row["template"]
        if value.get("format") == "chatml":
            assert row["template"].endswith("<|im_end|>\n<|im_start|>assistant\n")
            assert row["template"].count("<|im_start|>") == 3


def test_templates_are_literal():
    """No mathtext: a dollar or a backslash of a template is part of what the model reads."""
    fig = figures_text.figure_4(templates())
    assert not any(text.get_parse_math() for text in texts(fig))
    drawn = "".join(text.get_text() for text in texts(fig))
    assert r"\boxed{}" in drawn and r"$\frac{6}{2}$" in drawn


def test_published_boxes_are_tinted_and_special_tokens_stand_out():
    own = {"source": "embedded", "model": "H", "template": "<bos>{question}", "example": "<bos>1+1:"}
    fig = figures_text.figure_4(pd.concat([templates(), pd.DataFrame([own])], ignore_index=True))
    faces = [to_hex(patch.get_facecolor()) for patch in fig.axes[0].patches]
    assert faces == [figures.TINT.lower()] * 3 + ["#ffffff"]
    for text in texts(fig):
        if text.get_text().strip().startswith("<"):
            assert text.get_color() == figures.COLOURS["SePT"] and text.get_fontweight() == "bold"
