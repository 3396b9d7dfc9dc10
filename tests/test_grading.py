"""Grading of mathematics: the two rule sets, hard limits, hostile answers, kept verdicts."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sept import grading
from sept.config import SeptError, notice
from sept.grading import grade, grade_all, last_boxed
from sept.problems import Problem, load_problems

# answer, reference, right by `math`, right by `parity`
COMMAND = grading.COMMAND
PAIRS = [
    ("27", "27", True, True),
    ("x=27", "27", True, True),
    ("27", "-27", False, False),
    ("1{,}000", "1000", True, True),
    (r"\frac{28}{6}", r"\frac{14}{3}", True, True),
    ("4.6667", r"\frac{14}{3}", False, False),
    ("1.61", "1.6", False, False),
    (r"1.6\text{ cm}", "1.6", True, True),
    (r"45^\circ", "45", True, True),
    (r"50\%", "50", True, True),
    ("0.5", r"50\%", True, True),
    ("51", r"50\%", False, False),
    ("-q+p", "p - q", True, True),
    ("(x-1)(x+1)", "x^2-1", True, True),
    ("evelyn", r"\text{Evelyn}", True, True),
    (r"\text{odd}", r"\text{even}", False, False),
    ("5,3,1", "1,3,5", True, True),
    ("84, 69", "$69$,$84$", True, True),
    ("1,3", "1,3,5", False, False),
    ("1,3,6", "1,3,5", False, False),
    ("(2,1)", "(1,2)", False, False),
    (r"2\sqrt{2}", r"\sqrt{8}", True, True),
    ("", "27", False, False),
    # where the two differ
    (r"4.5\times 10^{33}", "4.5e33", True, False),  # parity reads Euler's number, as the authors do
    ("[0,1]", "(0,1)", False, True),  # it does not look at brackets
    ("52_8", "52_9", False, True),  # nor at the base
    (".0000673", ".0000672", False, True),  # and rounds to six places
    (r"2.0\times 10^{-19}", r"1.6\times 10^{-19}", False, True),
    (r"\frac{1}{3} E_{1}+\frac{2}{3} E_{3}", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", False, True),
]

HOSTILE = {
    "power": "10**10**10",
    "factorials": "9!!!!!!",
    "megabyte": "1+" * 500_000 + "1",
    "code": "__import__('os').system('touch pwned')",
    "protocol": '1\n[9, "math", "1", "1"]\n',
    "tower": "9^{9^{9^{9}}}",
    "integrals": r"\int_0^1 " * 40 + r"\sin(x^{x})" + " dx" * 40,
    "sum": r"\sum_{n=1}^{10^{12}} \frac{1}{n^2+\sin n}",
    "binomial": r"\binom{10^{12}}{5\cdot 10^{11}}",
    "braces": "{" * 900 + "1" + "}" * 900,
    "brackets": "(" * 900 + "1" + ")" * 900,
    "set": r"\{" + ",".join(map(str, range(3000))) + r"\}",
    "expansion": "(x+y+z+w)^{5000}",
    "zero width": "2\u200b8",
    "right to left": "\u202e72",
    "marks": "2" + "\u0301" * 1000 + "8",
    "surrogate": "\ud800",
    "null": "\x00",
    "minus": "-" * 1900 + "1",
}


def problem(answer):
    return Problem("1", "f", "q", answer)


def grades(pairs, world):
    texts = [rf"so \boxed{{{given}}}." for given, _ in pairs]
    return grade_all(texts, [True] * len(texts), [problem(r) for _, r in pairs], world)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(grading, "_verdicts", {})
    notice.cache_clear()
    yield
    if grading.COMMAND is not COMMAND:
        grading._stop_all()


def test_verdicts_of_both_rule_sets():
    pairs = [row[:2] for row in PAIRS]
    for column, world in ((2, "math"), (3, "parity")):
        expected = [row[column] for row in PAIRS]
        wrong = [
            (*p, got) for p, got, e in zip(pairs, grades(pairs, world), expected, strict=True) if got != e
        ]
        assert not wrong, world


def test_only_the_last_whole_box_counts():
    for text in ("27", r"\boxed{27", r"\fbox{27}", r"\boxed 27", r"\boxed{}", r"\boxed{27}\boxed{3}"):
        assert not grade(text, True, problem("27"), "math") and not grade(
            text, True, problem("27"), "parity"
        )
    assert grade(r"\boxed{3} \boxed{\boxed{27}} \boxed{5", False, problem("27"), "parity")


def test_very_long_answers_are_not_even_tried(monkeypatch):
    monkeypatch.setattr(grading, "_judge", None)
    long = "1+" * 500_000 + "1"
    assert grades([(long, "3"), ("3", long), (long, long)], "math") == [False, False, True]


def test_boxes_are_found_in_one_pass():
    started = time.process_time()
    assert last_boxed(r"\boxed{" * 200_000) is None
    assert last_boxed(r"\boxed{" * 100_000 + "7" + "}" * 100_000) == "7"
    assert last_boxed("}" * 1_000_000 + r"\boxed{8}" + "{" * 1_000_000) == "8"
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("world", "some"),
    [("math", 5), *(pytest.param(w, len(HOSTILE), marks=pytest.mark.slow) for w in ("math", "parity"))],
)
def test_hostile_answers_cost_the_limit_at_most_and_never_the_run(
    world, some, monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr(grading, "LIMIT", 0.5)
    monkeypatch.setattr(grading, "PATIENCE", 100)  # the processor's time is the limit, not the clock
    monkeypatch.chdir(tmp_path)
    pairs = [(text, "28") for text in list(HOSTILE.values())[:some]]
    pairs += [(r"\frac{56}{2}", "28")] * 3
    before = os.times()
    assert grades(pairs, world) == [False] * some + [True] * 3
    grading._stop_all()
    spent = os.times().children_user - before.children_user
    assert spent < 2 * len(pairs), "the limit and a new process for each, at most"
    assert "more than 0.5 s" in caplog.text and not (tmp_path / "pwned").exists()


def worker(monkeypatch, tmp_path, body):
    """Grading processes whose verdicts come from `body`, a function of (rule, given, reference)."""
    grading._stop_all()
    script = tmp_path / "slow.py"
    script.write_text(
        "import json, os, signal, sys, time\nprint('ready', flush=True)\n"
        f"for line in sys.stdin:\n    limit, rule, given, reference = json.loads(line)\n    {body}\n"
        "    print(int(given == reference + '.0'), flush=True)\n"
    )
    monkeypatch.setattr(grading, "COMMAND", [sys.executable, str(script)])
    monkeypatch.setattr(grading, "LIMIT", 0.5)
    monkeypatch.setattr(grading, "PATIENCE", 3)
    monkeypatch.setattr(grading, "PROCESSES", 2)


@pytest.mark.parametrize(
    "body",
    [
        "if given == 'bad': time.sleep(60)",
        "if given == 'bad': sum(iter(int, 1))",
        "if given == 'bad': signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        "if given == 'bad': os._exit(3)",
        "if given == 'bad': os.kill(os.getpid(), signal.SIGSEGV)",
        "if given == 'bad': print('!', flush=True); continue",
    ],
)
def test_a_hanging_or_dying_process_is_replaced(body, monkeypatch, tmp_path):
    worker(monkeypatch, tmp_path, body)
    pairs = [("bad" if i % 8 == 3 else f"{i}.0", str(i)) for i in range(32)]
    started = time.monotonic()
    assert grades(pairs, "math") == [i % 8 != 3 for i in range(32)]
    assert time.monotonic() - started < 20
    assert all(w.task is None and w.process.poll() is None for w in grading._workers)


def test_a_process_that_was_killed_while_idle_costs_no_verdict(monkeypatch, tmp_path):
    worker(monkeypatch, tmp_path, "pass")
    assert grades([("1.0", "1")], "math") == [True]
    grading._workers[0].process.kill()
    grading._workers[0].process.wait()
    assert grades([("2.0", "2")], "math") == [True]


def test_an_interrupt_leaves_no_reply_behind(monkeypatch, tmp_path):
    worker(monkeypatch, tmp_path, "time.sleep(0.2)")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grading, "_listen", stop)
        with pytest.raises(KeyboardInterrupt):
            grades([("1.0", "2")], "math")
    assert not [w for w in grading._workers if w.task is not None]
    assert grades([("3.0", "3"), ("4.0", "5")], "math") == [True, False]


def test_a_process_that_does_not_start_is_one_clear_line(monkeypatch):
    grading._stop_all()
    monkeypatch.setattr(grading, "COMMAND", [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(SeptError, match="does not start"):
        grades([("1.0", "1")], "math")


def test_verdicts_are_kept_but_not_those_of_the_clock(monkeypatch, tmp_path):
    asked = tmp_path / "asked"
    body = f"open({str(asked)!r}, 'a').write(given + chr(10)); time.sleep(9 * (given == 'slow'))"
    worker(monkeypatch, tmp_path, body)
    pairs = [("1.0", "1"), ("2", "1"), ("slow", "1"), ("1", "1")]
    for again in range(3):
        assert grades(pairs, "math") == [True, False, False, True]
        if again == 0:  # from memory the second time, from the store the third
            assert sorted(asked.read_text().split()) == ["1.0", "2", "slow"], "equal strings ask nobody"
        elif again == 1:
            assert len(asked.read_text().split()) == 3
            grading._verdicts.clear()
    assert asked.read_text().split()[3:] == ["slow"]
    assert grades([("1.0", "1")], "parity") and asked.read_text().split()[4:] == ["1.0"], "modes are apart"


def test_processes_that_grade_at_once_do_not_harm_the_store(tmp_path):
    code = (
        "from sept.grading import grade_all; from sept.problems import Problem\n"
        "ps = [Problem('1', 'f', 'q', str(i)) for i in range(40)]\n"
        "print(grade_all([rf'\\boxed{{{i}.00}}' for i in range(40)], [True] * 40, ps, 'math').count(True))"
    )
    env = {**os.environ, "SEPT_RESULTS": str(tmp_path / "store")}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [p.communicate()[0].strip() for p in both] == ["40"] * 3
    with grading.closing(grading.sqlite3.connect(tmp_path / "store" / "grades.sqlite")) as store:
        assert store.execute("select count(*), sum(verdict) from grades").fetchone() == (40, 40)


def test_a_damaged_store_is_reported_and_grading_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SEPT_RESULTS", str(tmp_path))
    (tmp_path / "grades.sqlite").write_text("not a database" * 100)
    assert grades([("1.0", "1")], "math") == [True]
    assert "delete it" in caplog.text


def test_without_math_verify_there_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "p.jsonl").write_text('{"prompt": "1+1", "answer": "2"}')
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SeptError, match=r"sept\[eval\]"):
        load_problems(f"{tmp_path / 'p.jsonl'}:math")
    assert load_problems(str(tmp_path / "p.jsonl")).world == "file"


SHARED = Path(os.environ.get("SEPT_SHARED", "nowhere"))
"""By hand: a folder with benchmarks/*.parquet in the authors' schema and paper/verifier_probes.csv."""


@pytest.mark.timeout(3000)
@pytest.mark.skipif(not SHARED.is_dir(), reason="by hand, with SEPT_SHARED")
def test_published_benchmarks_and_probes(monkeypatch, capsys):
    files = sorted((SHARED / "benchmarks").glob("*.parquet"))
    problems = load_problems("+".join(map(str, files)))
    assert len(files) == 6 and len(problems.items) == 1547 and problems.world == "math"
    say = {}
    for world in ("math", "parity"):
        for what in ("boxed", "judged", "from the store", "next one's"):
            texts = [rf"\boxed{{{p.answer}}}" for p in problems.items]
            if what == "next one's":
                texts = texts[1:] + texts[:1]
            grading._verdicts.clear()
            started = time.monotonic()
            if what == "judged":  # past the comparison of strings
                right = grading._judge(keys := [(world, p.answer, p.answer) for p in problems.items])
                grading._keep(dict(zip(keys, right, strict=True)))
            elif what == "from the store":
                grading._recall(keys)
                right = [grading._verdicts[key] for key in keys]
            else:
                right = grade_all(texts, [True] * len(texts), problems.items, world)
            say[f"{world}, {what}"] = f"{sum(map(bool, right))} right in {time.monotonic() - started:.1f} s"
            odd = [
                (p.id, p.answer, text)
                for p, r, text in zip(problems.items, right, texts, strict=True)
                if bool(r) != (what != "next one's") and text != rf"\boxed{{{p.answer}}}"
            ]
            say[f"{world}, {what}"] += f" {odd}" * bool(odd)
    probes = list(csv.DictReader((SHARED / "paper" / "verifier_probes.csv").open()))
    texts = [p["boxed_answer_or_response"] for p in probes]
    texts = [
        t if p["what_is_probed"].startswith("full") else rf"\boxed{{{t}}}"
        for t, p in zip(texts, probes, strict=True)
    ]
    got = grade_all(texts, [True] * 44, [problem(p["ground_truth"]) for p in probes], "parity")
    agree = sum(g == (float(p["score"]) > 0) for g, p in zip(got, probes, strict=True))
    with capsys.disabled():
        print(json.dumps({**say, "probes": agree}, indent=1))
    assert agree >= 43
    for world in ("math", "parity"):
        assert say[f"{world}, boxed"].startswith("1547") and say[f"{world}, judged"].startswith("1547")
        # Another question's answer: right only where the two answers are equal, as "5" and "x=5" are.
        assert say[f"{world}, next one's"].startswith("10 right")
