"""Render the gallery: notebooks, figures, claims, guides and docstrings as pages that work offline.

    python docs/gallery.py [--figures figures/laptop] [--out site]

Nothing is computed here. A notebook's page is its text and code from notebooks/, with the figures and
tables that it saved in --figures, and with everything else it showed if --figures/notebooks holds its
executed copy. Formulas become MathML, so no script and no font has to be fetched to read them. A link to
something that does not exist is an error.
"""

from __future__ import annotations

import argparse
import ast
import html
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parent.parent
THEME = Path(__file__).resolve().parent / "theme"
sys.path[:0] = [str(ROOT), str(THEME.parent)]

import contents  # noqa: E402

NAV = {
    "index": "Notebooks",
    "claims": "Claims",
    "figures": "Figures",
    "guides": "Guides",
    "api": "Reference",
}
GUIDES = {
    "README.md": "readme",
    "docs/beside-other-methods.md": "beside-other-methods",
    "docs/traps.md": "traps",
    "docs/your-own.md": "your-own",
    "docs/troubleshooting.md": "troubleshooting",
    "docs/real-models.md": "real-models",
    "docs/regime-map.md": "regime-map",
    "docs/hypotheses.md": "hypotheses",
    "docs/hypotheses-map.md": "hypotheses-map",
    "docs/hypotheses-causes.md": "hypotheses-causes",
    "docs/faults.md": "faults",
    "SECURITY.md": "security",
    "RESULTS.md": "results",
    "CONTRIBUTING.md": "contributing",
    "tests/README.md": "tests",
    "CHANGELOG.md": "changelog",
}
THUMBNAIL = 560  # pixels across

esc = html.escape


@dataclass
class Page:
    """One page. name: of its file, without .html; part: the entry of the menu that it belongs to."""

    name: str
    title: str
    body: str
    part: str
    question: str = ""
    head: contents.Head | None = None
    figures: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)


# ----------------------------------------------------------------------------------------------- text


class Text:
    """Markdown to HTML with formulas, coloured code and links that lead to pages of this site."""

    def __init__(self, site: Site, source: Path, markup: bool = True) -> None:
        self.site, self.source = site, source
        md = MarkdownIt("commonmark", {"html": markup, "highlight": coloured}).enable("table")
        md.use(dollarmath_plugin, renderer=formula, double_inline=True, allow_digits=False)
        md.use(anchors_plugin, max_level=4)
        self.md = md

    def html(self, text: str) -> str:
        text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
        text = re.sub(r"(?m)(^>>> .*(?:\n\S.*)*)", r"```python\n\1\n```", text)  # doctests
        tokens = self.md.parse(text)
        for token in tokens:
            for child in [token, *(token.children or [])]:
                for attribute in ("href", "src"):
                    if target := child.attrGet(attribute):
                        child.attrSet(attribute, self.site.link(str(target), self.source))
        out = tidy(self.md.renderer.render(tokens, self.md.options, {}))
        out = re.sub(
            r'<div class="math inline">(.*?)</div>', r"\1", out, flags=re.S
        )  # it may stand inside a <p>
        out = re.sub(r'<h1 id="[^"]*">', "<h1>", out)
        out = re.sub(r"(<table.*?</table>)", r'<div class="scroll" tabindex="0">\1</div>', out, flags=re.S)
        return re.sub(r"<a\b.*?</a>|<code>([\w./-]+)</code>", self._named, out, flags=re.S)

    def _named(self, match: re.Match[str]) -> str:
        """Code that names a page or a file of the package is a link to it, unless it stands in a link."""
        url = self.site.place(match[1] or "")
        return f'<a href="{url}">{match[0]}</a>' if url else match[0]


def formula(latex: str, options: dict[str, Any]) -> str:
    """A formula as MathML, with its source for people who copy it."""
    latex = re.sub(r"(\\log|\\exp)\s+(?=[\\\w])", r"\1\\,", latex)
    made = convert(latex, display="block" if options["display_mode"] else "inline")
    made = made.replace("<math ", f'<math alttext="{esc(" ".join(latex.split()))}" ', 1)
    return f'<span class="formula" tabindex="0">{made}</span>' if options["display_mode"] else made


