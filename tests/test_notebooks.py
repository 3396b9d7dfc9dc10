"""What notebooks say of themselves: answers, costs, exercises, index, and outputs that belong to their code."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from math import log
from pathlib import Path

import numpy as np
import pytest
from conftest import recorded

from sept import sharpening, tabular
from sept.presets import names

pytest.importorskip("jupytext", reason="needs the notebooks extra: pip install 'sept[notebooks]'")

ROOT = Path(__file__).resolve().parent.parent
LAPTOP = ROOT / "figures" / "laptop"


def _contents():
    spec = importlib.util.spec_from_file_location("contents", ROOT / "docs" / "contents.py")
    sys.modules["contents"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


contents = _contents()
HEADS = {h.name: h for h in contents.heads()}
MARKED = [h for h in HEADS.values() if f"laptop/{h.name}:" in h.answer]
BOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def first(name):
    return "".join(json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"][0]["source"])


# ---------------------------------------------------------------------------------------------- openings


@pytest.mark.parametrize("name", HEADS)
def test_a_notebook_opens_with_question_answer_figure_and_cost(name):
    """In this order. Where there is a record of profile laptop, the answer holds its numbers."""
    head, text = HEADS[name], first(name)
    order = ["# ", "**Question.**", "**Answer.**", "](../figures/laptop/", "*Cost.*"]
    if not head.image:  # a table in the figure's place
        assert not any(
            (LAPTOP / f"{n}.png").is_file() for n in re.findall(r'save_figure\([\w.]+, "(\w+)"', text)
        )
        order[3] = "|---|"
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert head.title and head.question.endswith("?") or "?" in head.question
    assert len(re.findall(r"[.!?](?:\s+[A-Z]|$)", re.sub(r"<!--.*?-->|\(.*?\)", "", head.answer))) == 1, (
        head.answer
    )
    if (LAPTOP / f"{name}.json").is_file():
        assert head in MARKED, "its answer gives no recorded number"
    assert len(head.alt) > 60 or not head.image, "a text for those who cannot see the figure"
    assert set(head.presets) <= set(names())
    assert not re.search(r"^<!--(?!index)", text, re.M), "Markdown takes such a line for HTML"


def test_numbers_in_notebooks_are_those_of_the_committed_records():
    """As in the README: what stands behind <!--laptop/NOTEBOOK:key--> is that number, to its last digit."""
    found = 0
    for path in BOOKS:
        text = "\n".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"])
        marks = re.findall(r"<!--laptop/(\S+?):(.+?)-->([-+]?\d+(?:\.\d+)?(?:e-?\d+)?)", text)
        assert len(marks) == text.count("<!--laptop/"), f"{path.name}: a mark without its number behind it"
        for notebook, key, shown in marks:
            value, digits = (
                recorded("laptop", notebook, key),
                len(shown.partition("e")[0].partition(".")[2]),
            )
            size = 10.0 ** int(shown.partition("e")[2] or 0)
            assert abs(float(shown) - value) <= 0.5001 * 10**-digits * size, (path.name, key, shown, value)
            found += 1
    assert found >= 80


@pytest.mark.parametrize("name", [h.name for h in HEADS.values() if h.image])
def test_the_figure_at_the_top_is_the_notebooks_own(name):
    """Drawn by its code, in the profile that the answer speaks of."""
    from PIL import Image

    path = (ROOT / "notebooks" / HEADS[name].image).resolve()
    assert f'"{path.stem}"' in (ROOT / "notebooks" / f"{name}.py").read_text()
    with Image.open(path) as image:
        assert json.loads(image.text["Description"])["profile"] == "laptop"


# ----------------------------------------------------------------------------------------- costs, index


def test_everything_made_from_the_notebooks_is_up_to_date():
    """Lines of cost, notebooks beside their texts, the index and the README's table."""
    for path, text in contents.written(LAPTOP / "no executed copies here").items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)} is out of date: make notebooks"


