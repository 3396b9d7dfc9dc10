"""The gallery: every page complete without network, readable in a browser at any width, light and dark."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("latex2mathml", reason="needs the docs extra: pip install 'sept[docs]'")
pytest.importorskip("ziamath", reason="needs the docs extra: pip install 'sept[docs]'")

ROOT = Path(__file__).resolve().parent.parent
RAW = re.compile(r"\$|\\[(\[]|\\(?:tau|pi|theta|frac|sum|log|mathbb|mathrm)\b")
"""What is left of a formula that nobody rendered."""


def _gallery():
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "docs" / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gallery"] = module
    spec.loader.exec_module(module)
    return module


gallery = _gallery()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return gallery.build(ROOT / "figures" / "laptop", tmp_path_factory.mktemp("gallery") / "site")


class Reader(HTMLParser):
    """Links, images, ids and prose of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.images, self.ids, self.prose, self.inside, self.scripts = [], [], set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found["id"]} if "id" in found else set()
        self.links += [found[k] for k in ("href", "src") if found.get(k)]
        if tag == "img":
            self.images.append(found)
        if tag in ("pre", "code", "script", "style", "math"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.prose.append(data)


@pytest.fixture(scope="module")
def pages(site):
    return {p.name: Reader(p.read_text()) for p in sorted(site.out.glob("*.html"))}


def test_every_link_and_image_is_there_and_nothing_is_fetched(site, pages):
    for name, page in pages.items():
        for link in page.links:
            if link.startswith(("https:", "mailto:", "data:")):
                continue
            file, _, anchor = link.partition("#")
            assert (site.out / (file or name)).is_file(), f"{name} links to {link}"
            if anchor and file in ("", *pages):
                assert anchor in pages[file or name].ids, f"{name} links to {link}: no such place"
        text = (site.out / name).read_text()
        fetched = re.findall(r"<(?:img|script|link|iframe)[^>]+(?:src|href)=[\"']?(https?:[^\"'> ]+)", text)
        assert not fetched, f"{name} fetches {fetched}"


def test_every_image_says_what_it_shows(site, pages):
    """In words of its own: what is seen, not which function drew it."""
    for name, page in pages.items():
        for image in page.images:
            alt = image.get("alt", "")
            assert len(alt) > 60 and "`" not in alt, f"{name}: {image['src']} has no alt text"
    written = json.loads((ROOT / "docs" / "alts.json").read_text())
    tops = {Path(h.image).stem for h in gallery.contents.heads() if h.image}
    assert {
        p.stem for p in site.source.glob("*.png")
    } == written.keys() | tops and not written.keys() & tops


def test_no_formula_is_left_raw(pages):
    for name, page in pages.items():
        for part in page.prose:
            assert not RAW.search(part), f"{name}: {part.strip()!r}"
    mathematical = [n for n, p in pages.items() if "01_theorem" in n]
    assert mathematical


def test_everything_is_shown_somewhere(site, pages):
    """Every notebook, module, figure and table, and what was measured beside what was published."""
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        assert f"{path.stem}.html" in pages
        assert f"{path.stem}.html" in pages["index.html"].links
    for path in (ROOT / "sept").glob("[a-z]*.py"):
        assert f"api-{path.stem}.html" in pages
    for path in (ROOT / "docs").glob("*.md"):
        assert f"{path.stem}.html" in pages["guides.html"].links, f"{path.name} is no guide of the gallery"
    shown = {link for p in site.pages if p.part == "index" for link in pages[f"{p.name}.html"].links}
    for kind in ("*.png", "table_*.html"):
        for path in site.source.glob(kind):
            assert f"figures/{path.name}" in shown, f"{path.name} is on no notebook's page"
    claims = (site.out / "claims.html").read_text()
    gain, low, high = json.loads((site.source / "03_main_result.json").read_text())["claims"][
        "SePT beats the baseline"
    ]
    measured = f"{gain:+.3g} <span class=line>[{low:.3g}, {high:.3g}]</span>"
    assert "+11.3" in claims and measured in claims and claims.count("verdict ") == 18
    for page in site.pages:
        if page.name in ("guides", "api"):  # lists of links
            continue
        assert 'class="provenance"' in page.body, page.name
        if re.match(r"\d\d", page.name):
            assert "commit" in page.body, page.name


def test_it_is_small(site):
    assert sum(p.stat().st_size for p in site.out.rglob("*") if p.is_file()) < 15e6


def test_a_broken_link_is_an_error(site, tmp_path):
    text = gallery.Text(site, ROOT / "notebooks" / "x.ipynb")
    with pytest.raises(SystemExit, match="nowhere.md"):
        text.html("[gone](nowhere.md)")
    assert 'href="api-loop.html"' in text.html("[loop](../sept/loop.py)")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(SystemExit, match="not empty"):
        gallery.build(site.source, tmp_path)


def test_outputs_come_only_from_an_executed_copy_of_the_same_code(site, tmp_path):
    """An old copy's outputs under new code would be a lie."""
    path = ROOT / "notebooks" / "00_quickstart.ipynb"
    executed = json.loads(path.read_text())
    code = [c for c in executed["cells"] if c["cell_type"] == "code"]
    code[1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["said <4711>\n"]}]
    injected = {
        "cell_type": "code",
        "source": ["profile = 'x'"],
        "metadata": {"tags": ["injected-parameters"]},
    }
    executed["cells"].insert(2, injected)
    folder = tmp_path / "figures"
    (folder / "notebooks").mkdir(parents=True)
    copy = folder / "notebooks" / path.name
    copy.write_text(json.dumps(executed))
    own = gallery.Site(folder, tmp_path / "out")
    assert "said &lt;4711&gt;" in own.notebook(path).body
    code[2]["source"] = ["something_else()"]
    copy.write_text(json.dumps(executed))
    assert "4711" not in own.notebook(path).body


