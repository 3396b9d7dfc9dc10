"""The claims table: its rules, where its numbers come from, and that the notebooks measure all of them."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from sept import claims, cli
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


def test_published_evidence_is_the_printed_one():
    values = {c.name: c.published() for c in claims.CLAIMS}
    assert len(values) == len(claims.CLAIMS) >= 12, "names are unique"
    assert values["SePT beats the baseline"] == 11.3 and values["online beats offline"] == 9.5
    assert values["SePT beats EM-FT"] == 3.7 and values["a weak base fails"] == -1.1
    assert values["question set matters less"] == pytest.approx(2.5 - 0.2)
    assert math.isnan(values["annealing helps large k"]), "the paper gives no number"


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
