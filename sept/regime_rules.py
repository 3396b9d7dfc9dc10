"""What the map's measurements say of each hypothesis, by the rules committed with it (docs/hypotheses-map.md,
docs/hypotheses.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .evaluation import difference, family_means
from .regime import Shard
from .regime_statistics import fit, over_bases, rank_correlation, verdict

Row = dict[str, Any]


def _over(table: pd.DataFrame, statistic: Callable[[pd.DataFrame], float]) -> dict[str, float]:
    """value, lo, hi over bases; of fewer than five nothing is said."""
    if len(table) > 4:
        return over_bases(table, statistic)
    return dict.fromkeys(("value", "lo", "hi"), np.nan)


def of_the_map(
    bases: pd.DataFrame,
    own: pd.DataFrame,
    compared: pd.DataFrame,
    ranks: dict[str, float],
    best: Sequence[str],
    target: str,
) -> tuple[dict[str, Row], dict[str, float]]:
    """Rows M1 to M12, and Offline's own mean.

    bases: `regime_statistics.bases_table`; own: gains against each base's own best temperature; compared:
    held-out errors, column `better` the predictor's minus the constant's; ranks: rank correlation of each
    predictor with the gain; best: predictors by their error; target: the column of the gain.
    """
    main = bases[bases["start"] == "F"]

    def between(column: str, ours: list[Any]) -> Callable[[pd.DataFrame], float]:
        """Mean gain of the bases whose `column` is in `ours` minus that of the others."""
        return lambda t: t[target][t[column].isin(ours)].mean() - t[target][~t[column].isin(ours)].mean()

    ends = main[main["tokens"] != 800_000]
    over = [
        (
            "M1",
            "gain rises with the gap (rank correlation)",
            main,
            rank_correlation("gap", target),
            0.0,
            True,
        ),
        ("M2", "125 and 500 documents minus more", main, between("documents", [125, 500]), 0.0, True),
        ("M3", "mid and high noise minus low", main, between("noise", ["mid", "high"]), 0.0, True),
        ("M4", "1.6 M tokens minus 0.4 M", ends, between("tokens", [1_600_000]), 0.0, True),
        (
            "M7",
            "gain at k = 1 minus k = 32",
            bases,
            lambda t: (t["SePT pass@1"] - t["SePT pass@32"]).mean(),
            0.0,
            True,
        ),
        ("M8", "Offline minus SePT", bases, lambda t: (t["Offline AVG"] - t[target]).mean(), 0.0, False),
        (
            "M9",
            "gains of EM-FT and SePT (rank correlation)",
            bases,
            rank_correlation("EM-FT AVG", target),
            0.5,
            True,
        ),
        ("M11", "predictor's error minus a constant's", compared, lambda t: t["better"].mean(), 0.0, False),
    ]
    rows: dict[str, Row] = {}
    for name, statement, table, statistic, threshold, above in over:
        got = _over(table, statistic)
        decided = verdict(got["lo"], got["hi"], threshold, above)
        rows[name] = {"statement": statement, **got, "verdict": decided}
    offline = over_bases(bases, lambda t: t["Offline AVG"].mean())
    if offline["lo"] > 0:
        rows["M8"]["verdict"] = "refuted"

    # About each of some bases, or a single number.
    sept = own[own["arm"] == "SePT"]
    sure, early = (bases["base"][w] for w in (bases["agreement"] > 0.95, bases["start"] == "nothing"))
    certain = sept[sept["base"].isin(sure) & (sept["metric"] == "AVG")]
    stopped = sept[sept["base"].isin(early) & sept["metric"].isin(["AVG", "pass@32"])]

    def ranges(table: pd.DataFrame) -> dict[str, float]:
        return {"value": table["value"].mean(), "lo": table["lo"].min(), "hi": table["hi"].max()}

    found = "undecided" if certain.empty else "refuted" if (certain["lo"] > 3).any() else "holds"
    said = f"sure of itself: at most 3 ({len(certain)} bases)"
    rows["M5"] = {"statement": said, **ranges(certain), "verdict": found}
    found = "holds" if len(stopped) and (stopped["hi"] < 0).all() else "undecided"
    found = "refuted" if (stopped["lo"] > 0).any() else found
    said = f"stopped early: all below 0 ({len(stopped)})"
    rows["M6"] = {"statement": said, **ranges(stopped), "verdict": found}
    line = fit(main[["gap"]].to_numpy(), main[target].to_numpy(), 0.0)
    small = bases[bases["start"] == "small"]
    off = np.abs(small[target] - line(small[["gap"]].to_numpy())).mean()
    found = "undecided" if small.empty else "holds" if off < 10 else "refuted"
    said = f"{len(small)} small bases, off the line in the gap"
    rows["M10"] = {"statement": said, "value": off, "verdict": found}
    at = 1 + list(best).index("carry_over")
    found = "holds" if at == 1 and ranks["carry_over"] < 0 else "refuted"
    rows["M12"] = {"statement": f"rank of carry-over (first: {best[0]})", "value": at, "verdict": found}
    return {f"M{i}": rows[f"M{i}"] for i in range(1, 13)}, offline


def of_the_theory(
    bases: pd.DataFrame,
    own: pd.DataFrame,
    shards: Sequence[Shard],
    temperatures: Sequence[float],
    target: str,
) -> dict[str, Row]:
    """Rows T1, T2a, T2b and T4; arguments as in `of_the_map`, shards in the order of `bases`."""

    def change(arm: str, metric: str, tau: float) -> np.ndarray:
        """The arm at T = 1 minus its base at one temperature, in points, base by base."""
        ways = ((s.scores(arm), s.scores(f"T={tau}")) for s in shards)
        return np.array([100 * family_means(difference(*way))[metric] for way in ways])

    kept = bases.assign(kept=change("sept", "pass@32", 1.0))
    rows: dict[str, Row] = {}
    for name, statement, column in (
        ("T2a", "gain in AVG falls with carry-over", target),
        ("T2b", "pass@32 at T = 1 falls more with it", "kept"),
    ):
        got = _over(kept, rank_correlation("carry_over", column))
        rows[name] = {"statement": statement, **got, "verdict": verdict(got["lo"], got["hi"], above=False)}
    near = 0.6 if 0.6 in temperatures else 0.4
    as_said = np.mean((change("offline", "pass@1", near) < 2) & (change("offline", "pass@32", near) > -2))
    first = own[own["metric"] == "pass@1"].pivot(index="base", columns="arm", values=["value", "lo", "hi"])
    clear = first["value"][(first["lo", "SePT"] > 0) | (first["hi", "SePT"] < 0)]
    same = (clear["SePT"] * clear["EM-FT"] > 0).mean()
    for name, statement, share in (
        ("T1", f"Offline is T = {near} at k = 1 and more at k = 32 (share of bases)", as_said),
        ("T4", f"EM-FT's sign is SePT's at k = 1 (share of {len(clear)} bases)", same),
    ):
        found = "undecided" if np.isnan(share) else "holds" if share >= 0.75 else "refuted"
        rows[name] = {"statement": statement, "value": share, "verdict": found}
    return rows
