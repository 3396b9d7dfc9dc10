"""The published numbers agree with themselves, and the facts read from them can be derived again.

The counts say how many comparisons each check makes, so that a check cannot pass by comparing
nothing. Strict misses are roundings of roundings, below one unit of the last printed digit.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sept import published

RUN = ["model", "method", "train_data"]
DETAIL_OF = {1: 7, 2: 8, 4: 10, 5: 11, 6: 12}  # mean table -> its benchmark-level table
AVG_PARTS = ["pass@1", "pass@8", "pass@32"]
HALF_DIGIT = 0.05 + 1e-9  # printed to one decimal
SWEEPS = {  # panels of the untuned temperature sweeps, with the table of their baseline entries
    "Qwen2.5-Math-7B": ("1a", "left", "right", 7),
    "Qwen2.5-7B": ("7", "row1 left", "row1 right", 7),
    "Qwen2.5-7B-Instruct": ("7", "row2 left", "row2 right", 7),
    "DeepSeek-Math-7B-Instruct": ("7", "row3 left", "row3 right", 7),
    "Llama-3.1-8B-Instruct": ("7", "row4 left", "row4 right", 12),
}


@pytest.fixture(scope="module")
def tables() -> pd.DataFrame:
    return published.tables()


@pytest.fixture(scope="module")
def curves() -> pd.DataFrame:
    return published.curves()


@pytest.fixture(scope="module")
def means(tables: pd.DataFrame) -> pd.DataFrame:
    """Runs of the mean tables, one column per metric."""
    rows = tables[tables["table"].isin(DETAIL_OF) & (tables["train_data"] != "DSR-OTM")]
    return rows.pivot(index=["table", *RUN], columns="metric", values="value")


@pytest.fixture(scope="module")
def details(tables: pd.DataFrame) -> pd.DataFrame:
    """Rows of the benchmark-level tables, one column per metric."""
    rows = tables[(tables["table"] >= 7) & (tables["train_data"] != "DSR-OTM")]
    return rows.pivot(index=["table", *RUN, "benchmark"], columns="metric", values="value")


def _benchmark_means(means: pd.DataFrame, details: pd.DataFrame) -> pd.DataFrame:
    """For each run of a mean table, the mean of its six benchmark entries."""
    averaged = details.groupby(["table", *RUN]).mean()
    keys = [(DETAIL_OF[k[0]], *k[1:]) for k in means.index]
    return averaged.loc[keys].set_axis(means.index)


def test_rows_are_unique(tables):
    assert len(tables) == 1711
    assert not tables.duplicated(["table", *RUN, "benchmark", "metric"]).any()
    assert sorted(tables["table"].unique()) == list(range(1, 13))


def test_avg_is_the_mean_of_three_passes(means):
    gap = (means["AVG"] - means[AVG_PARTS].mean(axis=1)).abs()
    assert len(gap) == 33
    assert (gap <= 0.1 + 1e-9).all()
    assert (gap > HALF_DIGIT).sum() == 1
    assert gap.idxmax() == (6, "Llama-3.1-8B-Instruct", "SePT", "DSR")


def test_mean_rows_are_means_of_six_benchmarks(means, details):
    gap = (means[AVG_PARTS] - _benchmark_means(means, details)[AVG_PARTS]).abs()
    assert gap.size == 99
    assert (gap <= 0.1 + 1e-9).all(axis=None)
    assert (gap > HALF_DIGIT).to_numpy().sum() == 4


def test_avg_from_benchmark_entries(means, details):
    gap = (means["AVG"] - _benchmark_means(means, details)[AVG_PARTS].mean(axis=1)).abs()
    assert len(gap) == 33
    assert (gap > HALF_DIGIT).sum() == 3
    assert (gap <= 0.1).all()


def test_printed_deltas_are_differences_of_printed_values(tables):
    rows = tables[tables["delta_vs_baseline"].notna()]
    assert len(rows) == 52
    for row in rows.itertuples():
        base = published.table_row(row.table, row.model, "Baseline")[row.metric]
        assert round(row.value - base, 1) == row.delta_vs_baseline


def test_dsr_minus_otm_rows(tables):
    key = ["table", "model", "method", "benchmark", "metric"]
    wide = tables[tables["table"].isin([2, 8]) & (tables["train_data"] != "none")]
    wide = wide.pivot(index=key, columns="train_data", values="value")
    assert len(wide) == 160
    assert ((wide["DSR"] - wide["OTM"]).round(1) == wide["DSR-OTM"]).all()


def test_pass_at_k_never_falls_with_k(details):
    ordered = details[[f"pass@{k}" for k in (1, 2, 4, 8, 16, 32)]].to_numpy()
    assert len(ordered) == 234
    assert (np.diff(ordered, axis=1) >= 0).all()


def test_one_run_printed_twice_has_one_value(tables):
    rows = tables[(tables["train_data"] != "DSR-OTM") & (tables["table"] != 3)]
    rows = rows.assign(method=rows["method"].replace("Decoupling", "SePT"))
    repeated = rows.groupby([*RUN, "benchmark", "metric"])["value"].agg(["size", "nunique"])
    repeated = repeated[repeated["size"] > 1]
    assert len(repeated) == 240
    assert (repeated["nunique"] == 1).all()


def _misses(printed: pd.Series, n_of: dict[str, int], samples: int) -> int:
    """Printed percentages that no whole count out of samples * N rounds to."""
    total = printed.index.get_level_values("benchmark").map(n_of).to_numpy() * samples
    count = np.round(printed.to_numpy() / 100 * total)
    return int((np.abs(100 * count / total - printed.to_numpy()) > HALF_DIGIT).sum())


@pytest.mark.parametrize(("olympiad", "expected"), [(673, 0), (675, 17), (674, 12)])
def test_pass_at_32_counts_questions(details, olympiad, expected):
    sizes = published.N_SCORED | {"Olympiad": olympiad}
    assert len(details) == 234
    assert _misses(details["pass@32"], sizes, 1) == expected


def test_pass_at_1_counts_samples(details):
    assert _misses(details["pass@1"], published.N_SCORED, 32) == 0


def test_sizes_agree_with_the_settings():
    scored = published.settings()["benchmarks"]["sizes_effectively_scored"]["value"]
    assert scored == published.N_SCORED | {"total": sum(published.N_SCORED.values())}


def test_curve_values_are_exact_fractions(curves):
    rows = curves[curves["count"].notna()]
    assert len(curves) == 1277
    assert len(rows) > 900
    np.testing.assert_allclose(rows["y"], 100 * rows["count"] / rows["denominator"], atol=1e-4)
    greedy = (rows["y_metric"] == "pass@32") | (rows["x"] == "0.0")
    samples = rows["denominator"] / rows["series"].map(published.N_SCORED)
    assert (samples == np.where(greedy, 1, 32)).all()


def test_mean_curves_are_means_of_six(curves):
    rows = curves[curves["figure"].isin(["1a", "7"])].assign(x=lambda f: f["x"].astype(float))
    wide = rows.pivot(index=["figure", "panel", "x"], columns="series", values="y")
    assert len(wide) == 153
    mean = wide[list(published.BENCHMARKS)].mean(axis=1)
    np.testing.assert_allclose(wide["Mean"], mean, atol=2e-4)


def test_figure_3_is_table_9(details):
    checked = 0
    for model in ("Qwen2.5-Math-7B", "DeepSeek-Math-7B-Instruct"):
        for method in ("Baseline", "EM-FT", "SePT"):
            y = published.curve("3", model, method)["y"].item()
            data = "none" if method == "Baseline" else "DSR"
            rows = details.loc[(9, model, method, data)]
            assert abs(rows[AVG_PARTS].mean().mean() - y) <= HALF_DIGIT
            checked += 1
    assert checked == 6


@pytest.mark.parametrize("model", SWEEPS)
def test_baseline_temperature_is_the_only_one_that_fits(model):
    figure, left, right, table = SWEEPS[model]
    fits = {}
    for benchmark in published.BENCHMARKS:
        row = published.table_row(table, model, "Baseline", benchmark=benchmark)
        for panel, metric in ((left, "pass@1"), (right, "pass@32")):
            points = published.curve(figure, panel, benchmark)
            for point in points[points["x"] > 0].itertuples():
                ok = abs(point.y - row[metric]) <= HALF_DIGIT
                fits.setdefault(point.x, []).append(ok)
    assert all(len(v) == 12 for v in fits.values())
    known = published.settings()["evaluation"]["baseline_tau_selected"][model]["value"]
    assert [x for x, v in fits.items() if all(v)] == [known]


def test_reported_sept_run_is_step_850():
    left, right = (published.curve("5", side, "SePT G=1").set_index("x")["y"] for side in ("left", "right"))
    bars = published.curve("1c", "bars", "SePT").set_index("x")["y"]
    near = ((left - bars["pass@1"]).abs() < 1e-4) & ((right - bars["pass@32"]).abs() < 1e-4)
    assert len(left) == len(right) == 19
    assert near[near].index.tolist() == [850]
    assert (left + right).idxmax() == 850
    step = published.settings()["sept"]["reported_step_Qwen2.5-Math-7B_DSR"]["value"]
    assert step == 850


def test_every_setting_has_a_source():
    def leaves(node):
        if isinstance(node, dict) and "source" in node:
            yield node
        elif isinstance(node, dict):
            for name, child in node.items():
                if not name.startswith("_"):
                    yield from leaves(child)

    found = list(leaves(published.settings()))
    assert len(found) > 100
    assert all(leaf["source"] and set(leaf) <= {"value", "source", "note"} for leaf in found)
    assert all(leaf["source"] == "absent" for leaf in found if leaf["value"] is None)


def test_selectors():
    row = published.table_row(1, "Qwen2.5-Math-7B", "SePT")
    assert row.to_dict() == {"pass@1": 39.5, "pass@8": 57.7, "pass@32": 67.9, "AVG": 55.0}
    assert published.table_row(3, "Qwen2.5-Math-7B", "Base")["IFEval"] == 23.4
    points = published.curve("6", "left", "GRPO")
    assert points["x"].tolist() == [round(0.1 * i, 1) for i in range(17)]


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: published.curve("1b", "left", "Mean"), ["'1b'", "1a", "7"]),
        (lambda: published.curve("1a", "top", "Mean"), ["'top'", "left", "right"]),
        (lambda: published.table_row(13, "Qwen2.5-7B", "SePT"), ["13", "12"]),
        (lambda: published.table_row(7, "Qwen2.5-7B", "SePT"), ["'mean'", "AIME-24"]),
    ],
)
def test_unknown_names_list_the_known_ones(call, names):
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert all(name in message for name in names)


def test_callers_cannot_change_the_data():
    mine = published.tables()
    mine.loc[0, "value"] = -1.0
    assert published.tables().loc[0, "value"] == 22.7
