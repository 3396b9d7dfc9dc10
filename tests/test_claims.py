"""The claims table: its rules, where its numbers come from, and that the notebooks measure all of them."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from sept import claims, cli, published
from sept.config import SeptError

ROOT = Path(claims.__file__).parent.parent


@pytest.mark.parametrize(
    ("rule", "threshold", "low", "high", "expected"),
    [
        ("above", 0.0, 0.1, 2.0, "holds here"),
        ("above", 0.0, -0.1, 2.0, "undecided"),
        ("above", 0.0, -2.0, -0.1, "does not hold here"),
        ("above", -2.0, -1.0, 1.0, "holds here"),
        ("below", 0.0, -2.0, -0.1, "holds here"),
        ("below", 1e-9, 1e-14, 1e-14, "holds here"),
        ("below", 0.0, 0.1, 0.2, "does not hold here"),
        ("within", 3.0, -2.9, 2.9, "holds here"),
        ("within", 3.0, -3.1, 1.0, "undecided"),
        ("within", 3.0, -9.0, -3.1, "does not hold here"),
        ("within", 3.0, 3.1, 4.0, "does not hold here"),
        ("within", 3.0, -4.0, 4.0, "undecided"),
    ],
)
def test_rules(rule, threshold, low, high, expected):
    assert claims.verdict(rule, threshold, low, high) == expected


def printed(table, a, b, metric="AVG", model="Qwen2.5-Math-7B", data="DSR"):
    """Printed a minus b of one table and model."""
    one, other = (published.table_row(table, model, name, data)[metric] for name in (a, b))
    return one - other


def gain(table, method, model="Qwen2.5-Math-7B", data="DSR"):
    return printed(table, method, "Baseline", "AVG", model, data)


def test_published_evidence_is_the_printed_one():
    """Every published number of the claims follows from the tables and curves of the paper."""
    curve = published.curve
    left, right = (curve("1a", side, "Mean") for side in ("left", "right"))
    warm, cold = (c.loc[c["y"].idxmax(), "x"] for c in (right, left))
    many, one = (curve("5", "left", f"SePT G={G}") for G in (8, 1))
    early = (one["x"] > 0) & (one["x"] <= one["x"].max() / 2)
    bars = curve("3", "Qwen2.5-Math-7B", "SePT")["y"], curve("3", "Qwen2.5-Math-7B", "EM-FT")["y"]
    sept, base = (published.table_row(3, "Qwen2.5-Math-7B", name) for name in ("SePT", "Base"))
    expected = {
        "cold pass@1, warm pass@32": warm - cold,
        "SePT beats the baseline": gain(1, "SePT"),
        "SePT gains at large k": printed(1, "SePT", "Baseline", "pass@32"),
        "GRPO gains more": printed(1, "GRPO", "SePT"),
        "online beats offline": printed(4, "SePT", "SePT (Offline)"),
        "offline still gains": gain(4, "SePT (Offline)"),
        "decoupling beats coupling": printed(5, "Decoupling", "Coupling"),
        "SePT beats EM-FT": bars[0].item() - bars[1].item(),
        "more rollouts, faster start": (many["y"] - one["y"])[early].mean(),
        "instruction-tuned gains less": gain(1, "SePT", "Qwen2.5-7B")
        - gain(1, "SePT", "Qwen2.5-7B-Instruct"),
        "question set matters less": abs(gain(2, "GRPO") - gain(2, "GRPO", data="OTM"))
        - abs(gain(2, "SePT") - gain(2, "SePT", data="OTM")),
        "a weak base fails": gain(6, "SePT", "Llama-3.1-8B-Instruct"),
        "general abilities are kept": (sept - base).mean(),
    }
    assert len(claims.CLAIMS) == 18
    written = {c.name: c.published for c in claims.CLAIMS if c.published is not None}
    assert written == {name: round(float(value), 1) for name, value in expected.items()}


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda c: c.name)
def test_each_claim_is_recorded_by_its_notebook(claim):
    text = (ROOT / "notebooks" / f"{claim.notebook}.py").read_text()
    assert f'"{claim.name}":' in text


def test_table_from_recorded_numbers(tmp_path):
    with pytest.raises(SeptError, match="run `sept figures`"):
        claims.claims_table(tmp_path)
    recorded = {
        "claims": {"online beats offline": [5.0, 4.0, 6.0], "offline still gains": [1.0, -1.0, 2.0]}
    }
    (tmp_path / "05_table_4_offline.json").write_text(json.dumps(recorded))
    rows = {row["claim"]: row for row in claims.claims_table(tmp_path)}
    assert rows["online beats offline"]["verdict"] == "holds here"
    assert rows["offline still gains"]["verdict"] == "undecided"
    assert rows["SePT beats the baseline"]["verdict"] == "not measured"
    assert rows["annealing helps large k"]["published"] is None
    json.dumps(list(rows.values()), allow_nan=False)


def test_the_command(tmp_path):
    out = tmp_path / "claims.json"
    done = CliRunner().invoke(
        cli.app, ["claims", "--dir", str(ROOT / "figures/laptop"), "--json", str(out)]
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(out.read_text())["claims"]
    assert len(rows) == len(claims.CLAIMS) == len(done.output.splitlines()) - 1
    assert set(rows[0]) >= {"text", "statistic", "rule", "published", "value", "lo", "hi", "verdict"}


def test_drawing(tmp_path):
    pytest.importorskip("matplotlib")
    from sept import figures, figures_claims

    (tmp_path / "x").mkdir()
    recorded = {
        "claims": {"online beats offline": [55.0, 4.0, 99.0], "offline still gains": [1.0, -1.0, 2.0]}
    }
    (tmp_path / "x" / "05_table_4_offline.json").write_text(json.dumps(recorded))
    table = pd.DataFrame(claims.claims_table(tmp_path / "x"))
    fig = figures.save_figure(figures_claims.figure_claims, "claims", table, tmp_path, {})
    texts = [t.get_text() for t in fig.axes[0].texts]
    assert "+55.0 [4.0, 99.0]" in texts, "what leaves the axis keeps its numbers"
    assert texts.count("holds here") == 1 and texts.count("undecided") == 1
    with pytest.raises(ValueError, match="figure_claims: column 'lo' is missing"):
        figures_claims.figure_claims(table.drop(columns="lo"))
    first = (tmp_path / "claims.png").read_bytes()
    figures.redraw(tmp_path, tmp_path)
    assert first == (tmp_path / "claims.png").read_bytes()
