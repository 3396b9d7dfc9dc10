"""Are two mathematical answers equal? The rules, and the process that they run in.

`python -m sept.verify` reads lines of JSON [seconds, rule, given, reference] and answers each with 1
(right), 0 (wrong) or ! (out of memory), or dies when it has used up the seconds of processor time.
`sept.grading` starts it and replaces it: what a model writes can keep a computer algebra system busy for
ever.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

MEMORY = 2 << 30
"""Bytes of address space of a grading process."""

_UNITS = (
    "degrees? radians? percent(age)? units? points? inch(es)? feet foot yards? miles? mph kmh? cm mm km "
    "(centi|milli|kilo)?met(er|re)s? kg g grams? (kilo)?grams? pounds? ounces? lit(er|re)s? gallons? "
    "seconds? minutes? min hours? days? weeks? months? years? dollars? cents? square cubic sq"
).split()
_UNIT = re.compile(rf"(?<![A-Za-z\\])({'|'.join(_UNITS)})(?![A-Za-z])(\^\{{?\d\}}?)?")
_PERCENT = re.compile(r"(-?\d[\d.]*)\s*\\?%")
_POWER_OF_TEN = re.compile(r"(?<=[\d.])[eE]([+-]?\d+)(?!\w)")


def _parse(text: str, whole: bool) -> list[Any]:
    """Expressions that math-verify reads in an answer, the text itself last; it sets no alarm here.

    whole: of a part that it can read it must not say that it is all, as it does by default.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    targets: list[Any] = [LatexExtractionConfig(try_extract_without_anchor=not whole)]
    targets += [] if whole else [ExprExtractionConfig()]
    boxed = r"\boxed{" + _PERCENT.sub(r"\\frac{\1}{100}", text) + "}"
    return parse(boxed, targets, parsing_timeout=None)  # type: ignore[arg-type]


def _near(gold: Any, given: Any) -> bool:
    """Numbers must agree to a millionth of their size: math-verify takes 1.6e-19 and 2e-19 for equal."""
    if not (getattr(gold, "is_number", False) and getattr(given, "is_number", False)):
        return True
    a, b = complex(gold.evalf(20)), complex(given.evalf(20))
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b))


def math(given: str, reference: str) -> bool:
    """math-verify, strictly: whole answers, same base, small numbers told apart.

    4.5e33 is a number; x\\% is x or x/100.
    """
    from math_verify import verify

    texts = [
        _POWER_OF_TEN.sub(r"\\times 10^{\1}", text.replace("\u2212", "-")) for text in (given, reference)
    ]
    bases = [re.search(r"\d_\{?(\d+)\}?[\s$]*$", text) for text in texts]
    if bases[0] and bases[1] and bases[0][1] != bases[1][1]:
        return False  # math-verify does not look at the base
    tries = [texts]
    if any(_PERCENT.search(text) for text in texts):
        tries.append([_PERCENT.sub(r"\1", text) for text in texts])
    for ours, theirs in tries:
        gold, own = _parse(theirs, True), _parse(ours, True)
        if verify(gold, own, timeout_seconds=None) and _near(gold[0], own[0]):
            return True
    return False


def parity(given: str, reference: str) -> bool:
    """The verifier behind the paper's numbers: any of three tests may accept.

    Equal text without units and layout; equal elements, whatever the brackets; math-verify as it is.
    So 0.5 is 50\\%, [a, b] is (a, b), and m x 10^k is never 4.5e33.
    """
    from math_verify import verify

    def equal(ours: str, theirs: str) -> bool:
        return verify(_parse(theirs, False), _parse(ours, False), timeout_seconds=None)

    if _plain(given) == _plain(reference):
        return True
    ours, theirs = _elements(_plain(given)), _elements(_plain(reference))
    if len(ours) == len(theirs) > 1 and all(map(equal, ours, theirs)):
        return True
    return equal(given, reference)


def _plain(text: str) -> str:
    """Text without layout, units, percent and currency signs and a short left-hand side."""
    text = re.sub(r"\\(text|mbox|mathrm|textbf)\s*\{([^{}]*)\}", r"\2", text)
    text = re.sub(r"\\left|\\right|\\[!,;: ]|\^\{?\\circ\}?|\\?[$%]|\\degree", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\s+", "", _UNIT.sub("", text)).rstrip(".")
    text = re.sub(r"^[A-Za-z]{1,2}=", "", text)
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text)
    return re.sub(r"^(-?\d+)/(\d+)$", r"\\frac{\1}{\2}", text)


def _elements(text: str) -> list[str]:
    """Parts between commas that stand outside of braces, after the outermost brackets."""
    text = re.sub(r"^(\\\{|[(\[])(.*)(\\\}|[)\]])$", r"\2", text)
    return re.split(r",(?![^{]*\})", text)


def main() -> None:
    """Answer requests until standard input ends."""
    import logging
    import resource

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like a verdict
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    rules: dict[str, Callable[[str, str], bool]] = {"math": math, "parity": parity}
    parity("1", "2")  # imports and regular expressions take a second: before the clock runs
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        seconds, rule, given, reference = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # the system ends this process, whatever it is at
        try:
            verdict = str(int(rules[rule](given, reference)))
        except MemoryError:
            verdict = "!"
        except Exception:  # what cannot be read is not right
            verdict = "0"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(verdict, file=replies, flush=True)


if __name__ == "__main__":
    main()
