"""Hostile input by the thousand: answers, problem files, configs, checkpoints; and what must be true of them.

Each maker draws from a `random.Random`, so hypothesis (which shrinks what fails) and the soak (which replays
a seed) share it. Each check returns normally, whatever the input; anything else is a finding.
"""

import csv
import io
import json
import string
from pathlib import Path

import pandas as pd
from test_grading import HOSTILE, PAIRS

from sept import cli, config, grading, presets, prompts, sampling
from sept.config import SeptError, from_dict, notice, preset
from sept.problems import Problem, load_problems

ATOMS = r"""0 1 -3 27 3.14 .5 1e9 10^6 x y n! \pi \infty e i % \% ^\circ $ \$ \text{cm} \emptyset \mathbb{R} A
(B) true 1,000 1{,}000 \boxed{ } { \frac \\ _ ^ & # ' " \left( \right]""".split()
ATOMS += ["", " ", "\t", "\n", "\x00", "\x1b[2J", "\u2212", "\u00bd", "\u221e", "\u6570", "\U0001f600"]
ATOMS += ["\u202e"]
WRAPS = r"""\frac{%s}{%s} \sqrt{%s} \sqrt[%s]{%s} %s^{%s} %s_{%s} (%s,%s) [%s,%s) %s+%s \{%s,%s\} %s*%s %s/%s
%s=%s \text{%s} \log_{%s}%s -%s \int_{%s}^{%s}x~dx \sum_{n=%s}^{%s}n \binom{%s}{%s} |%s| %s<x<%s %s! %s\%%
\boxed{%s} \begin{pmatrix}%s\\%s\end{pmatrix} \lim_{x\to~%s}%s %s\cdot~%s""".split()
WRAPS = [wrap.replace("~", " ") for wrap in WRAPS] + ["%s %s", "%s or %s", r"x \in [%s, %s]"]
CORPUS = [text for pair in PAIRS for text in pair[:2]]
DEADLY = [text for name, text in HOSTILE.items() if name not in ("megabyte", "surrogate")]
JUNK = string.printable + "\\{}^_$%&#\u00e9\u2212\u0301\u202e\U0001f600\x00\x7f"


def mangle(rng, text, alphabet=JUNK):
    """Text with a few places changed, taken out, doubled or swapped."""
    for _ in range(rng.randrange(4)):
        i, j = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        piece = rng.choice([rng.choice(alphabet), text[i:j] * 2, ""])
        text = text[:i] + piece + text[j if rng.random() < 0.5 else i :]
    return text


def answer(rng, depth=3):
    """What a model might write in a box, or no model ever would."""
    kind = rng.random()
    if kind < 0.0004:
        return rng.choice(DEADLY)
    if kind < 0.25:
        return mangle(rng, rng.choice(CORPUS))
    if kind < 0.35:
        return "".join(rng.choice(JUNK) for _ in range(rng.randrange(30)))
    if depth == 0 or kind < 0.5:
        return rng.choice(ATOMS)
    wrap = rng.choice(WRAPS)
    plain = wrap.replace("%%", "")
    return wrap % tuple(answer(rng, depth - 1) for _ in range(plain.count("%s")))


def pair(rng):
    """Response, reference; sometimes the same, without a box, or with a broken one."""
    given, reference = answer(rng), answer(rng)
    if rng.random() < 0.1:
        reference = given
    plain, cut, twice = r"so \boxed{%s}.", r"\boxed{%s", r"\boxed{1} \boxed{%s}"
    around = rng.choice([plain, plain, plain, cut, twice, "%s", r"\boxed{\boxed{%s}}"])
    return around % given if rng.random() < 0.95 else mangle(rng, around % given), reference


def check_grading(pairs, world):
    """Every answer gets a verdict, equal strings are right, and the same question the same verdict."""
    asked = [Problem(str(i), "f", "q", reference) for i, (_, reference) in enumerate(pairs)]
    verdicts = grading.grade_all([given for given, _ in pairs], [True] * len(pairs), asked, world)
    assert len(verdicts) == len(pairs) and all(type(v) is bool for v in verdicts)
    for (given, reference), verdict in zip(pairs, verdicts, strict=True):
        box = (grading.last_boxed(given) or "").strip()
        if world != "file" and box == reference.strip():
            assert verdict
        if world != "file" and not box and reference.strip():
            assert not verdict
    return verdicts


# --- problem files ----------------------------------------------------------------------------------------

CELLS = [None, "", " ", 0, 1, -1.5, 1e400, True, [], [1], {}, {"ground_truth": "4"}, "a" * 3000, 10**400]
CELLS += [[{"role": "user", "content": "1+1?"}], [{"role": "user"}], [["user", "x"]], {"a": {"b": []}}]
CELLS += [[None]]
CELLS += ["1+1?", "2", "\ufeff2", "ok\nnot", [{"from": "human", "value": "2?"}], "\u202e", [[[[]]]], "NaN"]
CELLS += ["\ud800", "\x00"]
COLUMNS = ["prompt", "answer", "id", "family", "reward_model", "data_source", "extra", "", "prompt ", 0]
COLUMNS += ["a\nb"]


def table(rng):
    """Rows with the right columns mostly, and cells that are anything."""
    columns = ["prompt", rng.choice(["answer", "answer", "reward_model"])]
    columns += rng.sample(COLUMNS, rng.randrange(3))
    if rng.random() < 0.1:
        columns = rng.sample(COLUMNS, rng.randrange(4))
    wild = rng.random() < 0.6

    def cell(column, i):
        if wild and rng.random() < 0.3:
            return rng.choice(CELLS)
        if column == "reward_model":
            return {"ground_truth": str(i)}
        return f"{column}{i}"

    return [{c: cell(c, i) for c in columns} for i in range(rng.randrange(5))]


