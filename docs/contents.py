"""Keep the notebooks, their index and the outputs that they are committed with in step.

    python docs/contents.py [--figures figures/laptop]

A notebook is written as text, notebooks/NAME.py. Its first cell says all that is known of it elsewhere: the
question, the answer, the figure, and a comment with `group`, `asks`, `paper` and `presets`. From that come
notebooks/NAME.ipynb, its line of costs, notebooks/README.md, notebooks/index.ipynb and the README's table.
Where --figures/notebooks holds an executed copy of the same code, its tables and printed numbers become the
committed outputs; pictures are named, not embedded. Outputs of other code than the present are dropped.
Numbers behind <!--laptop/NOTEBOOK:key--> here, in the README and in docs/ become those of figures/laptop/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupytext.combine import combine_inputs_with_outputs
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sept import plan  # noqa: E402
from sept.presets import find_preset  # noqa: E402

NOTEBOOKS = ROOT / "notebooks"
LAPTOP = ROOT / "figures" / "laptop"
GROUPS = {
    "start": "Start here",
    "theory": "Theory",
    "figures": "The paper's figures",
    "tables": "The paper's tables",
    "beyond": "Beyond the paper",
}
FORM = "py:percent"
LARGEST = 20_000  # characters of a table that is worth committing
HEAD = """# Notebooks

Each opens with a question, its answer in one sentence and a figure, all of profile `laptop`, and then shows
how it was made. Brackets hold 95% intervals. `make figures PROFILE=laptop` runs them all, and
`sept figures --profile quick --only 03` one at a smaller scale. This page is made by `make notebooks` from the
first cells of {} notebooks."""


@dataclass
class Head:
    """What the first cell of a notebook says. image: path relative to notebooks/, empty if it shows none."""

    name: str
    title: str
    question: str
    answer: str
    group: str
    asks: str
    paper: str
    presets: tuple[str, ...]
    alt: str
    image: str


def paths() -> list[Path]:
    """The notebooks as text, in order; the index is none of them."""
    return sorted(NOTEBOOKS.glob("[0-9]*.py"))


def head(name: str, source: str) -> Head:
    """Read a first cell. A notebook that names no group belongs to those beyond the paper."""
    index = dict(
        re.findall(r"^(\w+): (.*)$", (re.search(r"<!--index\n(.*?)-->", source, re.S) or [""])[0], re.M)
    )
    text = re.sub(r"<!--index.*?-->\n?", "", source, flags=re.S)

    def said(pattern: str) -> str:
        found = re.search(pattern, text, re.S)
        return " ".join(found[1].split()) if found else ""

    question = said(r"\*\*Question\.\*\*(.+?)(?:\n\n|\Z)")
    image = re.search(r"!\[(.*?)\]\((\S+?)\)", text, re.S)
    return Head(
        name,
        said(r"^# (.+?)\n"),
        question,
        said(r"\*\*Answer\.\*\*(.+?)(?:\n\n|\Z)"),
        group if (group := index.get("group")) in GROUPS else "beyond",
        index.get("asks", question),
        index.get("paper", ""),
        tuple(filter(None, re.split(r",\s*", index.get("presets", "")))),
        " ".join(image[1].split()) if image else "",
        image[2] if image else "",
    )


def heads() -> list[Head]:
    return [head(p.stem, jupytext.reads(renumbered(p.read_text()), FORM).cells[0].source) for p in paths()]


# --------------------------------------------------------------------------------------------- numbers

MARKED = re.compile(r"(<!--laptop/(\S+?):(.+?)-->\s*\**)([-+]?\d+(?:\.(\d+))?(e-?\d+)?)")


@cache
def record(notebook: str) -> Any:
    """What a notebook of profile laptop recorded."""
    return json.loads((LAPTOP / f"{notebook}.json").read_text())


def renumbered(text: str) -> str:
    """A text whose marked numbers are the recorded ones, each with the digits and the sign that it had."""

    def number(found: re.Match[str]) -> str:
        mark, notebook, key, shown, digits, power = found.groups()
        value = record(notebook)
        for part in key.split("/"):
            value = value[int(part)] if isinstance(value, list) else value[part]
        if abs(float(shown) - float(value)) <= 0.5001 * 10 ** -len(digits or "") and not power:
            return found[0]  # right as it stands, whichever way a half was rounded
        sign, kind = "+" if shown[0] == "+" else "", "e" if power else "f"
        new = f"{float(value):{sign}.{len(digits or '')}{kind}}"
        return mark + re.sub(r"e([-+])0*", lambda m: "e" + m[1].strip("+"), new)

    return MARKED.sub(number, text)


# ----------------------------------------------------------------------------------------------- costs


@cache
def measured() -> dict[str, Any]:
    """Core-minutes by profile and notebook, and what was measured of processor time and memory."""
    own = json.loads((ROOT / "docs" / "costs.json").read_text())
    return own | {"laptop": json.loads((LAPTOP / "minutes.json").read_text())}


@cache
def gpu_hours(preset: str) -> float:
    """Hours of one A800 for a published run and one evaluation of it, or for a sweep, on eight of them."""
    machine = plan.machines("A800", 8, None)[0]
    hours = plan.plan(find_preset(preset), machine, plan.LENGTH, plan.PROMPT)["hours"]
    return machine.gpus * (hours.get("total", hours["sampling"]) + hours.get("one evaluation", 0))


def cost(notebook: Head) -> str:
    """The line of costs: minutes by profile, memory where it was measured, hours at the paper's scale."""
    known, name = measured(), notebook.name
    parts = []
    for scale in ("laptop", "quick"):
        minutes, process = known[scale].get(name), known["processes"].get(f"{scale}/{name}", {})
        if minutes is None or not (minutes or process):  # 0: it trains and scores nothing
            continue
        told = f"{minutes or max(process['cpu_minutes'], 0.1):.1f}"
        memory = f" and {process['peak_gb']:.1f} GB of memory" if process else ""
        parts.append(f"{told} core-minutes{memory} in profile {scale}")
    parts = parts or ["not yet run in profile laptop"]
    if notebook.presets:
        hours, number = sum(map(gpu_hours, notebook.presets)), len(notebook.presets)
        planned = f"`sept plan`, {number} preset{'s' * (number > 1)}"
        parts.append(f"at the paper's scale about {hours:,.0f} A800-hours ({planned})")
    else:
        parts.append("nothing to run at the paper's scale")
    return f"*Cost.* {'; '.join(parts)}."


