"""Theorem checks as content-addressed results, computed side by side like training runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import experiments, theorem
from .config import RESULTS_VERSION, digest
from .provenance import environment, write_json, write_text

POINTS = ["panel", "series", "x", "value", "lo", "hi"]


@dataclass(frozen=True)
class Check:
    """One call of `theorem.check`, or `rounds` of them one after the other on the same model."""

    model: str
    tau_s: float
    tau_t: float = 1.0
    level: str = "full"
    targets: str = "soft"
    steps: int = theorem.STEPS
    samples: int = theorem.SAMPLES
    measured: int = 4096
    max_new_tokens: int = 56
    top_p: float = 1.0
    """Below 1 the soft targets are cut to this nucleus: what a truncating sampler would teach."""
    rounds: int = 1
    seed: int = 0
    prompts: str | None = None

    def key(self) -> str:
        """Content address."""
        fields = asdict(self) | {"model": experiments._model_hash(self.model)}
        return digest([RESULTS_VERSION, "theorem", fields])[:16]

    def folder(self) -> Path:
        """Where the store keeps its report.json and its tables."""
        return experiments.results_dir() / f"theorem-{self.key()}"


def compute(checks: Iterable[Check], label: str = "theorem", workers: int | None = None) -> None:
    """Make every check exist; finished ones are left alone, and a killed call goes on where it stopped."""
    wanted = {c.key(): c for c in checks}
    missing = [c for c in wanted.values() if not (c.folder() / "report.json").is_file()]
    missing.sort(key=lambda c: -c.steps * c.samples * c.rounds)
    experiments.check_store()
    experiments.side_by_side([(label, _job, missing)], [c.model for c in missing], workers)
    experiments.note_cost([c.folder() for c in wanted.values()])


def report(check: Check) -> dict[str, Any]:
    """The report of a computed check; `rounds` in it has one report per round."""
    return json.loads((check.folder() / "report.json").read_text())


def table(check: Check, name: str) -> pd.DataFrame:
    """A table of a computed check: `visits` or `tail` (see `_job`)."""
    return pd.read_csv(check.folder() / f"{name}.csv")


def _job(check: Check) -> None:
    """Write report.json (last, so that its presence says that all is there), visits.csv and tail.csv.

    visits: slopes by how often a prefix was visited in training; tail: slopes of margins against the
    likeliest token by the probability q of the other token.
    """
    from .policy import load_policy

    started = time.monotonic()
    policy = load_policy(check.model)
    trained, other = theorem.question_sets(policy, check.prompts, check.seed)
    fields = ("level", "steps", "samples", "max_new_tokens", "targets", "measured", "top_p")
    settings = {f: getattr(check, f) for f in fields}
    reports = []
    for number in range(check.rounds):
        got = theorem.check(
            policy, trained, other, check.tau_s, check.tau_t, seed=check.seed + 1000 * number, **settings
        )
        tables, tail = got.pop("tables", {}), got.pop("tail", None)
        reports.append(got)
    out = {**reports[0], "rounds": reports} if check.rounds > 1 else reports[0]
    if tables and check.rounds == 1:
        frames = [visit_rows(t, check).assign(questions=name) for name, t in tables.items()]
        write_text(check.folder() / "visits.csv", pd.concat(frames).to_csv(index=False))
        write_text(check.folder() / "tail.csv", tail.to_csv(index=False))
    write_text(check.folder() / "seconds", f"{time.monotonic() - started:.1f}")
    write_json(check.folder() / "report.json", {**out, "check": asdict(check), "provenance": environment()})


def visit_rows(prefixes: pd.DataFrame, check: Check) -> pd.DataFrame:
    """Per decade of visits in training (expected, from the share of answers that pass through): visits,
    slope = sum Cov / sum Var, prefixes (distinct)."""
    seen = prefixes.groupby("prefix").agg(n=("var", "size"), cov=("cov", "first"), var=("var", "first"))
    answers = prefixes["sequence"].nunique()
    visits = seen["n"] / answers * check.steps * check.samples
    decade = np.floor(2 * np.log10(visits)) / 2
    rows = []
    for low, part in seen.groupby(decade):
        slope = part["cov"].sum() / part["var"].sum()
        rows.append({"visits": 10 ** (low + 0.25), "slope": slope, "prefixes": len(part)})
    return pd.DataFrame(rows)


# --- tables for `figures_margins.figure_lines`: panel, series, x, value, lo, hi


def growth_points(panel: str, reports: dict[float, dict[str, Any]], prefix: str = "") -> pd.DataFrame:
    """Slopes on trained and on other questions over temperature, with intervals."""
    rows = []
    for x, found in reports.items():
        for series, part in (("trained questions", found), ("other questions", found["other"])):
            if part:
                low, high = part["slope_interval"]
                rows.append([panel, prefix + series, x, part["slope"], low, high])
    return pd.DataFrame(rows, columns=POINTS)


def path_points(panel: str, check: Check) -> pd.DataFrame:
    """Slopes over optimizer steps, with intervals."""
    rows = []
    for point in report(check)["trajectory"]:
        for key, series in (("slope", "trained questions"), ("other_slope", "other questions")):
            if key in point:
                rows.append([panel, series, point["step"], point[key], *point[f"{key}_interval"]])
    return pd.DataFrame(rows, columns=POINTS)


def visit_points(panel: str, check: Check, fewest: int = 20) -> pd.DataFrame:
    """Slopes over visits in training, where at least `fewest` prefixes share a bin."""
    found = table(check, "visits").query("questions == 'trained' and prefixes >= @fewest")
    rows = [[panel, "trained questions", v.visits, v.slope, None, None] for v in found.itertuples()]
    return pd.DataFrame(rows, columns=POINTS)


def tail_points(panel: str, check: Check, fewest: int = 100) -> pd.DataFrame:
    """Growth of margins against the likeliest token over the other token's probability."""
    found = table(check, "tail").query("pairs >= @fewest")
    rows = [[panel, "trained questions", v.q, v.slope, None, None] for v in found.itertuples()]
    return pd.DataFrame(rows, columns=POINTS)