def problem_file(rng):
    """Suffix and bytes of a file that may or may not hold problems."""
    suffix = rng.choice([".jsonl"] * 8 + [".json", ".csv", ".parquet"] * 4 + [".txt"])
    rows = table(rng)
    if suffix == ".csv":
        lines = [list(rows[0])] if rows else []
        lines += [[row.get(c) for c in lines[0]] for row in rows]
        out = io.StringIO()
        csv.writer(out).writerows(lines)
        data = out.getvalue().encode("utf-8", "surrogatepass")
    elif suffix == ".parquet":
        out = io.BytesIO()
        kinds = [
            lambda v: ascii(v)[:99],
            lambda v: [{"role": "user", "content": ascii(v)[:99]}],
            lambda v: 1.5,
        ]
        of = {c: rng.choice(kinds) if rng.random() < 0.3 else kinds[0] for row in rows for c in row}
        pd.DataFrame([{str(c): of[c](v) for c, v in row.items()} for row in rows]).to_parquet(out)
        data = out.getvalue()
    else:
        text = "\n".join(map(json.dumps, rows)) if suffix != ".json" else json.dumps(rows)
        data = text.encode(rng.choice(["utf-8"] * 6 + ["utf-16", "utf-8-sig"]))
    return suffix, damage(rng, data) if rng.random() < 0.6 else data


TOKENS = [b'"', b"{", b"}", b"[" * 5000, b"]", b",", b"\n", b"\r", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf"]
TOKENS += [b"9" * 5000, b"null", b"\\ud800", b'{"prompt":"q","answer":"a"}\n', b"\xed\xa0\x80", b"NaN"]
TOKENS += [b"PAR1"]
TOKENS += [b"1e999"]


def damage(rng, data):
    """Bytes flipped, cut, doubled, taken out, put in."""
    data = bytearray(data)
    for _ in range(1 + rng.randrange(4)):
        i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        kind = rng.randrange(6)
        if kind == 0 and i < len(data):
            data[i] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[i:]
        elif kind == 2:
            del data[i:j]
        elif kind == 3:
            data[i:i] = data[i:j][:4096]
        elif kind == 4:
            data[i:i] = rng.choice(TOKENS)
        else:
            data[i:i] = bytes(rng.randrange(256) for _ in range(rng.randrange(9)))
    return bytes(data)


OPTIONS = ["", "", "", ":string", ":math", ":3", ":max=64", ":prompt=extra", ":answer=answer", ":id=id"]
OPTIONS += [":0", "::"]


def check_problem_file(folder, suffix, data, options=""):
    """It loads, into problems that everything after can use, or is refused in one line."""
    notice.cache_clear()
    path = Path(folder) / f"p{suffix}"
    path.write_bytes(data)
    try:
        found = load_problems(f"{path}{options}")
    except SeptError as error:
        assert str(error)
        return False
    assert found.items and len({p.id for p in found.items}) == len(found.items)
    for each in found.items:
        for text in (each.id, each.family, each.prompt, each.answer):
            assert isinstance(text, str)
            text.encode()
        assert each.prompt.strip() and each.answer.strip()
    assert found.hash() == load_problems(f"{path}{options}").hash()
    return True


# --- configs and names ------------------------------------------------------------------------------------

FIELDS = [f.name for f in config.dataclasses.fields(config.Config)]
VALUES = [0, 1, 2, -1, 0.5, 1e-300, 1e308, float("nan"), float("inf"), -0.0, True, False, None, "", "nll"]
VALUES += ["token", "linear", "cosine", [], {}, [1], "1", 10**400, -(10**400), 2**63, "sept", "0.6", "\x00"]
VALUES += ["grpo", 10**30, "ddp"]


def fields(rng):
    """A config as JSON might hold it."""
    names = [*FIELDS, "", "lr ", "temperature", "__class__"]
    return {rng.choice(names): rng.choice(VALUES) for _ in range(rng.randrange(4))}


def check_config(given, arm="sept"):
    """A valid config, which its JSON brings back, or one line."""
    try:
        made = preset(arm, **given)
    except SeptError as error:
        assert "\n" not in str(error)
        return False
    again = from_dict(json.loads(made.to_json()))
    assert again == made and again.key() == made.key()
    return True


NAMES = ["toy:test", "toy:", "toy:test:add3", "H", "H:plain", "vllm:a=1", "auto", "0:1:0.1", "0,1", "a=1"]
NAMES += ["math500+", "x@y", "o/n", "\x00", "x" * 300, "..", "toy:test:\u00b2", "toy:dev:\u0663", ":::"]
NAMES += ["lr=["]
NAMES += ["sept", "+"]


def name(rng):
    """What might be typed where a name is wanted."""
    return mangle(rng, rng.choice(NAMES)) if rng.random() < 0.8 else mangle(rng, answer(rng, 1))


def check_name(text):
    """Wherever it is given, it is taken or refused in one line."""
    for use in (
        cli.parse_temperatures,
        sampling.parse_engine,
        prompts.checked,
        presets.find_preset,
        lambda t: cli._fields([t]),
        lambda t: preset(t),
        lambda t: load_problems(f"toy:{t}").hash(),
    ):
        try:
            use(text)
        except SeptError as error:
            assert str(error)