def test_costs_are_what_was_measured_and_what_the_plan_says(monkeypatch):
    head = HEADS["03_main_result"]
    minutes = json.loads((LAPTOP / "minutes.json").read_text())["03_main_result"]
    said = contents.cost(head)
    assert f"{minutes:.1f} core-minutes" in said and "profile laptop" in said
    hours = sum(map(contents.gpu_hours, head.presets))
    assert f"{hours:,.0f} A800-hours" in said and "3 presets" in said
    # docs/real-models.md: 12.8 hours on eight cards for the run, 0.17 for its evaluation
    assert contents.gpu_hours("sept-qwen2.5-math-7b-dsr") == pytest.approx(8 * (12.8 + 0.17), rel=0.01)
    assert contents.gpu_hours("sweep-qwen2.5-math-7b") == pytest.approx(8 * 2.7, rel=0.03)
    assert "nothing to run" in contents.cost(HEADS["18_sharpening_family"])
    monkeypatch.setattr(contents, "measured", lambda: {"laptop": {}, "quick": {}, "processes": {}})
    assert "not yet run" in contents.cost(head)


def test_every_notebook_is_in_the_index_and_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    page = (ROOT / "notebooks" / "README.md").read_text()
    index = "".join(
        "".join(c["source"]) for c in json.loads((ROOT / "notebooks" / "index.ipynb").read_text())["cells"]
    )
    for name, head in HEADS.items():
        assert f"(notebooks/{name}.ipynb)" in readme, "make notebooks"
        for text in (page, index):
            assert f"({name}.ipynb)" in text and head.title in text
            assert not head.image or f'<img src="{head.image}"' in text
    assert [f"## {title}" for title in contents.GROUPS.values()][:4] == re.findall(r"^## .+$", page, re.M)[
        :4
    ]
    for target in re.findall(r'(?:\]\(|src="|href=")([^)"#:]+)[)"]', page):
        assert (ROOT / "notebooks" / target).is_file(), target


def test_a_notebook_that_says_little_is_indexed_all_the_same():
    head = contents.head("99_new", "# New\n\n**Question.** Why?\n\n**Answer.** Because.\n")
    assert (head.group, head.asks, head.image) == ("beyond", "Why?", "")
    (section,) = contents.sections([head])
    assert "Beyond the paper" in section and "[New](99_new.ipynb)" in section and "Because." in section
    assert "| [`99_new`](notebooks/99_new.ipynb) | Why? |  |" in contents.table([head])


# ---------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_code_and_committed_outputs_belong_together(path):
    """Outputs carry the digest of the code that made them, hold no pictures, and repeat the record."""
    import nbformat

    assert path.stat().st_size < 300_000
    book = nbformat.read(path, as_version=4)
    cells = [c for c in book.cells if c.cell_type == "code"]
    shown = [o for c in cells for o in c.outputs]
    if not shown:
        assert "sept" not in book.metadata
        return
    assert book.metadata["sept"] == {"profile": "laptop", "code": contents.code_of(book)}, "make notebooks"
    assert all(c.execution_count is None for c in cells)
    for output in shown:
        assert output.output_type != "error" and output.get("name") != "stderr"
        data = output.get("data", {})
        assert not any(kind.startswith(("image/", "application/")) for kind in data)
        for picture in re.findall(r"\]\((\S+?)\)", data.get("text/markdown", "")):
            assert (path.parent / picture).is_file()
    last = cells[-1].outputs[-1].data["text/plain"]
    if last.startswith("{"):
        known = json.loads((LAPTOP / f"{path.stem}.json").read_text())
        assert ast.literal_eval(last) == {
            k: v for k, v in known.items() if k != "notebook" and not isinstance(v, dict)
        }


