"""Every drawing function draws, refuses broken tables by name, and saves reproducibly."""

from __future__ import annotations

import errno
import json
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")
from matplotlib import colors as mcolors
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sept import figures, figures_scores, figures_training, published, tables
from sept.config import SeptError
from sept.evaluation import detail_table

PROVENANCE = {"commit": "0123abc (dirty)", "config": "9f", "seeds": [0, 1], "torch": "2.13.0"}
TEMPERATURES = (0.0, 0.5, 1.0, 1.5)


def _with_interval(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows).assign(lo=lambda f: f["value"] - 2, hi=lambda f: f["value"] + 2)


@pytest.fixture()
def sweep() -> pd.DataFrame:
    return _with_interval(
        [
            {"family": f, "temperature": t, "metric": m, "value": 50 - 5 * i - 10 * t}
            for i, f in enumerate(("add3", "mul4", "Mean"))
            for t in TEMPERATURES
            for m in ("pass@1", "pass@8", "pass@32", "AVG")
        ]
    )


@pytest.fixture()
def methods() -> pd.DataFrame:
    return _with_interval(
        [
            {"method": a, "temperature": t, "metric": m, "value": 40 + 5 * i - 10 * t}
            for i, a in enumerate(("Baseline", "SePT", "GRPO"))
            for t in TEMPERATURES
            for m in ("pass@1", "pass@32")
        ]
    )


@pytest.fixture()
def rows() -> pd.DataFrame:
    names = ("Baseline (T chosen on dev)", "Baseline (T chosen on test)", "SePT", "GRPO")
    return _with_interval(
        [
            {"method": a, "metric": m, "value": 30.0 + 4 * i + 10 * j}
            for i, a in enumerate(names)
            for j, m in enumerate(("pass@1", "pass@8", "pass@32", "AVG"))
        ]
    )


@pytest.fixture()
def training() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"arm": a, "seed": s, "round": r, "metric": m, "value": i + s + r}
            for i, a in enumerate(("SePT", "SePT (annealed)", "GRPO"))
            for s in range(3)
            for r in range(4)
            for m in ("pass@1", "entropy", "token NLL", "length")
        ]
    )


@pytest.fixture()
def models() -> pd.DataFrame:
    names = ("Baseline (T = 0.3)", "EM-FT", "SePT")
    return _with_interval(
        [{"model": m, "method": a, "value": 30.0 + 4 * i} for m in "HI" for i, a in enumerate(names)]
    )


@pytest.fixture()
def rollouts(training) -> pd.DataFrame:
    arms = dict(zip(training["arm"].unique(), ("G = 1", "G = 4", "G = 8"), strict=True))
    two = training[training["metric"].isin(["pass@1", "entropy"])]
    return two.replace({"arm": arms, "metric": {"entropy": "pass@32"}}).reset_index(drop=True)


@pytest.fixture()
def sweeps(sweep) -> pd.DataFrame:
    return pd.concat([sweep.assign(model="base H"), sweep.assign(model="base I")], ignore_index=True)


@pytest.fixture()
def rates() -> pd.DataFrame:
    arms = ("SePT", "Offline", "GRPO")
    return _with_interval(
        [{"arm": a, "lr": lr, "value": 50.0 + i} for i, a in enumerate(arms) for lr in (1e-5, 1e-4)]
    )


# drawing function, fixture, columns it needs, number of panels
DRAWINGS = [
    ("figure_1a", "sweep", ("family", "temperature", "metric", "value", "lo", "hi"), 4),
    ("figure_6", "methods", ("method", "temperature", "metric", "value", "lo", "hi"), 4),
    ("figure_1c", "rows", ("method", "metric", "value", "lo", "hi"), 2),
    ("figure_training", "training", ("arm", "seed", "round", "metric", "value"), 4),
    ("figure_3", "models", ("model", "method", "value", "lo", "hi"), 4),
    ("figure_5", "rollouts", ("arm", "seed", "round", "metric", "value"), 4),
    ("figure_7", "sweeps", ("model", "family", "temperature", "metric", "value", "lo", "hi"), 12),
    ("figure_learning_rates", "rates", ("arm", "lr", "value", "lo", "hi"), 2),
]
OPTIONS = {
    "figure_5": {"baseline": {"pass@1": 20.0, "pass@32": 60.0}},
    "figure_learning_rates": {"untrained": {"Baseline at 1": 50.0}},
}


def _panels(fig: Figure) -> list:
    return [ax for ax in fig.axes if ax.get_visible()]