def test_colours_can_be_read():
    """WCAG AA: 4.5 to 1 for all text on all grounds, light and dark."""
    light, dark = re.findall(r":root \{(.*?)\}", (gallery.THEME / "style.css").read_text(), re.S)

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in (light, dark):
        colours = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        grounds = [colours.pop(n) for n in ("ground", "raised", "published", "mark")]
        del colours["line"]
        for name, colour in colours.items():
            on = grounds if name in ("text", "quiet", "link") else grounds[:2]
            for ground in on:
                high, low = sorted([luminance(colour), luminance(ground)], reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, f"{name} {colour} on {ground}"


def test_makefile_and_gitignore_know_the_gallery():
    assert "docs/gallery.py" in (ROOT / "Makefile").read_text()
    assert "site/" in (ROOT / ".gitignore").read_text().split()


# ---------------------------------------------------------------------------------------------- browser

LOOK = """() => {
  const wide = [...document.querySelectorAll('body *')].filter((e) => {
    const box = e.getBoundingClientRect();
    const inside = e.closest('.scroll, pre, .sig, .formula, .skip, .tile, #found');  // what scrolls or is cut
    return box.right > innerWidth + 1 && box.width && !inside;
  }).map((e) => e.outerHTML.slice(0, 80));
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  let text = '';
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.parentElement.closest('pre, code, script, style, math')) text += node.data;
  }
  document.querySelectorAll('img').forEach((i) => { i.loading = 'eager'; });
  const parts = (c) => c.match(/[0-9.]+/g).map(Number);
  const luminance = (c) => parts(c).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (parts(colour)[3] !== 0) return colour;
    }
  };
  const ratio = (e, colour) => {
    const [low, high] = [luminance(colour), luminance(ground(e))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const faint = [...document.querySelectorAll('body *')].filter((e) => {
    const says = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    return says && e.getClientRects().length && ratio(e, getComputedStyle(e).color) < 4.5;
  });
  const field = document.querySelector('#search input');
  if (ratio(field, getComputedStyle(field, '::placeholder').color) < 4.5) faint.push(field);
  const broken = [...document.querySelectorAll('td a code')].filter((e) => e.getClientRects().length > 1);
  const idle = [...document.querySelectorAll('[tabindex]')].filter((e) =>
    e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight);
  const stuck = [...document.querySelectorAll('.scroll, pre, .sig, .formula')].filter((e) =>
    e.scrollWidth > e.clientWidth + 1 && e.tabIndex !== 0);
  const levels = [...document.querySelectorAll('h1, h2, h3, h4')].map((h) => +h.tagName[1]);
  const skipped = levels.filter((level, i) => level > (levels[i - 1] || 0) + 1);
  const mute = [...document.querySelectorAll('a, button, th')].filter((e) =>
    !e.textContent.trim() && !e.querySelector('img') && e.getClientRects().length);
  const told = (found) => found.map((e) => e.outerHTML.slice(0, 120));
  return { wide, text, sideways: document.documentElement.scrollWidth > innerWidth, faint: told(faint),
    broken: told(broken), idle: told(idle), stuck: told(stuck), mute: told(mute), skipped,
    tops: levels.filter((level) => level === 1).length, lang: document.documentElement.lang };
}"""
MISSING = """() => Promise.all([...document.images].map((i) => i.decode().then(() => '', () => i.src)))"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright: pip install 'sept[docs]'"
    )
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as p:
        if found is None and not Path(p.chromium.executable_path).is_file():
            pytest.skip("no Chromium: install one, or run `playwright install chromium`")
        opened = p.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_in_a_browser(browser, site, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)
    page, complaints = context.new_page(), []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("requestfailed", lambda r: complaints.append(r.url))
    page.on("request", lambda r: complaints.append(r.url) if r.url.startswith("http") else None)
    for path in sorted(site.out.glob("*.html")):
        page.goto(path.as_uri())
        seen = page.evaluate(LOOK)
        assert not complaints, f"{path.name}: {complaints}"
        assert not seen["wide"] and not seen["sideways"], (
            f"{path.name} is wider than {width}: {seen['wide'][:3]}"
        )
        assert not RAW.search(seen["text"]), path.name
        assert not seen["faint"], f"{path.name}: contrast below 4.5: {seen['faint'][:3]}"
        assert not seen["broken"], f"{path.name}: a name is broken over lines: {seen['broken'][:3]}"
        assert not seen["idle"], f"{path.name}: a stop of Tab where nothing scrolls: {seen['idle'][:3]}"
        assert not seen["mute"], f"{path.name}: a link or head without text: {seen['mute'][:3]}"
        assert not seen["stuck"], f"{path.name}: scrolls by mouse only: {seen['stuck'][:3]}"
        assert seen["tops"] == 1 and not seen["skipped"], f"{path.name}: levels of headings"
        assert seen["lang"] == "en"
        assert not list(filter(None, page.evaluate(MISSING))), f"{path.name} lacks an image"
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 300) == (scheme == "dark")
    context.close()


@pytest.mark.slow
def test_published_stands_beside_measured_on_a_phone_too(browser, site):
    page = browser.new_page(viewport={"width": 390, "height": 850})
    page.goto((site.out / "claims.html").as_uri())
    for row in page.locator(".claims tbody tr").all():
        cells = [c.bounding_box() for c in row.locator("td").all()[1:4]]  # published, measured, verdict
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in cells), row.inner_text()


@pytest.mark.slow
def test_search_and_keyboard(browser, site):
    page = browser.new_page()
    page.goto((site.out / "index.html").as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip", "the first stop jumps to the text"
    for _ in range(len(gallery.NAV) + 2):  # the name of the site, the menu, the search
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('#search input')"), "the search is reached by Tab"
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    page.evaluate("document.activeElement.blur()")  # there "/" would be a letter
    page.keyboard.press("/")
    page.keyboard.type("stale sampler")
    hits = page.locator("#found a")
    assert hits.count() >= 2 and "stale" in hits.first.inner_text().lower()
    assert {m.lower() for m in page.locator("#found mark").all_inner_texts()} == {"stale"}
    page.keyboard.press("Tab")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert not page.url.endswith("index.html") and "stale" in page.inner_text("main").lower()
    page.keyboard.press("/")
    page.keyboard.type("xyzzyx")
    assert page.inner_text("#found") == "Nothing found."
    page.keyboard.press("Escape")
    assert page.inner_text("#found") == ""
    details = page.goto((site.out / "03_main_result.html").as_uri()) and page.locator("summary").first
    details.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None


@pytest.mark.slow
def test_formulas_are_drawn_as_formulas(browser, site):
    """The bundled font is used, and a subscript sits lower than its base."""
    page = browser.new_page()
    page.goto((site.out / "01_theorem_exact.html").as_uri())
    page.evaluate("document.fonts.ready")
    assert page.evaluate("document.fonts.check('16px formulas')")
    base, below = page.evaluate(
        "[...document.querySelector('math msub').children].map((e) => e.getBoundingClientRect().bottom)"
    )
    assert below > base + 1
    assert html.unescape(page.locator("math").first.get_attribute("alttext")) == "\\tau_s"
