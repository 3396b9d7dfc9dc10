"""The map of bases: its order, its predictors, its shards, its gains, and what is read off them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_policy
from matplotlib.figure import Figure

from sept import figures_map, regime, regime_statistics
from sept.config import SeptError

ROOT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------------------------ order


def test_every_beginning_of_the_order_is_balanced():
    axes = (regime.DOCUMENTS, regime.TOKENS, tuple(regime.NOISE))
    order = regime.balanced(axes)
    assert len(set(order)) == len(order) == 36
    for n in range(1, 37):
        for axis, levels in enumerate(axes):
            met = [sum(cell[axis] == level for cell in order[:n]) for level in levels]
            assert max(met) - min(met) <= 2, (n, axis, met)
    for a, b in ((0, 1), (0, 2)):  # twelve bases stand on twelve different places of each map
        assert len({(cell[a], cell[b]) for cell in order[:12]}) >= 11


def test_the_list_of_bases_is_one_list_without_end():
    found = regime.cells(90)
    assert found[:16] == regime.cells(16), "a longer map begins with the shorter one"
    assert len(set(found)) == 90
    assert [c.start for c in found[:4]] == ["F", "F", "F", "nothing"]
    assert {c.seed for c in found[:44]} == {0}
    assert found[44].seed == 1
    seeds = [c.recipe().seed for c in found]
    assert len(set(seeds)) == 90, "no two bases share a corpus"
    assert found[0].recipe(0.5).stages[0].tokens == found[0].tokens // 2


# ------------------------------------------------------------------------------------- predictors


def test_agreement_of_answers():
    same = regime.answers_statistics([["7"] * 4], ["7"])
    assert same == {"agreement": 1.0, "against_majority": 0.0}
    apart = regime.answers_statistics([["1", "2", "3", "4"]], ["9"])
    assert apart == {"agreement": 0.0, "against_majority": 1.0}
    # Of the 12 ordered pairs 2 + 2 agree; a greedy answer that ties with the majority is not against it.
    half = regime.answers_statistics([["1", "1", "2", "2"], ["1", "1", "1", "2"]], ["2", "2"])
    assert half["agreement"] == pytest.approx((4 / 12 + 6 / 12) / 2)
    assert half["against_majority"] == 0.5


def test_statistics_of_logits_with_known_values():
    flat = regime.logit_statistics(torch.zeros(5, 8))
    assert flat == {"entropy": pytest.approx(np.log(8)), "margin": 0.0, "undecided": 1.0}
    sure = torch.zeros(4, 8)
    sure[:, 3] = 1000.0
    sure += 5  # only differences count
    assert regime.logit_statistics(sure) == {"entropy": 0.0, "margin": 1000.0, "undecided": 0.0}
    two = torch.full((1, 3), -1000.0)
    two[0, :2] = torch.tensor([np.log(3.0), 0.0])  # 3 to 1
    got = regime.logit_statistics(two)
    assert got["entropy"] == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert got["margin"] == pytest.approx(np.log(3))


def test_loss_of_a_uniform_policy_is_the_log_of_its_vocabulary():
    policy = random_policy(vocab=50)
    for weight in policy.model.parameters():
        torch.nn.init.zeros_(weight)
    pairs = [("w1 w2", "w3"), ("w4", "w5 w6 w7"), ("w8", "w9")]
    assert regime.mean_loss(policy, pairs, rows=2) == pytest.approx(np.log(50), rel=1e-6)


def test_loss_counts_every_token_once_and_the_end():
    policy = random_policy(vocab=50)
    pairs = [("w1 w2", "w3"), ("w4", "w5 w6 w7")]
    by_hand, tokens = 0.0, 0
    for prompt, response in pairs:
        ids = [*policy.encode(prompt), *policy.encode(response)[1:], policy.eos_ids[0]]
        n = len(response.split()) + 1
        with torch.no_grad():
            log_p = torch.log_softmax(policy.model(torch.tensor([ids])).logits[0].double(), -1)
        by_hand -= sum(float(log_p[i - 1, ids[i]]) for i in range(len(ids) - n, len(ids)))
        tokens += n
    assert regime.mean_loss(policy, pairs) == pytest.approx(by_hand / tokens, rel=1e-5)


def test_nothing_carries_over_without_a_step():
    from sept.policy import load_policy

    got = regime.carry_over(load_policy("E"), steps=0)
    assert got["slope_trained"] == pytest.approx(1, abs=1e-5)
    assert got["carry_over"] == pytest.approx(0, abs=1e-5)


# ----------------------------------------------------------------------------------------- shards


def shard(cell=None, rng=None, questions=60, arm_up=0.0):
    """A made-up base: two families, three temperatures, three arms."""
    rng = rng or np.random.default_rng(0)
    rows = []
    for split in ("test", "dev"):
        for i in range(questions):
            p = rng.uniform(0.2, 0.8)
            row = {"id": f"{split}/add{3 + i % 2}/0/{i}", "family": f"add{3 + i % 2}", "n": 32}
            row |= {
                "T=0.0": int(rng.random() < p),
                "T=0.5": rng.binomial(32, p),
                "T=1.0": rng.binomial(32, p / 2),
            }
            row |= dict.fromkeys(regime.ARMS, pd.NA)
            if split == "test":
                row |= {arm: rng.binomial(32, min(1, p + arm_up)) for arm in regime.ARMS}
            rows.append(row)
    known = {name: float(rng.normal()) for name in regime.PREDICTORS}
    return regime.Shard(cell or regime.cells(1)[0], known, pd.DataFrame(rows))


def write(made, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"cell": asdict(made.cell), "predictors": made.known}))
    made.counts.to_csv(path, index=False)


def test_a_map_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    made = []

    def pretend(cell, plan, folder):
        if len(made) == 2:
            raise KeyboardInterrupt
        write(shard(cell), regime.shard_file(cell, plan, folder))
        made.append(cell)

    monkeypatch.setattr(regime, "make_shard", pretend)
    plan, folder = regime.Plan(4), tmp_path / "map"
    with pytest.raises(KeyboardInterrupt):
        regime.compute(plan, folder, workers=1)
    assert len(list(folder.glob("*.csv"))) == 2
    half = regime.shard_file(regime.cells(4)[2], plan, folder).with_suffix(".json")
    half.write_text("{}")  # killed between the two files: not finished
    monkeypatch.setattr(regime, "make_shard", lambda c, p, f: write(shard(c), regime.shard_file(c, p, f)))
    shards = regime.compute(plan, folder, workers=1)
    assert [s.cell for s in shards] == regime.cells(4)
    assert len(regime.compute(regime.Plan(2), folder, workers=1)) == 4, "whatever is finished is read"
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert len(regime.compute(plan, folder, workers=1)) == 4
    assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir()}, "finished shards are left alone"


def test_a_shard_s_name_follows_what_alters_its_numbers(tmp_path):
    cell = regime.cells(1)[0]
    names = {regime.shard_file(cell, plan, tmp_path).name for plan in (regime.Plan(4), regime.Plan(9))}
    assert len(names) == 1, "how many bases there are does not alter one"
    others = (regime.Plan(4, n=16), regime.Plan(4, overrides={"rounds": 3}), regime.Plan(4, share=0.5))
    assert len(names | {regime.shard_file(cell, plan, tmp_path).name for plan in others}) == 4


def test_a_shard_of_another_base_is_refused(tmp_path):
    one, two = regime.cells(2)
    write(shard(one), tmp_path / "x.csv")
    with pytest.raises(SeptError, match="another base"):
        regime.read_shard(two, tmp_path / "x.csv")


def test_a_profile_s_map(monkeypatch):
    assert regime.place("gpu") == regime.place("laptop")
    assert regime.place("laptop")[1] == ROOT / "figures" / "map"
    monkeypatch.setenv("SEPT_BASES", "7")
    assert regime.place("quick")[0].bases == 7


# ------------------------------------------------------------------------------------------ gains


def test_gains_against_each_baseline_by_hand():
    made = shard()
    counts = made.counts
    test = counts["id"].str.startswith("test")
    counts["T=0.0"], counts["T=0.5"], counts["T=1.0"] = 1, 16, 8
    counts.loc[test, list(regime.ARMS)] = 24
    counts.loc[~test, "T=1.0"] = 32  # on dev another temperature wins
    table = regime_statistics.gains(made).set_index(["arm", "against", "metric"])
    row = table.loc["SePT", "own", "pass@1"]
    assert (row["temperature"], row["value"], row["lo"], row["hi"]) == (0.0, -25, -25, -25)
    assert table.loc["SePT", "test", "pass@1"]["value"] == pytest.approx(25)
    dev = table.loc["SePT", "dev", "pass@1"]
    assert (dev["temperature"], dev["value"]) == (1.0, pytest.approx(50))
    assert table.loc["EM-FT", "own", "AVG"]["temperature"] == 0.5, "greedy has no AVG"
    assert table.loc["EM-FT", "own", "pass@32"]["temperature"] == 0.0


def test_the_interval_of_a_gain_covers_the_truth():
    covered, widths = 0, []
    for seed in range(16):
        made = shard(rng=np.random.default_rng(seed), questions=150, arm_up=0.1)
        row = (
            regime_statistics.gains(made)
            .query("arm == 'SePT' and against == 'test' and metric == 'pass@1'")
            .iloc[0]
        )
        covered += row["lo"] <= 10 <= row["hi"]
        widths.append(row["hi"] - row["lo"])
    # Paired: p (1 - p) / 32 twice, p uniform in .2 to .8 (arm: .3 to .9).
    p = np.linspace(0.2, 0.8, 601)
    sd = np.sqrt(np.mean(p * (1 - p) + (p + 0.1) * (0.9 - p)) / 32 / 150)
    assert np.mean(widths) == pytest.approx(100 * 2 * 1.96 * sd, rel=0.1)
    assert covered >= 13


def made_map(n=12, seed=0):
    rng = np.random.default_rng(seed)
    return [shard(cell, rng, questions=20, arm_up=0.05) for cell in regime.cells(n)]


def test_the_table_of_bases_and_the_cells_of_a_map():
    shards = made_map()
    measured = [regime_statistics.gains(s) for s in shards]
    table = regime_statistics.bases_table(shards, measured)
    assert len(table) == 12
    assert table["passes"][0] == pytest.approx(
        table["tokens"][0] / table["documents"][0] / regime.document_length()
    )
    own = pd.concat(
        t[t["against"] == "own"].assign(base=s.cell.name) for s, t in zip(shards, measured, strict=True)
    )
    main = table[table["start"] == "F"]
    cells = regime_statistics.map_cells(own, main, "documents", "error_rate", "SePT", ["AVG"])
    assert cells["bases"].sum() == len(main)
    first = cells.iloc[0]
    here = main[(main["documents"] == first["x"]) & (main["error_rate"] == first["y"])]
    assert first["value"] == pytest.approx(here["SePT AVG"].mean())
    one = own[
        (own["base"] == here["base"].iloc[0]) & (own["arm"] == "SePT") & (own["metric"] == "AVG")
    ].iloc[0]
    if len(here) == 1:
        assert first["lo"] == pytest.approx(one["lo"])
    two = pd.DataFrame(
        [
            {"base": b, "arm": "SePT", "metric": "AVG", "value": v, "lo": v - 3, "hi": v + 4}
            for b, v in (("a", 1), ("b", 5))
        ]
    )
    where = pd.DataFrame({"base": ["a", "b"], "x": 1, "y": 2})
    got = regime_statistics.map_cells(two, where, "x", "y", "SePT", ["AVG"]).iloc[0]
    assert (got["value"], got["bases"]) == (3, 2)
    assert (got["lo"], got["hi"]) == (pytest.approx(3 - 18**0.5 / 2), pytest.approx(3 + 32**0.5 / 2))


# -------------------------------------------------------------------------------- over the bases


def bases(n=18, seed=0, slope=3.0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"base": [f"b{i}" for i in range(n)], "group": [f"g{i}" for i in range(n)]})
    table["a"], table["b"] = rng.normal(size=n), rng.normal(size=n)
    return table.assign(gain=slope * table["a"] + 0.3 * rng.normal(size=n))


def test_a_line_is_found_and_beats_the_constant():
    table = bases()
    got = regime_statistics.held_out(table, ["a", "b"], "gain")
    assert list(got["base"]) == list(table["base"])
    off, constant = ((got[c] - got["value"]).abs().mean() for c in ("predicted", "constant"))
    assert off < 0.5 < 1.5 < constant
    assert (got["chosen"] != "b").all()


def test_a_base_s_own_gain_never_reaches_its_prediction():
    table = bases()
    table["group"] = [f"g{i // 2}" for i in range(len(table))]  # two seeds of each recipe
    before = regime_statistics.held_out(table, ["a", "b"], "gain").set_index("base")
    table.loc[[4, 5], "gain"] = 1e6
    after = regime_statistics.held_out(table, ["a", "b"], "gain").set_index("base")
    for base in ("b4", "b5"):
        assert after.loc[base, "predicted"] == before.loc[base, "predicted"]
        assert after.loc[base, "constant"] == before.loc[base, "constant"]
        assert after.loc[base, "chosen"] == before.loc[base, "chosen"]


def test_nothing_is_predicted_from_noise():
    better = []
    for seed in range(4):
        got = regime_statistics.held_out(bases(12, seed, slope=0.0), ["a", "b"], "gain")
        better.append(
            ((got["predicted"] - got["value"]).abs() - (got["constant"] - got["value"]).abs()).mean()
        )
    assert np.mean(better) > 0


def test_the_constant_is_the_median_of_the_others():
    table = bases(5)
    got = regime_statistics.held_out(table, ["a"], "gain")
    assert got["constant"][2] == table["gain"].drop(2).median()


def test_intervals_resample_recipes():
    table = bases(40, slope=0.0)
    got = regime_statistics.over_bases(table, lambda t: t["gain"].mean())
    half = 1.96 * table["gain"].std() / np.sqrt(40)
    assert got["value"] == pytest.approx(table["gain"].mean())
    assert got["hi"] - got["lo"] == pytest.approx(2 * half, rel=0.1)
    copies = pd.concat([table, table])  # as many recipes, twice the seeds: no more is known
    twice = regime_statistics.over_bases(copies, lambda t: t["gain"].mean())
    assert twice["hi"] - twice["lo"] == pytest.approx(got["hi"] - got["lo"], rel=0.1)


def test_rank_correlation_and_verdicts():
    table = pd.DataFrame({"x": [1, 2, 3, 4], "y": [1, 10, 100, 1000], "z": [4, 3, 2, 1], "c": 1})
    assert regime_statistics.rank_correlation("x", "y")(table) == pytest.approx(1)
    assert regime_statistics.rank_correlation("x", "z")(table) == pytest.approx(-1)
    assert np.isnan(regime_statistics.rank_correlation("x", "c")(table))
    assert [regime_statistics.verdict(*i) for i in ((1, 2), (-1, 2), (-2, -1), (np.nan, 1))] == [
        "holds", "undecided", "refuted", "undecided",
    ]  # fmt: skip
    assert regime_statistics.verdict(-2, -1, above=False) == "holds"
    assert regime_statistics.verdict(1, 2, 3.0, above=False) == "holds"


# --------------------------------------------------------------------------------------- drawings


def tables():
    place = [
        {"panel": "AVG", "x": x, "y": y, "value": x * y, "lo": -1, "hi": 2, "bases": 1}
        for x in (-1, 1)
        for y in (1, 2)
    ]
    gain = [
        {"base": b, "arm": a, "metric": "AVG", "value": 1.0, "lo": 0.0, "hi": 2.0}
        for b in "ab"
        for a in ("SePT", "EM-FT")
    ]
    point = [
        {"panel": "gap", "start": s, "x": 1.0, "value": 1.0, "lo": 0.0, "hi": 2.0}
        for s in figures_map.STARTS
    ]
    guess = [{"base": "a", "start": "F", "value": 1.0, "predicted": 2.0, "constant": 0.0}]
    return [
        (figures_map.figure_regime, place, {"x": "a", "y": "b"}),
        (figures_map.figure_bases, gain, {"metrics": ["AVG"]}),
        (figures_map.figure_foretold, point, {"ylabel": "gain"}),
        (figures_map.figure_predicted, guess, {}),
    ]


@pytest.mark.parametrize("which", range(4))
def test_draws_and_names_a_missing_column(which):
    draw, rows, options = tables()[which]
    table = pd.DataFrame(rows)
    assert isinstance(draw(table, **options), Figure)
    with pytest.raises(ValueError, match="'value' is missing"):
        draw(table.drop(columns="value"), **options)


def test_the_zero_line_needs_a_full_grid():
    draw, rows, options = tables()[0]

    def lines(table):
        return len(draw(table, **options).axes[0].lines)

    assert lines(pd.DataFrame(rows)) == 2, "between x = -1 and x = 1, once per row"
    assert lines(pd.DataFrame(rows[:-1])) == 0


# -------------------------------------------------------------------------------------- committed


def test_the_committed_map_is_whole_and_its_hypotheses_are_answered():
    plan, folder = regime.place("laptop")
    assert plan.bases == 0, "reading the committed map computes nothing"
    shards = regime.compute(plan, folder, workers=1)
    assert len(shards) >= 9
    assert all(set(regime.PREDICTORS) <= set(s.known) for s in shards)
    assert all((s.counts["id"].str.startswith("test")).sum() == 300 for s in shards)
    assert len(list(folder.glob("*.csv"))) == len(shards), "shards that no plan asks for"
    recorded = json.loads((ROOT / "figures" / "laptop" / "22_regime_map.json").read_text())
    assert recorded["bases"] == len(shards)
    text = (ROOT / "docs" / "hypotheses-map.md").read_text()
    for number in range(1, 13):
        (row,) = re.findall(rf"^\| M{number} \|.*\|$", text, re.M)
        assert row.split("|")[-2].strip() == recorded[f"M{number} verdict"], row


@pytest.mark.slow
def test_a_shard_from_nothing_to_its_files(tmp_path):
    overrides = {"rounds": 2, "warmup": 0, "questions": 16, "mini_batch": 8}
    plan = regime.Plan(1, "toy:test:2", "toy:dev:2", 32, 0.01, 2, overrides, (0.0, 0.6))
    (made,) = regime.compute(plan, tmp_path / "map", workers=1)
    assert made.cell == regime.cells(1)[0]
    assert set(regime.PREDICTORS) <= set(made.known)
    assert np.isfinite(list(made.known.values())).all()
    assert len(made.counts) == 24
    assert made.counts.loc[made.counts["id"].str.startswith("dev"), "sept"].isna().all()
    assert set(regime_statistics.gains(made)["arm"]) == {"SePT", "Offline", "EM-FT"}
    files = sorted((tmp_path / "map").iterdir())
    before = [p.read_bytes() for p in files]
    files[0].unlink()  # the CSV: made again from the store, to the byte
    regime.compute(plan, tmp_path / "map", workers=1)
    assert files[0].read_bytes() == before[0]
    small = regime.Cell("small", 8, 3_000, "low")
    folder = regime.build(small.recipe(1.0))
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 64
