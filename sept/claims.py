"""The paper's claims, each with the test that decides it, the published and the measured evidence.

A notebook measures a claim's statistic with its interval and records it under the claim's name; this file
says beforehand which values mean what. Rules: `above` t: holds if the whole interval lies above t, does
not hold if it lies below; `below` t: the other way round; `within` t: holds if the interval lies inside
[-t, t], does not hold if it lies outside. Everything else is undecided.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import SeptError, shipped
from .provenance import read_json


@dataclass(frozen=True)
class Claim:
    """One claim; `data/claims.toml` says what the fields mean."""

    name: str
    text: str
    statistic: str
    rule: str
    threshold: float
    notebook: str
    source: str
    published: float | None = None
    first: bool = False


CLAIMS = tuple(Claim(name, **fields) for name, fields in shipped("claims.toml").items())


def verdict(rule: str, threshold: float, low: float, high: float) -> str:
    """`holds here`, `does not hold here` or `undecided` for the interval [low, high]."""
    if rule == "within":
        holds, fails = -threshold < low and high < threshold, low > threshold or high < -threshold
    else:
        above, below = low > threshold, high < threshold
        holds, fails = (above, below) if rule == "above" else (below, above)
    return "holds here" if holds else "does not hold here" if fails else "undecided"


def claims_table(folder: str | Path) -> list[dict[str, Any]]:
    """One row per claim from the numbers that the notebooks recorded in `folder`.

    Keys: claim, text, statistic, rule, rule_first, published, source, value, lo, hi, verdict, notebook. A
    claim whose notebook has not run is `not measured`. SeptError if there is nothing at all in the folder.
    """
    rows, found = [], 0
    for claim in CLAIMS:
        path = Path(folder) / f"{claim.notebook}.json"
        recorded = {}
        if path.is_file():
            recorded = read_json(path, "let its notebook run again (`sept figures --only`)").get(
                "claims", {}
            )
        found += path.is_file()
        value, low, high = recorded.get(claim.name, (None, None, None))
        decided = verdict(claim.rule, claim.threshold, low, high) if low is not None else "not measured"
        row: dict[str, Any] = {"claim": claim.name, "text": claim.text, "statistic": claim.statistic}
        row |= {"rule": f"{claim.rule} {claim.threshold:g}", "rule_first": claim.first}
        row |= {"published": claim.published, "source": claim.source, "value": value, "lo": low, "hi": high}
        rows.append(row | {"verdict": decided, "notebook": claim.notebook})
    if not found:
        raise SeptError(
            f"no recorded numbers in {str(folder)!r}: run `sept figures`, or name another --dir"
        )
    return rows