@pytest.mark.parametrize(("name", "fixture", "columns", "panels"), DRAWINGS)
def test_draws_and_saves(name, fixture, columns, panels, request, tmp_path):
    table = request.getfixturevalue(fixture)
    before = table.copy()
    draw = getattr(figures_scores, name, None) or getattr(figures_training, name)
    fig = figures.save_figure(draw, name, table, tmp_path, PROVENANCE, **OPTIONS.get(name, {}))
    assert isinstance(fig, Figure)
    assert len(_panels(fig)) == panels
    paths = sorted(tmp_path.iterdir())
    assert [p.name for p in paths] == [f"{name}.csv", f"{name}.pdf", f"{name}.png"]  # no scratch file
    pd.testing.assert_frame_equal(table, before)  # the caller's table is not touched
    pd.testing.assert_frame_equal(pd.read_csv(paths[0]), table, check_dtype=False)
    # A picture and its table are enough to draw it again, to the byte.
    assert figures.redraw(tmp_path, tmp_path / "again") == [name]
    assert all(p.read_bytes() == (tmp_path / "again" / p.name).read_bytes() for p in paths)


@pytest.mark.parametrize(("name", "fixture", "columns", "panels"), DRAWINGS)
def test_broken_tables_are_refused_by_column(name, fixture, columns, panels, request):
    table = request.getfixturevalue(fixture)
    draw = getattr(figures_scores, name, None) or getattr(figures_training, name)
    for column in columns:
        holed = table.astype({column: object})
        holed.loc[1, column] = None
        for broken in (table.drop(columns=column), holed):
            with pytest.raises(ValueError, match=f"^{name}: column '{column}'.*$") as error:
                draw(broken, **OPTIONS.get(name, {}))
            assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=f"^{name}: the table has no rows$"):
        draw(table.iloc[:0], **OPTIONS.get(name, {}))


def test_metadata_can_be_read_back(methods, tmp_path):
    figures.save_figure(figures_scores.figure_6, "figure_6", methods, tmp_path, PROVENANCE, measured="mine")
    png, pdf = tmp_path / "figure_6.png", tmp_path / "figure_6.pdf"
    record = {**PROVENANCE, "drawn_by": "figures_scores.figure_6", "options": {"measured": "mine"}}
    with Image.open(png) as image:
        assert image.text["Title"] == "figure_6"
        assert json.loads(image.text["Description"]) == record
        assert image.width == round(figures.PAGE * 200)
    raw = pdf.read_bytes()
    subject = re.search(rb"/Subject \((.*?[^\\])\)\s", raw, re.DOTALL)
    assert subject is not None
    assert json.loads(re.sub(rb"\\([()\\])", rb"\1", subject[1])) == record
    assert b"CreationDate" not in raw
    assert b"/FontFile2" in raw and b"/Type3" not in raw  # embedded TrueType


def test_same_table_same_bytes(sweep, tmp_path):
    for folder in ("one", "two"):
        figures.save_figure(figures_scores.figure_1a, "figure_1a", sweep, tmp_path / folder, PROVENANCE)
    for suffix in ("csv", "png", "pdf"):
        one, two = (tmp_path / f / f"figure_1a.{suffix}" for f in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), suffix


def test_redraw_takes_only_this_package_s_drawings(sweep, tmp_path):
    with pytest.raises(SeptError, match="no figures"):
        figures.redraw(tmp_path, tmp_path)
    figures.save_figure(figures_scores.figure_1a, "figure_1a", sweep, tmp_path, {})
    with Image.open(tmp_path / "figure_1a.png") as image:
        text = PngInfo()
        text.add_text("Description", json.dumps({"drawn_by": "os.system", "options": {}}))
        image.save(tmp_path / "figure_1a.png", pnginfo=text)
    with pytest.raises(SeptError, match="figure_1a.png.*name no drawing"):
        figures.redraw(tmp_path, tmp_path)
    text = PngInfo()
    text.add_text("Description", json.dumps({"drawn_by": "figures.figure_9z", "options": {}}))
    Image.new("RGB", (4, 4)).save(tmp_path / "figure_1a.png", pnginfo=text)
    with pytest.raises(SeptError, match="figure_1a.png.*cannot be drawn again.*figure_9z"):
        figures.redraw(tmp_path, tmp_path)