def test_outputs_are_taken_from_copies_of_the_same_code_only(tmp_path, capsys):
    import nbformat

    text = '# %% [markdown]\n# # T\n\n# %%\nx = 1\nx\n\n# %%\nsave_figure(f.g, "fig", t)\n'
    own, copy = tmp_path / "7.ipynb", tmp_path / "copy.ipynb"
    v4 = nbformat.v4
    png = v4.new_output("display_data", {"image/png": "aGFsbG8=", "text/plain": "<Figure>"})
    widget = v4.new_output(
        "display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "w"}
    )
    html = '<style id="T_1a2b3"></style>' + "x"
    cells = [
        v4.new_code_cell("p = 2", execution_count=1, metadata={"tags": ["injected-parameters"]}),
        v4.new_code_cell(
            "x = 1\nx",
            execution_count=3,
            outputs=[
                v4.new_output("stream", name="stderr", text="slow"),
                v4.new_output(
                    "execute_result", {"text/plain": "<T at 0x7f00>", "text/html": html}, execution_count=3
                ),
                widget,
            ],
        ),
        v4.new_code_cell('save_figure(f.g, "fig", t)', execution_count=4, outputs=[png]),
    ]
    nbformat.write(v4.new_notebook(cells=cells), copy)
    made = contents.paired(text, own, copy, "laptop")
    one, two = (c for c in made.cells if c.cell_type == "code")
    assert [dict(o.data) for o in one.outputs] == [
        {"text/plain": "<T>", "text/html": '<style id="T_table"></style>x'}
    ]
    assert two.outputs[0].data["text/markdown"] == "![fig](../figures/laptop/fig.png)"
    assert made.metadata["sept"] == {"profile": "laptop", "code": contents.code_of(made)}
    nbformat.write(made, own)

    cells[-1].execution_count = None  # papermill is still at it
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "unfinished.ipynb")
    assert not contents.finished(nbformat.read(tmp_path / "unfinished.ipynb", as_version=4))

    prose = text.replace("# # T", "# # Another title")  # prose may change
    kept = contents.paired(prose, own, tmp_path / "none.ipynb", "laptop")
    assert kept.cells[1].outputs and "Another" in kept.cells[0].source
    for executed in (copy, tmp_path / "none.ipynb"):  # code may not
        dropped = contents.paired(text.replace("x = 1", "x = 2"), own, executed, "laptop")
        assert not any(c.get("outputs") for c in dropped.cells) and "sept" not in dropped.metadata
    assert "dropped" in capsys.readouterr().out


def test_marked_numbers_become_the_recorded_ones(monkeypatch):
    record = {"a": [14.346, -3.2], "b c": 7.31e-6, "n": 5, "half": 0.125}
    monkeypatch.setattr(contents, "record", lambda notebook: {"03": record}[notebook])
    for before, after in (
        ("**<!--laptop/03:a/0-->+9.9**", "**<!--laptop/03:a/0-->+14.3**"),
        ("<!--laptop/03:a/0-->9 [", "<!--laptop/03:a/0-->14 ["),
        ("<!--laptop/03:a/1-->+1.00,", "<!--laptop/03:a/1-->-3.20,"),
        ("<!--laptop/03:b c-->6.1e-6", "<!--laptop/03:b c-->7.3e-6"),
        ("<!--laptop/03:n--> 4 seeds. 3", "<!--laptop/03:n--> 5 seeds. 3"),
        ("<!--laptop/03:half-->0.13 or <!--laptop/03:half-->0.12", None),  # either way of rounding stays
        ("<!--quick/03:n-->4 and 4.4", None),
    ):
        assert contents.renumbered(before) == (after or before)


# -------------------------------------------------------------------------------------------- exercises


