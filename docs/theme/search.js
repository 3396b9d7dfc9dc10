// The keyboard's stops, and the search over INDEX (index.js): every word must begin a word of an entry; headings and titles count more.
"use strict";
const field = document.querySelector("#search input"), found = document.querySelector("#found");
const escape = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const plain = (text) => text.toLowerCase().normalize("NFD").replace(/[\u0300-\u036f]/g, "");

function matches(words) {
  const hits = [];
  for (const [page, heading, url, text] of INDEX) {
    const parts = [[page, 8], [heading, 6], [text, 1]].map(([part, weight]) => [" " + plain(part), weight]);
    let score = 0;
    for (const word of words) {
      const own = parts.reduce((sum, [part, weight]) => {
        const at = part.search(new RegExp("[^a-z0-9]" + word.replace(/[^a-z0-9]/g, "\\$&")));
        return sum + (at < 0 ? 0 : weight);
      }, 0);
      if (!own) { score = 0; break; }
      score += own;
    }
    if (score) hits.push([score, page, heading, url, text]);
  }
  return hits.sort((a, b) => b[0] - a[0]).slice(0, 12);
}

function excerpt(text, word) {
  const at = Math.max(0, plain(text).indexOf(word) - 40);
  const cut = (at ? "…" : "") + text.slice(at, at + 140);
  const place = plain(cut).indexOf(word);
  if (place < 0) return escape(cut);
  const end = place + word.length;
  return escape(cut.slice(0, place)) + "<mark>" + escape(cut.slice(place, end)) + "</mark>" + escape(cut.slice(end));
}

function search() {
  const words = plain(field.value).split(/\s+/).filter((w) => w.length > 1);
  const hits = words.length ? matches(words) : [];
  found.innerHTML = hits.map(([, page, heading, url, text]) =>
    `<li><a href="${url}">${escape(page)}${heading ? ": " + escape(heading) : ""}</a>` +
    `<small>${excerpt(text, words[0])}</small></li>`).join("") ||
    (words.length ? "<li>Nothing found.</li>" : "");
}

field.addEventListener("input", search);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { field.value = ""; search(); }
  if (event.key === "/" && document.activeElement !== field) { event.preventDefault(); field.focus(); }
});

// Only what scrolls sideways is worth a stop of the Tab key.
function stops() {
  for (const box of document.querySelectorAll(".scroll, pre, .sig, .formula")) {
    const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
    if (scrolls) box.tabIndex = 0; else box.removeAttribute("tabindex");
  }
}
addEventListener("load", stops);
addEventListener("resize", stops);
document.addEventListener("toggle", stops, true);
