"""The T rows of docs/hypotheses.md, judged on the map's shards (`figures/map`): nothing is trained here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from .evaluation import AVG_KS, best_temperature, difference, family_means, question_scores, summarise
from .shared_part import read_base

METRICS = (*(f"pass@{k}" for k in AVG_KS), "AVG")


def shard_rows(folder: str | Path) -> pd.DataFrame:
    """A row per base of the map, empty without one. Scores in percent, on its test questions.

    base, carry_over; for each metric m `m at 1` (untrained), `m best` (at the temperature best for m) and
    `sept m`, `offline m`, `em-ft m`; `pass@1 at 0.6`, `pass@32 at 0.6`; clear: whether SePT's gain in pass@1 is
    clear of 0; read: what temperature curve and carry-over say of many rounds (`shared_part.read_base`).
    """
    rows = []
    for path in sorted(Path(folder).glob("*.csv")):
        known = json.loads(path.with_suffix(".json").read_text())["predictors"]
        table = pd.read_csv(path).query("id.str.startswith('test')").reset_index(drop=True)
        scored = {
            way: question_scores(table[["id", "family", "n"]].assign(c=table[way]), greedy=way == "T=0.0")
            for way in table.columns[3:]
        }
        sweep = {float(way[2:]): scores for way, scores in scored.items() if way.startswith("T=")}
        row: dict[str, Any] = {"base": path.stem.rsplit("-", 1)[0], "carry_over": known["carry_over"]}
        means = {way: 100 * family_means(scores) for way, scores in scored.items()}
        for m in METRICS:
            best = f"T={best_temperature(sweep, m)}"
            row |= {f"{m} at 1": means["T=1.0"][m], f"{m} best": means[best][m]}
            row |= {f"{arm} {m}": means[arm][m] for arm in ("sept", "offline", "em-ft")}
            if m == "pass@1":
                gain = summarise([difference(scored["sept"], scored[best])]).loc[m]
                row["clear"] = not gain["lo"] <= 0 <= gain["hi"]
            if m in ("pass@1", "pass@32"):
                row[f"{m} at 0.6"] = means["T=0.6"][m]
        taus = np.array(sorted(sweep))
        curve = np.array([family_means(sweep[t])["pass@1"] for t in taus])
        row["read"] = 100 * read_base(taus, curve, float(np.clip(known["carry_over"], 0.01, 1)))["limit"]
        rows.append(row)
    return pd.DataFrame(rows)


def _over_bases(values: pd.DataFrame, statistic: Any, draws: int = 4000) -> list[float]:
    """Value and 95% interval of `statistic` of the rows, by bootstrap over rows."""
    rng, data = np.random.default_rng(0), values.to_numpy(float)
    found = [statistic(data[rng.integers(len(data), size=len(data))]) for _ in range(draws)]
    known = [x for x in found if np.isfinite(x)] or [np.nan]
    return [float(statistic(data)), *np.quantile(known, [0.025, 0.975]).tolist()]


def _rank(data: Any) -> float:
    fewest = min(len(np.unique(data[:, i])) for i in (0, 1))
    return float(spearmanr(data[:, 0], data[:, 1])[0]) if fewest > 2 else np.nan


def judge(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Verdicts of T1, T2a, T2b, T4, T5 on `shard_rows`: id, bases, value, lo, hi, verdict.

    T1: share of bases as predicted; T2: Spearman correlations with carry-over; T4: share of agreeing signs;
    T5: mean absolute error of the reading minus that of the base's best pass@1. Shares have no interval.
    """
    if len(rows) < 4:
        return []
    out = []
    below = rows["offline pass@1"] - rows["pass@1 at 0.6"] < 2
    good = float((below & (rows["offline pass@32"] - rows["pass@32 at 0.6"] > -2)).mean())
    out.append(["T1", len(rows), good, None, None, "held" if good >= 0.75 else "refuted"])
    sides = {"T2a": rows["sept AVG"] - rows["AVG best"], "T2b": rows["sept pass@32"] - rows["pass@32 at 1"]}
    for name, side in sides.items():
        value = _over_bases(pd.DataFrame({"x": rows["carry_over"], "y": side}), _rank)
        verdict = "held" if value[2] < 0 else "refuted" if value[1] > 0 else "open"
        out.append([name, len(rows), *value, verdict])
    clear = rows[rows["clear"]]
    signs = [np.sign(clear[f"{arm} pass@1"] - clear["pass@1 best"]) for arm in ("sept", "em-ft")]
    if len(clear):
        agree = float((signs[0] == signs[1]).mean())
        out.append(["T4", len(clear), agree, None, None, "held" if agree >= 0.75 else "refuted"])
    errors = [(rows[guess] - rows["sept pass@1"]).abs() for guess in ("read", "pass@1 best")]
    value = _over_bases((errors[0] - errors[1]).to_frame(), lambda data: data.mean())
    verdict = "held" if value[2] < 0 else "refuted" if value[1] > 0 else "open"
    out.append(["T5", len(rows), *value, verdict])
    return [dict(zip(("id", "bases", "value", "lo", "hi", "verdict"), row, strict=True)) for row in out]


def point_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The same as points: panel, x, value (`figures_regime.figure_points`)."""
    pairs = {
        "gain in AVG": (rows["carry_over"], rows["sept AVG"] - rows["AVG best"]),
        "change of pass@32": (rows["carry_over"], rows["sept pass@32"] - rows["pass@32 at 1"]),
        "pass@1 of SePT": (rows["read"], rows["sept pass@1"]),
        "pass@1 of Offline": (rows["pass@1 at 0.6"], rows["offline pass@1"]),
    }
    parts = [
        pd.DataFrame({"panel": p, "base": rows["base"], "x": x, "value": y}) for p, (x, y) in pairs.items()
    ]
    return pd.concat(parts, ignore_index=True)
