"""The paper's own numbers, as data (arXiv 2510.18814).

Scores are percentages. The paper gives one run per cell, without seeds or intervals, so nothing
here has an error bar. Where each column comes from: `sept/data/published/README.md`.
"""

from __future__ import annotations

import json
from functools import cache
from io import StringIO
from typing import Any

import pandas as pd

from .config import shipped_text

BENCHMARKS = ("MATH-500", "AMC-23", "Minerva", "Olympiad", "AIME-24", "AIME-25")

# Questions behind each score. The Olympiad file has 675; two prompts exceed the length limit.
N_SCORED = {"MATH-500": 500, "AMC-23": 40, "Minerva": 272, "Olympiad": 673, "AIME-24": 30, "AIME-25": 30}

TABLE_3_TASKS = tuple(f"leaderboard_{name}" for name in ("ifeval", "bbh", "gpqa", "musr", "mmlu_pro"))
"""Table 3's tasks for lm-evaluation-harness. The paper names neither variants nor shots nor metrics; these are
the Open LLM Leaderboard's five of the same names, as the harness defines them."""

_UNTRAINED = ("Baseline", "Base")


@cache
def _read(name: str) -> pd.DataFrame:
    # Figure "2" and x "0.5" stay text: some figures have letters, some x are bar names.
    # keep_default_na=False because "none" and empty cells are values here.
    return pd.read_csv(StringIO(shipped_text(f"published/{name}")), dtype=str, keep_default_na=False)


def tables() -> pd.DataFrame:
    """Tables 1 to 12, one row per printed number; a fresh copy each call."""
    frame = _read("tables.csv").copy()
    frame["table"] = frame["table"].astype(int)
    for column in ("value", "delta_vs_baseline"):
        frame[column] = pd.to_numeric(frame[column])
    return frame


def curves() -> pd.DataFrame:
    """Points of Figures 1a, 1c, 2, 3, 5, 6, 7; `x` is text, as some axes carry names."""
    frame = _read("figure_curves.csv").copy()
    for column in ("y", "count", "denominator"):
        frame[column] = pd.to_numeric(frame[column])
    return frame


def settings() -> dict[str, Any]:
    """Settings of the paper's runs; each leaf is `{value, source, note}`."""
    return json.loads(shipped_text("published/settings.json"))


def _pick(frame: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """Rows that match all of `wanted`; a miss names the first unknown value and the known ones."""
    for column, value in wanted.items():
        known = sorted(frame[column].unique().tolist())
        if value not in known:
            listing = ", ".join(str(k) for k in known)
            raise ValueError(f"unknown {column} {value!r}; known: {listing}")
        frame = frame[frame[column] == value]
    return frame


def table_row(
    table: int, model: str, method: str, train_data: str = "DSR", benchmark: str = "mean"
) -> pd.Series:
    """One printed row as a series over its columns.

    The columns are metrics (`pass@1`, ..., `AVG`); in Table 3, which has no mean, they are tasks.
    Untrained methods have no training set, so `train_data` is ignored for them.
    """
    data = "none" if method in _UNTRAINED else train_data
    rows = _pick(tables(), table=table, model=model, method=method, train_data=data)
    if table == 3:
        return rows.set_index("benchmark")["value"]
    return _pick(rows, benchmark=benchmark).set_index("metric")["value"]


def curve(figure: str, panel: str, series: str) -> pd.DataFrame:
    """One plotted series, in plotting order, with `x` as numbers where the axis has numbers."""
    rows = _pick(curves(), figure=figure, panel=panel, series=series).reset_index(drop=True)
    x = pd.to_numeric(rows["x"], errors="coerce")
    return rows if x.isna().any() else rows.assign(x=x)
