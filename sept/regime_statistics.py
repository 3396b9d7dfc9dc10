"""What the shards of the map say: gains, cells of the map, statements over bases, held-out predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from .config import ARM_NAMES
from .evaluation import best_temperature, difference, family_means, summarise
from .regime import ARMS, NOISE, Shard, document_length
from .toy import AUTHOR_SHARES


def gains(shard: Shard) -> pd.DataFrame:
    """Rows arm, against, temperature, metric, value, lo, hi: each arm minus each baseline, paired, in points.

    against: `own` (the temperature best for this very metric on the test questions, greedy included for a
    single k), `test` (best AVG there) and `dev` (best AVG on other questions, what a user could choose).
    """
    test, dev = shard.sweep(), shard.sweep("dev")
    chosen = {"test": best_temperature(test), "dev": best_temperature(dev)}
    rows = []
    for arm in ARMS:
        trained = shard.scores(arm)
        metrics = [c for c in trained.columns if c not in ("id", "family")]
        for against in ("own", "test", "dev"):
            taus = [chosen.get(against) or best_temperature(test, metric) for metric in metrics]
            for tau in dict.fromkeys(taus):
                keep = ["id", "family", *(m for m, t in zip(metrics, taus, strict=True) if t == tau)]
                table = summarise([difference(trained[keep], test[tau][keep])])
                place = {"arm": ARM_NAMES[arm], "against": against, "temperature": tau}
                rows += [place | row for row in table.reset_index().to_dict("records")]
    return pd.DataFrame(rows)


def bases_table(shards: Sequence[Shard], measured: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """A row per base: name, group (bases of one recipe), axes, predictors, its own scores, and every arm's gain
    in every metric (`SePT AVG`) against `own`. measured: `gains` of each shard."""
    rows = []
    for shard, table in zip(shards, measured, strict=True):
        cell, own = shard.cell, table[table["against"] == "own"]
        row: dict[str, Any] = {"base": cell.name, "group": cell.name.rpartition("-")[0], **asdict(cell)}
        row["error_rate"] = float(np.dot(AUTHOR_SHARES, NOISE[cell.noise]))
        row["passes"] = cell.tokens / cell.documents / document_length() if cell.documents else 1.0
        row |= shard.known
        row |= {
            f"base T={tau} {m}": 100 * v
            for tau in (0.0, 1.0)
            for m, v in family_means(shard.scores(f"T={tau}")).items()
        }
        row |= {f"{r.arm} {r.metric}": r.value for r in own.itertuples()}
        rows.append(row)
    return pd.DataFrame(rows)


def map_cells(
    own: pd.DataFrame, bases: pd.DataFrame, x: str, y: str, arm: str, metrics: Sequence[str]
) -> pd.DataFrame:
    """Mean gain of the bases at each place of two axes: panel, x, y, value, lo, hi, bases.

    own: rows base, arm, metric, value, lo, hi. Half-widths of the bases' intervals are added in quadrature.
    """
    rows = own[own["arm"] == arm].merge(bases[["base", x, y]], on="base")
    out = []
    for metric in metrics:
        for (a, b), part in rows[rows["metric"] == metric].groupby([x, y]):
            mean = part["value"].mean()
            low, high = (np.sqrt(((part["value"] - part[c]) ** 2).sum()) / len(part) for c in ("lo", "hi"))
            place = {"panel": f"{arm}, {metric}", "x": a, "y": b, "value": mean}
            out.append(place | {"lo": mean - low, "hi": mean + high, "bases": len(part)})
    return pd.DataFrame(out)


def over_bases(
    table: pd.DataFrame, statistic: Callable[[pd.DataFrame], float], draws: int = 2000, seed: int = 0
) -> dict[str, float]:
    """value, lo, hi (95%) of a statistic of the table of bases: recipes are resampled with all their seeds."""
    groups = list(table.reset_index(drop=True).groupby("group", sort=False).indices.values())
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(draws):
        picked = rng.integers(len(groups), size=len(groups))
        drawn.append(statistic(table.iloc[np.concatenate([groups[i] for i in picked])]))
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return {"value": float(statistic(table)), "lo": float(low), "hi": float(high)}


def rank_correlation(a: str, b: str) -> Callable[[pd.DataFrame], float]:
    """Spearman's correlation of two columns as a statistic; NaN where one is constant."""

    def statistic(table: pd.DataFrame) -> float:
        x, y = table[a].rank().to_numpy(), table[b].rank().to_numpy()
        return float(np.corrcoef(x, y)[0, 1]) if x.std() * y.std() > 0 else np.nan

    return statistic


def verdict(lo: float, hi: float, threshold: float = 0.0, above: bool = True) -> str:
    """holds, refuted or undecided: does the interval lie on the stated side of the threshold?"""
    if not np.isfinite([lo, hi]).all():
        return "undecided"
    yes, no = (lo > threshold, hi < threshold) if above else (hi < threshold, lo > threshold)
    return "holds" if yes else "refuted" if no else "undecided"


def fit(x: np.ndarray, y: np.ndarray, alpha: float) -> Callable[[np.ndarray], np.ndarray]:
    """Ridge regression on standardised columns of x [bases, columns]; alpha 0 is least squares."""
    mean, scale = x.mean(0), x.std(0) + 1e-12
    z = (x - mean) / scale
    weights = np.linalg.solve(z.T @ z + (alpha + 1e-9) * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    return lambda new: y.mean() + ((new - mean) / scale) @ weights


ALPHAS = (1.0, 10.0, 100.0)


def held_out(table: pd.DataFrame, names: Sequence[str], target: str) -> pd.DataFrame:
    """Each base predicted from the others: base, value, predicted, constant, chosen.

    For each recipe the choice among one-variable lines and ridge regressions on all of `names` is made by
    leave-one-recipe-out among the other recipes, then fitted to these. constant: their median, the guess
    with the smallest mean absolute error.
    """
    candidates = [((name,), 0.0) for name in names] + [(tuple(names), alpha) for alpha in ALPHAS]
    rows = []
    for group, out in table.groupby("group", sort=False):
        rest = table[table["group"] != group]
        errors = [left_out(rest, columns, alpha, target) for columns, alpha in candidates]
        columns, alpha = candidates[int(np.argmin(errors))]
        guess = fit(rest[[*columns]].to_numpy(float), rest[target].to_numpy(), alpha)
        chosen = columns[0] if len(columns) == 1 else f"ridge, alpha {alpha:g}"
        row = {"base": out["base"], "value": out[target], "chosen": chosen, "group": group}
        row |= {"predicted": guess(out[[*columns]].to_numpy(float)), "constant": rest[target].median()}
        rows.append(pd.DataFrame(row))
    return pd.concat(rows, ignore_index=True)


def left_out(table: pd.DataFrame, columns: Sequence[str], alpha: float, target: str) -> float:
    """Mean absolute error of one regression, each recipe predicted from the others."""
    x, y, groups = table[[*columns]].to_numpy(float), table[target].to_numpy(), table["group"].to_numpy()
    errors = []
    for group in pd.unique(groups):
        own = groups == group
        errors += [*np.abs(fit(x[~own], y[~own], alpha)(x[own]) - y[own])]
    return float(np.mean(errors))