def test_answers_of_the_exercises_are_right():
    """Each number behind <!--exercise:NAME--> is computed here, to its last digit."""
    printed = {}
    for name in (
        "01_theorem_exact",
        "16_theorem_on_language_models",
        "17_margin_dynamics",
        "18_sharpening_family",
        "21_when_it_helps",
    ):
        text = (ROOT / "notebooks" / f"{name}.py").read_text()
        asked = text.partition("## Exercises")[2]
        assert 2 <= asked.count("<details><summary>Answer</summary>") == asked.count("</details>") <= 5
        printed |= dict(re.findall(r"<!--exercise:(.+?)-->([0-9.]+[0-9]|[0-9]+)", asked))
    z, right = np.array([2.0, 1.0, 0.0]), {}
    q = tabular.token_probs(z, 0.5)
    right["first token before"], right["first token after"] = tabular.token_probs(z, 1.0)[0], q[0]
    amplified = tabular.amplified_logits(z[None], 0.5, 1.0)[0]
    assert tabular.token_probs(amplified, 1.0)[0] == pytest.approx(q[0])
    right["rounds needed"] = log(2) / log(1.25)
    right["rounds"] = np.ceil(right["rounds needed"])
    right["annealed product"] = np.prod([1 / (0.6 + 0.4 * r / 6) for r in range(6)])
    right["first token, truncated"] = tabular.token_probs(z, 0.5, top_k=2)[0]
    right["q3"], right["never drawn"] = q[2], (1 - q[2]) ** 100
    right["draws needed"] = np.ceil(log(0.01) / np.log1p(-q[2]))

    new, q = np.array([3.4, 1.6, 0.4]), tabular.token_probs(z, 0.6)
    right["weighted slope"] = tabular.weighted_slope(np.ones(1), q[None], z[None], new[None])
    right["off"] = 100 * (1 - right["weighted slope"] * 0.6)
    right["plain slope"] = np.polyfit(z, new, 1)[0]
    right["share on other questions"] = (
        recorded("laptop", "16_theorem_on_language_models", "other at 0.6") - 1
    ) / (1 / 0.6 - 1)
    import torch

    near = torch.tensor(10.0, dtype=torch.bfloat16)
    spacing = float(torch.nextafter(near, torch.tensor(16.0, dtype=torch.bfloat16)) - near)
    right["bf16 spacing"], right["bf16 error"] = spacing, spacing / 2
    right["bf16 slope 10"], right["bf16 slope 1"] = 100 * spacing / 10, 100 * spacing

    share = recorded("laptop", "17_margin_dynamics", "share of a round attained")
    right["one round"] = 1 + share * (1 / 0.6 - 1)
    right["120 rounds"] = right["one round"] ** 120
    right["rounds for one"] = np.ceil(log(1 / 0.6) / log(right["one round"]))
    for arm in ("EM-FT", "SePT"):
        right[f"{arm} temperature"] = 1 / recorded("laptop", "17_margin_dynamics", f"{arm} slope")

    p = np.log([0.5, 0.3, 0.2])[None]
    one = tabular.build_tree(3, 1)
    right |= {f"power {i}": v for i, v in enumerate(sharpening.power(one, p, 2.0), 1)}
    assert sharpening.tempered(one, p, 2.0) == pytest.approx(sharpening.power(one, p, 2.0))
    answers = np.array([0.3, 0.3, 0.36, 0.04])  # a and b, each with two ends
    right["power bc"] = answers[2] ** 2 / (answers**2).sum()
    right["tempered bc"] = (
        tabular.token_probs(np.log([0.6, 0.4]), 0.5)[1] * tabular.token_probs(np.log([0.9, 0.1]), 0.5)[0]
    )
    right["two of three"], right["all different"] = 3 * 0.4**2 * 0.6 + 0.4**3, 6 * 0.4 * 0.35 * 0.25 / 3
    right["majority of 3"] = sharpening.majority_of(np.array([0.40, 0.35, 0.25]), 3)[0]
    right["best of n"] = np.ceil(log(0.01) / log(1 - answers[2]))

    from scipy.optimize import brentq
    from scipy.special import expit
    from scipy.stats import norm

    def pull(a, tau):  # of a small shared margin, where own parts are a and -a
        return expit(a / tau) * expit(-a / tau) / tau

    right["cold camps"] = brentq(lambda a: pull(a, 0.6) - pull(a, 1.0), 1, 4)
    right["questions of a type"] = np.round((norm.ppf(0.95) / 0.3) ** 2)
    assert printed.keys() == right.keys()
    for name, shown in printed.items():
        assert abs(float(shown) - right[name]) <= 0.5001 * 10 ** -len(shown.partition(".")[2]), (
            name,
            right[name],
        )