def test_every_committed_figure_is_drawn_again_from_its_table(tmp_path):
    """All of them, without computing anything, in a minute at most."""
    folder = Path(figures.__file__).parent.parent / "figures" / "laptop"
    started = time.process_time()
    names = figures.redraw(folder, tmp_path)
    assert time.process_time() - started <= 60
    assert set(names) == {p.stem for p in folder.glob("*.png")} and len(names) >= 11
    for name in names:
        assert (tmp_path / f"{name}.csv").read_bytes() == (folder / f"{name}.csv").read_bytes(), name
        with Image.open(tmp_path / f"{name}.png") as new, Image.open(folder / f"{name}.png") as old:
            assert new.size == old.size and new.text == old.text, name
            apart = np.abs(np.asarray(new.convert("L"), float) - np.asarray(old.convert("L"), float))
            assert apart.mean() < 2, f"{name} looks different"


def test_a_failed_write_keeps_the_old_file(sweep, tmp_path, monkeypatch):
    figures.save_figure(figures_scores.figure_1a, "figure_1a", sweep, tmp_path, PROVENANCE)
    old = {p: p.read_bytes() for p in sorted(tmp_path.iterdir())}

    def broken(_, path, **__):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(SeptError, match="make room there"):
        figures.save_figure(figures_scores.figure_1a, "figure_1a", sweep, tmp_path, PROVENANCE)
    assert {p: p.read_bytes() for p in sorted(tmp_path.iterdir())} == old


def test_colours_are_distinct_and_shared_by_variants():
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    assert figures.method_colour("SePT (annealed)") == figures.COLOURS["SePT"]
    assert figures.method_colour("SePT (Offline)") == figures.COLOURS["Offline"]
    assert figures.method_colour("Baseline (T chosen on dev)") == figures.COLOURS["Baseline"]
    assert figures.method_colour("mine") not in figures.COLOURS.values()
    assert not {*figures.SPARE} & {*figures.COLOURS.values()}, "what is no method has no method's colour"
    six = [figures_scores.FAMILY_STYLE[name] for name in (*published.BENCHMARKS, "Mean")]
    assert len({colour for colour, _ in six}) == len({marker for _, marker in six}) == 7


def test_variants_of_a_method_differ_in_dash(training):
    fig = figures_training.figure_training(training)
    lines = {
        label.split(" (3 seeds)")[0]: line
        for line, label in zip(*fig.axes[0].get_legend_handles_labels(), strict=True)
    }
    plain, variant = lines["SePT"], lines["SePT (annealed)"]
    assert plain.get_color() == variant.get_color()
    assert plain.get_linestyle() != variant.get_linestyle()


def test_legend_names_arms_that_the_first_panel_lacks(training):
    first = training["metric"] == "pass@1"
    fig = figures_training.figure_training(training[~(first & (training["arm"] == "GRPO"))])
    texts = [t.get_text() for t in fig.legends[0].get_texts()]
    assert texts == ["SePT (3 seeds)", "SePT (annealed) (3 seeds)", "GRPO (3 seeds)"]


def test_published_block_is_tinted_and_named(sweep, methods, rows):
    for fig in (
        figures_scores.figure_1a(sweep, "a small model"),
        figures_scores.figure_6(methods, "a small model"),
        figures_scores.figure_1c(rows, "a small model"),
    ):
        first, second = fig.subfigs
        assert re.match(r"measured:\s+a small model", first.get_suptitle())
        assert re.match(r"published:\s+Qwen2.5-Math-7B", second.get_suptitle())
        assert mcolors.to_hex(first.get_facecolor()) == "#ffffff"
        assert mcolors.to_hex(second.get_facecolor()) != "#ffffff"


def test_published_panel_draws_the_published_curve(sweep):
    fig = figures_scores.figure_1a(sweep)
    panel = fig.subfigs[1].axes[0]
    mean = next(line for line in panel.lines if line.get_label() == "Mean")
    expected = published.curve("1a", "left", "Mean")
    assert list(mean.get_xdata()) == expected["x"].tolist()
    assert list(mean.get_ydata()) == expected["y"].tolist()


def test_short_profiles_draw_their_largest_k(sweep):
    small = sweep[sweep["metric"].isin(["pass@1", "pass@8"])]
    assert [ax.get_title() for ax in figures_scores.figure_1a(small).subfigs[0].axes] == [
        "pass@1",
        "pass@8",
    ]
    with pytest.raises(ValueError, match="figure_1a: column 'metric' holds no 'pass@1'"):
        figures_scores.figure_1a(sweep[sweep["metric"] == "AVG"])