def math_font(used: set[str]) -> bytes:
    """STIX Two Math cut to the characters in use: without such a font browsers cannot place a subscript."""
    import ziamath
    from fontTools import subset, ttLib

    font = ttLib.TTFont(Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf")
    options = subset.Options(layout_features=["ssty", "math"], hinting=False, notdef_outline=True)
    cut = subset.Subsetter(options)
    # A browser takes a single letter in a formula from the mathematical italics.
    cut.populate(
        unicodes=[ord(c) for c in used] + [*range(0x1D434, 0x1D468), 0x210E, *range(0x1D6FC, 0x1D71C)]
    )
    cut.subset(font)
    font.flavor = "woff"
    made = io.BytesIO()
    font.save(made)
    return made.getvalue()


def coloured(code: str, language: str, _: str = "") -> str:
    """Code as HTML; what has no lexer stays plain."""
    try:
        lexer = get_lexer_by_name({"sh": "bash"}.get(language, language or "text"), stripnl=False)
    except ClassNotFound:
        return ""
    return highlight(code, lexer, HtmlFormatter(nowrap=True)).rstrip("\n")


def code_block(code: str, language: str = "python") -> str:
    return f'<pre tabindex="0"><code>{coloured(code, language)}</code></pre>'


# ------------------------------------------------------------------------------------------- artefacts


@cache
def record(path: Path) -> dict[str, Any]:
    """What a figure was made with, from its own metadata; {} if it holds none."""
    with Image.open(path) as image:
        return json.loads(getattr(image, "text", {}).get("Description", "{}"))


def docstring(drawn_by: str) -> str:
    """First sentence of a drawing function's docstring."""
    module, _, name = drawn_by.partition(".")
    try:
        told = inspect.getdoc(getattr(import_module(f"sept.{module}"), name)) or ""
    except (ImportError, AttributeError):
        return ""
    return " ".join(told.split("\n\n")[0].split())


def spoken(told: str) -> str:
    """A line of a docstring as HTML, `code` in it marked."""
    return MarkdownIt("commonmark", {"html": False}).renderInline(told)


def tidy(text: str) -> str:
    """HTML without empty heads of tables and without the borders and alignment that pandas brings."""
    text = re.sub(r' (?:border="1"|style="text-align: \w+;")', "", text)
    return re.sub(r"<th[^>]*>(?:&nbsp;)?</th>", "<td></td>", text)


def in_words(name: str) -> str:
    """`figure_1c` as `Figure 1c`, `theorem_margins` as `Theorem margins`."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def plural(verdict: str) -> str:
    """A verdict as said of several claims."""
    return verdict.replace("holds", "hold").replace("does not", "do not")


def number(value: Any) -> str:
    """A recorded number for people: an interval for three, four figures for one."""
    if isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) for v in value):
        middle, low, high = (number(v) for v in value)
        return f"{middle} [{low}, {high}]"
    if isinstance(value, list):
        return ", ".join(number(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Site:
    """All pages, and where each file of the repository is found on them."""

    def __init__(self, figures: Path, out: Path) -> None:
        self.source, self.out, self.profile = figures, out, figures.name
        self.pages: list[Page] = []
        self.seen = json.loads((THEME.parent / "alts.json").read_text())
        self.seen |= {Path(h.image).stem: h.alt for h in contents.heads() if h.image}
        self.index: list[tuple[str, str, str, str]] = []
        self.notebooks = [p.with_suffix(".ipynb") for p in contents.paths()]
        self.modules = [p for p in sorted((ROOT / "sept").glob("*.py")) if p.name != "__main__.py"]
        self.places = {f"notebooks/{p.name}": f"{p.stem}.html" for p in self.notebooks}
        self.places |= {f"notebooks/{p.stem}.py": f"{p.stem}.html" for p in self.notebooks}
        self.places |= {p.stem: f"{p.stem}.html" for p in self.notebooks}
        self.places |= {"notebooks/README.md": "index.html", "notebooks/index.ipynb": "index.html"}
        self.places |= {f"sept/{p.name}": f"api-{p.stem.strip('_')}.html" for p in self.modules}
        self.places |= {f: f"{name}.html" for f, name in GUIDES.items() if (ROOT / f).is_file()}

    def _read(self, name: str) -> str:
        path = self.source / name
        return path.read_text() if path.is_file() else ""

    # --- links

    def place(self, name: str) -> str | None:
        """The page of a file of the repository or of a notebook's name."""
        return self.places.get(name)

    def link(self, target: str, source: Path) -> str:
        """A link of `source` as one of this site. SystemExit if it leads nowhere."""
        if re.match(r"[a-z]+:|#", target):
            return target
        name, hash_, anchor = target.partition("#")
        path = Path(os.path.normpath(source.parent / name))
        if not path.exists() or not path.is_relative_to(ROOT):
            raise SystemExit(
                f"gallery: {source.relative_to(ROOT)} links to {target!r}, which does not exist"
            )
        inside = path.relative_to(ROOT).as_posix()
        if (page := self.place(inside)) is None:
            if path.is_dir():
                return "index.html"
            folder = "figures" if path.parent == self.source else "files"
            page = f"{folder}/{path.name}"
            self._copy(path, page)
        return page + hash_ + anchor

    def _copy(self, path: Path, place: str) -> None:
        target = self.out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".png":
            shutil.copyfile(path, target)
            return
        with Image.open(path) as image:  # 256 colours show no difference and take half the room
            told = PngInfo()
            for key, text in getattr(image, "text", {}).items():
                told.add_text(key, text)
            few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            few.save(target, optimize=True, pnginfo=told)

    # --- figures and tables

    def figure(self, name: str, heading: bool = False) -> str:
        """A saved figure with its caption; nothing if this profile has not drawn it.

        What is seen in it is read out where it cannot be seen: a notebook's first cell says so of the figure at
        its top, docs/alts.json of the others.
        """
        path = self.source / f"{name}.png"
        if not path.is_file():
            return ""
        files = [
            f"{name}.{kind}" for kind in ("png", "pdf", "csv") if (self.source / f"{name}.{kind}").is_file()
        ]
        for file in files:
            self._copy(self.source / file, f"figures/{file}")
        made = record(path)
        told, measured = docstring(made.get("drawn_by", "")), made.get("options", {}).get("measured", "")
        with Image.open(path) as image:
            width, height = image.size
        alt = f"{in_words(name)}: {told or 'a drawing'}{f' Measured: {measured}.' if measured else ''}"
        alt = self.seen.get(name, alt.replace("`", ""))
        links = " ".join(f'<a href="figures/{f}">{f.rpartition(".")[2].upper()}</a>' for f in files)
        return (
            f'<figure id="{name}"><a href="figures/{name}.png"><img src="figures/{name}.png" alt="{esc(alt)}" '
            f'width="{width // 2}" height="{height // 2}" loading="lazy"></a>'
            f"<figcaption><b>{esc(in_words(name))}.</b> {spoken(told)} {links}"
            f"{self.provenance(made) if heading else ''}</figcaption></figure>"
        )

    def table(self, name: str) -> str:
        """A saved table, published rows tinted; nothing if this profile has not made it."""
        text = self._read(f"{name}.html")
        if not text:
            return ""
        files = [
            f"{name}.{kind}"
            for kind in ("csv", "tex", "html")
            if (self.source / f"{name}.{kind}").is_file()
        ]
        for file in files:
            self._copy(self.source / file, f"figures/{file}")
        text = tidy(re.sub(r'<tr style="[^"]*">', '<tr class="published">', text))
        links = " ".join(f'<a href="figures/{f}">{f.rpartition(".")[2].upper()}</a>' for f in files)
        return (
            f'<figure id="{name}"><div class="scroll numbers" tabindex="0">{text}</div>'
            f"<figcaption><b>{esc(in_words(name))}</b>, measured above published. {links}</figcaption></figure>"
        )

    def provenance(self, made: dict[str, Any], extra: dict[str, Any] | None = None) -> str:
        """What something was made with, as a list of names and values."""
        shown = {k: v for k, v in made.items() if k not in ("options", "drawn_by")} | (extra or {})
        if not shown:
            return ""
        versions = shown.pop("versions", {})
        shown |= {"versions": ", ".join(f"{k} {v}" for k, v in versions.items())} if versions else {}
        rows = "".join(
            f"<dt>{esc(k)}</dt><dd>{esc(', '.join(map(str, v)) if isinstance(v, list) else str(v))}</dd>"
            for k, v in sorted(shown.items())
        )
        return f'<details class="provenance"><summary>Provenance</summary><dl>{rows}</dl></details>'

    # --- pages

    def notebook(self, path: Path) -> Page:
        """The page of a notebook."""
        cells = json.loads(path.read_text())["cells"]
        outputs, from_ = self._outputs(path)
        text, head = Text(self, path), contents.head(path.stem, "".join(cells[0]["source"]))
        page = Page(path.stem, head.title, "", "index", head=head)
        page.question = text.md.renderInline(head.question)
        top, body = Path(head.image).stem, []
        for number_, (cell, shown) in enumerate(zip(cells, outputs, strict=True)):
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown" and number_ == 0:
                before, image, after = re.split(r"(!\[.*?\]\(\S+?\)|\Z)", source, maxsplit=1, flags=re.S)
                drawn = self.figure(top) or text.html(image)
                body += [text.html(before), drawn, text.html(after)]
                body.append(f'<p class="quiet"><code>notebooks/{path.name}</code></p>')
                page.figures += [top] if self._has(f"{top}.png") else []
                continue
            if cell["cell_type"] == "markdown":
                body.append(text.html(source))
                continue
            lines = source.count("\n") + 1
            block = code_block(source)
            if lines > 4:
                block = f"<details><summary>Code, {lines} lines</summary>{block}</details>"
            body.append(block)
            figures = re.findall(r'save_figure\(\s*[\w.]+,\s*"(\w+)"', source)
            tables = [f"table_{n}" for n in re.findall(r"save_table\((\d+)", source)]
            at_top = f'<p class="quiet">The figure <a href="#{top}">at the top</a>.</p>'
            body += [at_top if name == top else self.figure(name) for name in figures]
            body += [self.table(name) for name in tables]
            page.figures += [n for n in figures if n != top and self._has(f"{n}.png")]
            page.tables += [n for n in tables if (self.source / f"{n}.html").is_file()]
            body += self._shown(page, shown, saved=bool(figures or tables))
        body += [self._numbers(path.stem), self._made(page, from_)]
        page.body = "\n".join(filter(None, body))
        return page

    def _outputs(self, path: Path) -> tuple[list[list[dict]], str]:
        """Outputs of each cell and where they are from: an executed copy of this very code, or the notebook."""
        own = json.loads(path.read_text())
        copy = self.source / "notebooks" / path.name
        if copy.is_file():
            done = [
                c
                for c in json.loads(copy.read_text())["cells"]
                if "injected-parameters" not in c["metadata"].get("tags", [])
            ]
            if ["".join(c["source"]) for c in done] == ["".join(c["source"]) for c in own["cells"]]:
                return [c.get("outputs", []) for c in done], "an executed copy of this code"
        if own["metadata"].get("sept", {}).get("profile") == self.profile:
            return [c.get("outputs", []) for c in own["cells"]], "committed with this code"
        return [[] for _ in own["cells"]], ""

    def _shown(self, page: Page, outputs: list[dict], saved: bool) -> Iterable[str]:
        """What a cell showed, apart from the figure or table that it saved."""
        for output in outputs:
            data = output.get("data", {})
            if output["output_type"] == "stream" and output["name"] == "stdout":
                yield f'<pre class="output" tabindex="0">{esc("".join(output["text"]))}</pre>'
            elif saved or "application/vnd.jupyter.widget-view+json" in data:
                continue
            elif "text/html" in data:
                table = tidy("".join(data["text/html"]))
                yield f'<div class="scroll numbers" tabindex="0">{table}</div>'
            elif "text/plain" in data and "image/png" not in data:
                yield f'<pre class="output" tabindex="0">{esc("".join(data["text/plain"]))}</pre>'

    def _numbers(self, name: str) -> str:
        """The notebook's headline numbers."""
        recorded = json.loads(self._read(f"{name}.json") or "{}")
        rows = [(k, v) for k, v in recorded.items() if k not in ("notebook", "claims", "provenance")]
        if not rows:
            return ""
        cells = "".join(f"<tr><th>{esc(k)}</th><td>{esc(number(v))}</td></tr>" for k, v in rows)
        return (
            "<h2>Its numbers</h2><p>What the notebook recorded; brackets are 95% intervals.</p>"
            f'<div class="scroll numbers" tabindex="0"><table><tbody>{cells}</tbody></table></div>'
        )

    def _made(self, page: Page, from_: str) -> str:
        made = record(self.source / f"{page.figures[0]}.png") if page.figures else {}
        extra = {"profile": self.profile}
        if changed := commit_of(self.source / f"{page.name}.json"):
            extra["numbers recorded in"] = changed
        extra["cell outputs"] = (
            from_ or "only what the notebook saved: no executed copy of this code is at hand"
        )
        return self.provenance(made, extra)

    def claims(self) -> Page:
        """Every claim of the paper: published beside measured, and the verdict."""
        from sept.claims import claims_table

        style = {"holds here": "holds", "does not hold here": "fails"}
        rows, count = [], {}
        for row in claims_table(self.source):
            count[row["verdict"]] = count.get(row["verdict"], 0) + 1
            published = "-" if row["published"] is None else f"{row['published']:+.1f}"
            value = "-"
            if row["value"] is not None:
                value = f"{row['value']:+.3g} <span class=line>[{row['lo']:.3g}, {row['hi']:.3g}]</span>"
            rule = f"{row['statistic']}; holds if {row['rule']}"
            rule += ", a rule written before any number was seen" if row["rule_first"] else ""
            rows.append(
                f"<tr><td>{esc(row['text'])}<br><span class=quiet>{esc(rule)}</span></td>"
                f"<td>{published}<br><span class=quiet>{esc(row['source'])}</span></td>"
                f"<td class=measured>{value}</td>"
                f'<td class="verdict {style.get(row["verdict"], "undecided")}">{esc(row["verdict"])}</td>'
                f'<td><a href="{row["notebook"]}.html">{row["notebook"][:3].rstrip("_")}</a></td></tr>'
            )
        told = ", ".join(f"{n} {verdict if n == 1 else plural(verdict)}" for verdict, n in count.items())
        body = (
            f"<h1>The paper's claims</h1><p class=lead>{len(rows)} claims, each with a rule that turns an "
            f"interval into a verdict: {told}.</p><p>Published numbers are the paper's, on Qwen2.5-Math-7B "
            "unless the source says otherwise; measured ones are of the embedded base with 95% intervals, in "
            "points of a score unless the statistic says otherwise. They are compared in sign and shape, not "
            "in size.</p>"
            '<div class="scroll numbers claims" tabindex="0"><table><thead><tr><th>claim</th><th>published</th>'
            "<th>measured</th><th>verdict</th><th>notebook</th></tr></thead><tbody>"
            + "".join(rows)
            + "</tbody></table></div>"
            + self.figure("claims")
            + self.provenance(record(self.source / "claims.png") if self._has("claims.png") else {})
        )
        return Page("claims", "The paper's claims", body, "claims", question=told, figures=["claims"])

    def _has(self, name: str) -> bool:
        return (self.source / name).is_file()

    def all_figures(self) -> Page:
        """Every figure and table of the profile, each with its provenance and its notebook."""
        where = {name: page for page in self.pages for name in page.figures + page.tables}
        body = [
            f"<h1>Figures and tables</h1><p class=lead>Everything that the notebooks drew in profile "
            f"<code>{self.profile}</code>. Each picture is a function of the CSV beside it alone.</p>"
        ]
        names = sorted(p.stem for p in self.source.glob("*.png"))
        names += sorted((p.stem for p in self.source.glob("table_*.html")), key=lambda n: int(n[6:]))
        for name in names:
            page = where.get(name)
            from_ = (
                f'<p class=quiet>From <a href="{page.name}.html">{esc(page.title)}</a></p>' if page else ""
            )
            shown = self.figure(name, heading=True) or self.table(name)
            body.append(f'<h2 id="at-{name}">{esc(in_words(name))}</h2>{from_}{shown}')
        return Page("figures", "Figures and tables", "\n".join(body), "figures")

    def guides(self) -> list[Page]:
        """The Markdown files of the repository."""
        pages, items = [], []
        for file, name in GUIDES.items():
            path = ROOT / file
            if not path.is_file():
                continue
            text = path.read_text()
            title = re.search(r"^# (.+)$", text, re.M)[1]  # type: ignore[index]
            made = self.provenance({}, origin(path))
            pages.append(Page(name, title, Text(self, path).html(text) + made, "guides"))
            first = next((p for p in text.split("\n\n") if p[:1].isalpha()), "")
            told = " ".join(re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", first).split())
            items.append(
                f'<li><a href="{name}.html">{esc(title)}</a><br><span class=quiet>{esc(told)}</span></li>'
            )
        body = f"<h1>Guides</h1><ul>{''.join(items)}</ul>"
        return [Page("guides", "Guides", body, "guides"), *pages]

    def api(self) -> list[Page]:
        """Reference of the package, read from its source."""
        pages, rows = [], []
        for path in self.modules:
            tree = ast.parse(path.read_text())
            text = Text(self, path, markup=False)
            name, told = path.stem.strip("_"), ast.get_docstring(tree) or ""
            title = f"sept.{path.stem}" if path.stem != "__init__" else "sept"
            body = [f"<h1><code>{title}</code></h1>", text.html(told), *members(tree, text)]
            listing = code_block(path.read_text())
            body.append(f"<details><summary>Source of sept/{path.name}</summary>{listing}</details>")
            body.append(self.provenance({}, origin(path)))
            pages.append(Page(f"api-{name}", title, "\n".join(body), "api"))
            first = spoken(told.split("\n\n")[0].replace("\n", " "))
            rows.append(
                f'<li><a href="api-{name}.html"><code>{title}</code></a><br>'
                f"<span class=quiet>{first}</span></li>"
            )
        body = (
            "<h1>Reference</h1><p class=lead>Every public function and class, from its docstring. Begin with "
            '<a href="api-loop.html">sept.loop</a> beside Algorithm 1 of the paper.</p>'
            f"<ul>{''.join(rows)}</ul>"
        )
        return [Page("api", "Reference", body, "api"), *pages]

    def front(self, verdicts: str) -> Page:
        """The front page: what this is, and a card per notebook."""
        cards: dict[str, list[str]] = {group: [] for group in contents.GROUPS}
        for page in self.pages:
            if page.head is None:
                continue
            image, text = "", Text(self, ROOT / "notebooks" / "x.ipynb")
            if page.figures:
                kind = " class=tall" if self._thumbnail(page.figures[0]) else ""
                alt = esc(page.head.alt or in_words(page.figures[0]))
                image = f'<img src="thumbnails/{page.figures[0]}.png"{kind} alt="{alt}" loading="lazy">'
            elif page.tables:  # the beginning of its table, small; its text is on the page itself
                rows = re.split(r"(?=<tr)", tidy(self._read(f"{page.tables[0]}.html")))[:10]
                small = re.sub(r' style="[^"]*"', "", "".join(rows))
                image = f'<div class="tile" aria-hidden="true">{small}</table></div>'
            told = (f"**Answer.** {page.head.answer}", contents.cost(page.head))
            said = [text.html(part) for part in told]
            extra = f" ({page.head.paper})" * bool(page.head.paper)
            cards[page.head.group].append(
                f'<li>{image}<div class=text><h3><a href="{page.name}.html">{esc(page.title)}</a>{extra}</h3>'
                f"<p>{page.question}</p>{said[0]}<div class=quiet>{said[1]}</div></div></li>"
            )
        shelves = "".join(
            f'<h2 id="{group}">{contents.GROUPS[group]}</h2><ul class=cards>{"".join(found)}</ul>'
            for group, found in cards.items()
            if found
        )
        body = (
            "<h1>sept: a language model improves on nothing but its own answers</h1><p class=lead>SePT draws "
            "answers from the current model at a low temperature, fine-tunes it on them as if they were right, "
            "and repeats. No reward, no verifier, no labels. Here it is measured on a model that fits a "
            "laptop, claim by claim beside the paper's numbers.</p>"
            f"{self.figure('figure_1c')}"
            f'<p>Of the paper\'s claims, {esc(verdicts)}: <a href="claims.html">all with their rules</a>'
            ". Measured is the embedded base H, not a 7 B model; "
            '<a href="readme.html">the README</a> says how to run it.</p>'
            f'<div id="notebooks">{shelves}</div>'
            + self.provenance({"profile": self.profile, "site built from": commit_of(ROOT) or "unknown"})
        )
        return Page("index", "sept", body, "index")

    def _thumbnail(self, name: str) -> bool:
        """Write a figure's small copy; whether it is higher than wide."""
        target = self.out / "thumbnails" / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(self.source / f"{name}.png") as image:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL, 3 * THUMBNAIL))
            small.quantize(64).save(target, optimize=True)
            return small.height > small.width

    # --- writing

    def write(self) -> None:
        """All pages, the theme and the search index."""
        self.pages = [self.notebook(p) for p in self.notebooks]
        claims = self.claims()
        notebooks = [p.name for p in self.pages]
        self.pages += [claims, self.all_figures(), *self.guides(), *self.api()]
        self.pages.insert(0, self.front(claims.question))
        for page in self.pages:
            turn = ""
            if page.name in notebooks:
                place = notebooks.index(page.name)
                before = notebooks[place - 1] if place else None
                after = notebooks[place + 1] if place + 1 < len(notebooks) else None
                links = [
                    f'<a href="{name}.html">{arrow} {name}</a>' if name else "<span></span>"
                    for name, arrow in ((before, "Before:"), (after, "Next:"))
                ]
                turn = f'<nav class=turn aria-label="Neighbouring notebooks">{"".join(links)}</nav>'
            (self.out / f"{page.name}.html").write_text(self._frame(page, turn))
            self._index(page)
        formulas = "".join(m for p in self.pages for m in re.findall(r"<math.*?</math>", p.body, re.S))
        self.out.joinpath("math.woff").write_bytes(math_font(set(html.unescape(formulas))))
        for file in THEME.iterdir():
            self._copy(file, file.name)
        entries = json.dumps(self.index, ensure_ascii=False, separators=(",", ":"))
        (self.out / "index.js").write_text(f"const INDEX = {entries};\n")

    def _frame(self, page: Page, turn: str) -> str:
        def current(name: str) -> str:  # this very page, or the part that it belongs to
            here = "page" if name == page.name else "true"
            return f" aria-current={here}" * (name == page.part)

        menu = "".join(f'<a href="{name}.html"{current(name)}>{label}</a>' for name, label in NAV.items())
        title = page.title if page.name == "index" else f"{page.title} - sept"
        return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{esc(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><link rel="stylesheet" href="style.css"></head>
<body><a class="skip" href="#main">Skip to the text</a>
<header><div><b><a href="index.html">sept</a></b><nav aria-label="Main">{menu}</nav>
<div id="search" role="search"><input type="search" placeholder="Search ( / )" aria-label="Search">
<ul id="found" aria-live="polite"></ul></div></div></header>
<main id="main">
{page.body}
{turn}
</main>
<script src="index.js" defer></script><script src="search.js" defer></script>
</body></html>
"""

    def _index(self, page: Page) -> None:
        """Entries of the search: a page's text by section, without its code listings."""
        body = re.sub(r"<(pre|style|script|dl|annotation)\b.*?</\1>", " ", page.body, flags=re.S)
        parts = re.split(r'<h[2-4][^>]*?(?: id="([^"]*)")?>(.*?)</h[2-4]>', body, flags=re.S)
        heads = [("", ""), *zip(parts[1::3], parts[2::3], strict=True)]
        for (anchor, heading), text in zip(heads, parts[0::3], strict=True):
            words = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
            label = " ".join(html.unescape(re.sub(r"<[^>]+>", "", heading)).split())
            url = f"{page.name}.html" + (f"#{anchor}" if anchor else "")
            self.index.append((page.title, label, url, words[:1500]))


def members(tree: ast.Module, text: Text) -> Iterable[str]:
    """Public functions, classes with their documented fields and methods, and documented constants."""
    for previous, node in zip([None, *tree.body], tree.body, strict=False):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield function(node, text, "h2")
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield f'<h2 id="{node.name}">class <code>{node.name}</code></h2>'
            yield text.html(ast.get_docstring(node) or "")
            yield from fields(node.body, text)
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield function(inner, text, "h3", f"{node.name}.")
        elif previous is not None:
            yield from fields([previous, node], text)


def function(node: ast.FunctionDef, text: Text, level: str, owner: str = "") -> str:
    arguments = ast.unparse(node.args)
    if len(arguments) > 70:
        spread = [ast.unparse(a) for a in ast.iter_child_nodes(node.args) if isinstance(a, ast.arg)]
        arguments = (
            arguments
            if len(spread) < 2
            else "\n    " + re.sub(r", (?=[\w*]+(?::|=|,|$))", ",\n    ", arguments) + "\n"
        )
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = coloured(f"{node.name}({arguments}){returns}", "python")
    told = text.html(ast.get_docstring(node) or "")
    name = f"{owner}{node.name}"
    head = f'<{level} id="{name}"><code>{name}</code></{level}>'
    return f'{head}<code class="sig" tabindex="0">{signature}</code>{told}'


def fields(body: list[ast.stmt], text: Text) -> Iterable[str]:
    """Assignments with a docstring below them."""
    rows = []
    for node, below in zip(body, body[1:], strict=False):
        if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
            continue
        if isinstance(below.value.value, str) and isinstance(node, ast.AnnAssign | ast.Assign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            value = f" = {ast.unparse(node.value)}" if node.value else ""
            value = value if len(value) < 60 else " = ..."
            told = text.html(inspect.cleandoc(below.value.value))
            rows.append(f"<tr><td><code>{esc(ast.unparse(target) + value)}</code></td><td>{told}</td></tr>")
    if rows:
        yield f'<div class="scroll fields" tabindex="0"><table><tbody>{"".join(rows)}</tbody></table></div>'


def commit_of(path: Path) -> str:
    """The last commit that touched a file; empty outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "log", "-1", "--format=%h of %cs", "--", str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip() and f"commit {done.stdout.strip()}"


def origin(path: Path) -> dict[str, str]:
    """Where a page's text is from."""
    told = {"made from": path.relative_to(ROOT).as_posix(), "last changed in": commit_of(path)}
    return {k: v for k, v in told.items() if v}


def build(figures: Path, out: Path) -> Site:
    """Write the site of a figures folder to `out`, which is emptied first if a site was there."""
    if (out / "index.js").is_file():
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise SystemExit(
            f"gallery: folder {str(out)!r} is not empty and holds no gallery; choose another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    site = Site(figures.resolve(), out)
    site.write()
    return site


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--figures", type=Path, default=ROOT / "figures" / "laptop", help="where figures lie"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder to write")
    given = parser.parse_args()
    site = build(given.figures, given.out)
    size = sum(p.stat().st_size for p in given.out.rglob("*") if p.is_file()) / 1e6
    print(f"wrote {len(site.pages)} pages, {size:.1f} MB; open {given.out / 'index.html'}")


if __name__ == "__main__":
    main()