# --------------------------------------------------------------------------------------------- outputs


def code_of(notebook: NotebookNode) -> str:
    """Digest of the code cells, without what papermill injected."""
    code = [
        c.source
        for c in notebook.cells
        if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])
    ]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:12]


def finished(copy: NotebookNode) -> bool:
    """Whether papermill ran every cell, none of them to an error."""
    cells = [c for c in copy.cells if c.cell_type == "code"]
    return all(c.execution_count and not any(o.output_type == "error" for o in c.outputs) for c in cells)


def cleaned(cell: NotebookNode, profile: str) -> list[NotebookNode]:
    """A code cell's outputs as they are committed: no pictures, widgets, progress, counters or random names."""
    kept = []
    figures = re.findall(r'save_figure\(\s*[\w.]+,\s*"(\w+)"', cell.source)
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stdout":
            kept.append(nbformat.v4.new_output("stream", name="stdout", text=_stable(output.text)))
        if output.output_type not in ("display_data", "execute_result"):
            continue
        data = {k: _stable(v) for k, v in output.data.items() if k in ("text/plain", "text/html")}
        if "application/vnd.jupyter.widget-view+json" in output.data:
            continue
        if "image/png" in output.data:
            if not figures:
                continue
            name = figures.pop(0)
            data = {
                "text/markdown": f"![{name}](../figures/{profile}/{name}.png)",
                "text/plain": f"figures/{profile}/{name}.png",
            }
        if len(data.get("text/html", "")) > LARGEST:
            del data["text/html"]
        more = {"execution_count": None} if output.output_type == "execute_result" else {}
        kept.append(nbformat.v4.new_output(output.output_type, data=data, **more))
    return kept


def _stable(text: str) -> str:
    """Without names that differ from run to run (table ids, addresses of objects), nor formulas in tables."""
    text = text.replace("$R^2$", "R²")
    return re.sub(r" at 0x[0-9a-f]+", "", re.sub(r"\bT_[0-9a-f]{5}\b", "T_table", text))