def test_bars_carry_the_gains_the_paper_prints(rows):
    texts = [t.get_text() for t in figures_scores.figure_1c(rows).subfigs[1].axes[0].texts]
    assert texts == ["22.7", "61.0", "43.7", "+16.8", "+6.9", "+11.3", "+21.1", "+10.6", "+15.4"]


def test_table_1(rows, tmp_path):
    html = tables.save_table(1, rows, tmp_path, "embedded <base> & co")
    latex = (tmp_path / "table_1.tex").read_text()
    assert html == (tmp_path / "table_1.html").read_text()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table_1.csv"), rows, check_dtype=False)
    assert "embedded &lt;base&gt; &amp; co" in html and r"embedded <base> \& co" in latex
    for text in (html, latex):
        assert "38.0 [36.0, 40.0] (+8.0)" in text  # measured: value, interval, gain
        assert "39.5 (+16.8)" in text  # published
        assert "36.6 (-0.2)" in text
    assert html.count("<tr") == 1 + 4 + 12
    tables.save_table(1, rows, tmp_path, "my\\model^2 ~x")
    assert (
        r"my\textbackslash{}model\textasciicircum{}2 \textasciitilde{}x"
        in (tmp_path / "table_1.tex").read_text()
    )
    paired = rows.assign(delta=7.5, delta_lo=6.5, delta_hi=8.5)
    assert "38.0 [36.0, 40.0] (+7.5 [+6.5, +8.5])" in tables.save_table(1, paired, tmp_path)
    with pytest.raises(ValueError, match="table_1: column 'lo' is missing"):
        tables.save_table(1, rows.drop(columns="lo"), tmp_path)
    with pytest.raises(ValueError, match="table_1: column 'method' holds no 'Baseline'"):
        tables.save_table(1, rows[rows["method"] == "SePT"], tmp_path)


@pytest.mark.parametrize("number", range(1, 13))
def test_every_committed_table_is_made_again_from_its_csv(number, tmp_path):
    folder = Path(figures.__file__).parent.parent / "figures" / "laptop"
    measured = pd.read_csv(folder / f"table_{number}.csv")
    tables.save_table(number, measured, tmp_path, "embedded base H, 0.3 M parameters")
    for suffix in ("html", "tex", "csv"):
        one, two = (f / f"table_{number}.{suffix}" for f in (tmp_path, folder))
        assert one.read_text() == two.read_text(), suffix


def test_tables_with_several_models_and_sets(rows, tmp_path):
    """Gains refer to each model's own baseline; differences of two sets carry a sign and no gain."""
    both = pd.concat([rows.assign(model="H"), rows.assign(model="I", value=rows["value"] + 1)])
    apart = rows[rows["method"] == "SePT"].assign(method="SePT (all minus additions)", model="H", value=2.0)
    html = tables.save_table(2, pd.concat([both, apart]), tmp_path)
    assert html.count("(+8.0)") == html.count("(+12.0)") == 8
    assert "+2.0 [36.0, 40.0]</td>" in html
    assert "SePT (DSR minus OTM)</td><td>-1.3</td>" in html and "SePT (OTM)</td><td>40.8 (+18.1)" in html
    assert html.count("<tr") == 1 + 9 + 14
    assert tables.save_table(6, both, tmp_path).count("<tr") == 1 + 8 + 5


def test_table_3_and_details(rows, tmp_path):
    tasks = rows[rows["metric"].isin(["pass@1", "AVG"])].replace(
        {"metric": {"pass@1": "rev", "AVG": "sort"}}
    )
    html = tables.save_table(3, tasks, tmp_path)
    assert "<th>sort</th>" in html and "<th>IFEval</th>" in html and html.count("<tr") == 1 + 4 + 1 + 3
    counts = pd.DataFrame({"id": ["a", "b"], "family": ["x", "y"], "n": [32, 32], "c": [4, 0]})
    detail = detail_table({"Baseline": [counts], "SePT": [counts, counts]})
    assert set(detail["metric"]) == {f"pass@{k}" for k in (1, 2, 4, 8, 16, 32)}
    value = detail.query("family == 'x' and metric == 'pass@2' and method == 'SePT'")["value"].item()
    assert value == pytest.approx(100 * (1 - 28 * 27 / (32 * 31)))
    printed = {7: 72, 8: 84, 9: 36, 10: 18, 11: 18, 12: 30}
    for number, count in printed.items():
        html = tables.save_table(number, detail, tmp_path)
        assert html.count("<tr") == 1 + 4 + 1 + count, number