def paired(text: str, own: Path, executed: Path, profile: str) -> NotebookNode:
    """The notebook of a text, with outputs from an executed copy of its code, else those of `own` that fit."""
    notebook = jupytext.reads(text, FORM)
    code = code_of(notebook)
    old = nbformat.read(own, as_version=4) if own.is_file() else None
    had = dict(old.metadata.get("sept", {})) if old is not None else {}
    if old is not None:
        notebook = combine_inputs_with_outputs(notebook, old, fmt={"extension": ".ipynb"})
        notebook.nbformat_minor = old.nbformat_minor
    for added in ("sept", "jupytext"):
        notebook.metadata.pop(added, None)
    sources = [c for c in notebook.cells if c.cell_type == "code"]
    copy = nbformat.read(executed, as_version=4) if executed.is_file() else None
    if copy is not None and code_of(copy) == code and finished(copy):
        done = [
            c
            for c in copy.cells
            if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])
        ]
        for cell, ran in zip(sources, done, strict=True):
            cell.outputs, cell.execution_count = cleaned(ran, profile), None
        notebook.metadata["sept"] = {"profile": profile, "code": code}
    elif had.get("code") == code:
        notebook.metadata["sept"] = had
    else:
        if any(c.outputs for c in sources):
            print(f"{own.stem}: its outputs were of other code and are dropped")
        for cell in sources:
            cell.outputs, cell.execution_count = [], None
    return notebook


# ----------------------------------------------------------------------------------------------- index


def thumbnail(notebook: Head) -> str:
    if not notebook.image:
        return ""
    alt = notebook.alt.replace('"', "&quot;")
    return f'<a href="{notebook.name}.ipynb"><img src="{notebook.image}" width="240" alt="{alt}"></a>'


def sections(found: list[Head]) -> list[str]:
    """A section per group: a row per notebook with thumbnail, question, answer and cost."""
    out = []
    for group, title in GROUPS.items():
        rows = []
        for n in (n for n in found if n.group == group):
            of = f" ({n.paper})" if n.paper else ""
            told = f"**[{n.title}]({n.name}.ipynb)**{of}<br>{n.question}<br>**Answer.** {n.answer}<br>{cost(n)}"
            told = re.sub(r"<!--.*?-->", "", told).replace("|", "\\|")
            rows.append(f"| {thumbnail(n)} | {told} |")
        if rows:
            out.append("\n".join([f"## {title}", "", "| | |", "|---|---|", *rows]))
    return out


def table(found: list[Head]) -> str:
    """The README's table of notebooks."""
    rows = [f"| [`{n.name}`](notebooks/{n.name}.ipynb) | {n.asks} | {n.paper} |" for n in found]
    return "\n".join(["| notebook | the question it answers | of the paper |", "|---|---|---|", *rows])


def with_cost(text: str, notebook: Head) -> str:
    """A notebook's text with its present line of costs; unchanged if it has no such line."""
    return re.sub(r"^# \*Cost\.\*.*$", lambda _: f"# {cost(notebook)}", text, count=1, flags=re.M)


def written(figures: Path) -> dict[Path, str]:
    """Every file that follows from the notebooks' texts, with what it should hold."""
    files: dict[Path, str] = {}
    found = heads()
    for path, own in zip(paths(), found, strict=True):
        files[path] = with_cost(renumbered(path.read_text()), own)
        target = path.with_suffix(".ipynb")
        notebook = paired(files[path], target, figures / "notebooks" / target.name, figures.name)
        files[target] = nbformat.writes(notebook) + "\n"
    parts = [HEAD.format(len(found)), *sections(found)]
    files[NOTEBOOKS / "README.md"] = "\n\n".join(parts) + "\n"
    cells = [nbformat.v4.new_markdown_cell(p, id=f"part-{i}") for i, p in enumerate(parts)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    index = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    files[NOTEBOOKS / "index.ipynb"] = nbformat.writes(index) + "\n"
    for guide in sorted((ROOT / "docs").glob("*.md")):
        files[guide] = renumbered(guide.read_text())
    readme = renumbered((ROOT / "README.md").read_text())
    files[ROOT / "README.md"] = re.sub(
        r"\| notebook \| the question it answers.*?(?=\n\n)",
        lambda _: table(found),
        readme,
        count=1,
        flags=re.S,
    )
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--figures", type=Path, default=LAPTOP, help="its notebooks/ may hold executed copies"
    )
    for path, text in written(parser.parse_args().figures.resolve()).items():
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
