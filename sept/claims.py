"""The paper's claims, each with the test that decides it, the published and the measured evidence.

A notebook measures a claim's statistic with its interval and records it under the claim's name; this file
says beforehand which values mean what. Rules: `above` t: holds if the whole interval lies above t, does
not hold if it lies below; `below` t: the other way round; `within` t: holds if the interval lies inside
[-t, t], does not hold if it lies outside. Everything else is undecided.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import published
from .config import SeptError

MODEL = "Qwen2.5-Math-7B"


def _printed(table: int, metric: str, a: str, b: str, data: str = "DSR", model: str = MODEL) -> float:
    """Printed a minus b of one table and model."""
    rows = [published.table_row(table, model, name, data)[metric] for name in (a, b)]
    return round(float(rows[0] - rows[1]), 1)


def _peak(panel: str) -> float:
    curve = published.curve("1a", panel, "Mean")
    return float(curve.loc[curve["y"].idxmax(), "x"])


def _early(metric_panel: str) -> float:
    """Published G = 8 minus G = 1 over the first half of training, mean of the points."""
    many, one = (published.curve("5", metric_panel, f"SePT G={G}") for G in (8, 1))
    first = (one["x"] > 0) & (one["x"] <= one["x"].max() / 2)
    return round(float((many["y"] - one["y"])[first].mean()), 1)


@dataclass(frozen=True)
class Claim:
    """One claim. statistic: what is measured, in points of a score unless it says otherwise.

    first: the rule was written before any number for it had been seen on the embedded world. Rules
    with first = False came after first runs, and before those that are reported.
    """

    name: str
    text: str
    statistic: str
    rule: str
    threshold: float
    notebook: str
    published: Callable[[], float]
    source: str
    first: bool = False


CLAIMS = (
    Claim(
        "cold pass@1, warm pass@32",
        "Untrained, pass@1 peaks at a lower temperature than pass@32",
        "best temperature for pass@32 minus best for pass@1, bootstrap over questions",
        "above",
        0.0,
        "02_temperature_sweep",
        lambda: round(_peak("right") - _peak("left"), 1),
        "Figure 1a",
    ),
    Claim(
        "SePT beats the baseline",
        "SePT beats the untrained model at its best temperature",
        "SePT minus baseline chosen on test, AVG, paired",
        "above",
        0.0,
        "03_main_result",
        lambda: _printed(1, "AVG", "SePT", "Baseline"),
        "Table 1",
    ),
    Claim(
        "SePT gains at large k",
        "SePT gains at k = 32 as well",
        "SePT minus baseline chosen on test, pass@32, paired",
        "above",
        0.0,
        "03_main_result",
        lambda: _printed(1, "pass@32", "SePT", "Baseline"),
        "Table 1",
    ),
    Claim(
        "GRPO gains more",
        "GRPO, which sees rewards, gains more than SePT",
        "GRPO minus SePT, AVG, paired",
        "above",
        0.0,
        "03_main_result",
        lambda: _printed(1, "AVG", "GRPO", "SePT"),
        "Table 1",
    ),
    Claim(
        "annealing helps large k",
        "Annealing tau_s to 1 helps at large k",
        "SePT (annealed) minus constant tau_s, each at its own best rate, pass@32, paired",
        "above",
        0.0,
        "04_learning_rates",
        lambda: float("nan"),
        "Section 3.1, no numbers",
    ),
    Claim(
        "online beats offline",
        "Refreshing the sampler beats one frozen data set",
        "SePT minus Offline, AVG, paired",
        "above",
        0.0,
        "05_table_4_offline",
        lambda: _printed(4, "AVG", "SePT", "SePT (Offline)"),
        "Table 4",
    ),
    Claim(
        "offline still gains",
        "Training on one frozen set still beats the untrained model",
        "Offline minus baseline chosen on test, AVG, paired",
        "above",
        0.0,
        "05_table_4_offline",
        lambda: _printed(4, "AVG", "SePT (Offline)", "Baseline"),
        "Table 4",
    ),
    Claim(
        "coupling gives no signal",
        "With tau_s = tau_t there is no first-order signal",
        "Coupled minus the untrained model at temperature 1, AVG; only measured at a rate where SePT gains "
        "5 or more over the best baseline",
        "within",
        3.0,
        "04_learning_rates",
        lambda: float("nan"),
        "Equation 2, no numbers",
        first=True,
    ),
    Claim(
        "decoupling beats coupling",
        "SePT beats training at one temperature",
        "SePT minus Coupled, AVG, paired",
        "above",
        0.0,
        "06_table_5_coupling",
        lambda: _printed(5, "AVG", "Decoupling", "Coupling"),
        "Table 5",
    ),
    Claim(
        "inversion hurts",
        "With tau_s above tau_t training hurts, by more than noise does",
        "Inverted minus Coupled at the same rate, AVG, paired",
        "below",
        0.0,
        "06_table_5_coupling",
        lambda: float("nan"),
        "Theorem 1, no numbers",
    ),
    Claim(
        "SePT beats EM-FT",
        "SePT beats entropy minimisation",
        "SePT minus EM-FT, AVG, paired",
        "above",
        0.0,
        "09_figure_3_em_ft",
        lambda: round(_figure_3("SePT") - _figure_3("EM-FT"), 1),
        "Figure 3",
    ),
    Claim(
        "more rollouts, faster start",
        "More answers per question speed up early learning",
        "G = 8 minus G = 1, pass@1, mean over the first half of the curve, paired",
        "above",
        0.0,
        "10_figure_5_rollouts",
        lambda: _early("left"),
        "Figure 5",
        first=True,
    ),
    Claim(
        "instruction-tuned gains less",
        "An instruction-tuned model gains less from SePT than its base",
        "gain on base H minus gain on base I, AVG, paired",
        "above",
        0.0,
        "11_table_1_models",
        lambda: round(
            _printed(1, "AVG", "SePT", "Baseline", model="Qwen2.5-7B")
            - _printed(1, "AVG", "SePT", "Baseline", model="Qwen2.5-7B-Instruct"),
            1,
        ),
        "Table 1, Qwen2.5-7B",
        first=True,
    ),
    Claim(
        "question set matters less",
        "SePT depends less on the question set than GRPO",
        "|all families minus additions| of GRPO minus that of SePT, AVG, paired",
        "above",
        0.0,
        "12_table_2_question_sets",
        lambda: round(
            abs(_printed(2, "AVG", "GRPO", "Baseline") - _printed(2, "AVG", "GRPO", "Baseline", "OTM"))
            - abs(_printed(2, "AVG", "SePT", "Baseline") - _printed(2, "AVG", "SePT", "Baseline", "OTM")),
            1,
        ),
        "Table 2",
        first=True,
    ),
    Claim(
        "a weak base fails",
        "There is a base on which SePT loses to the untrained model",
        "SePT minus baseline chosen on test on base E, AVG, paired",
        "below",
        0.0,
        "13_table_6_failure",
        lambda: _printed(6, "AVG", "SePT", "Baseline", model="Llama-3.1-8B-Instruct"),
        "Table 6",
    ),
    Claim(
        "general abilities are kept",
        "What was not trained on is kept",
        "SePT minus the untrained model at temperature 1, untrained tasks, pass@1, paired",
        "above",
        -2.0,
        "14_table_3_other_tasks",
        lambda: round(
            float((published.table_row(3, MODEL, "SePT") - published.table_row(3, MODEL, "Base")).mean()), 1
        ),
        "Table 3, mean of five",
        first=True,
    ),
    Claim(
        "margins grow by tau_t / tau_s",
        "One round's optimum multiplies every margin by tau_t / tau_s",
        "largest |new margin - ratio x old margin|, float64, by enumeration",
        "below",
        1e-9,
        "01_theorem_exact",
        lambda: float("nan"),
        "Theorem 1, proved",
    ),
    Claim(
        "margins follow on a language model",
        "Trained to convergence, a language model's margins follow at visited prefixes",
        "slope / (tau_t / tau_s) - 1 at tau_s = 0.6, percent, bootstrap over answers",
        "within",
        3.0,
        "16_theorem_on_language_models",
        lambda: float("nan"),
        "Theorem 1, no numbers",
    ),
)


def _figure_3(method: str) -> float:
    rows = published.curves().query("figure == '3' and model == @MODEL and series == @method")
    return float(rows["y"].iloc[0])


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
        recorded = json.loads(path.read_text()).get("claims", {}) if path.is_file() else {}
        found += path.is_file()
        value, low, high = recorded.get(claim.name, (None, None, None))
        decided = verdict(claim.rule, claim.threshold, low, high) if low is not None else "not measured"
        rule = f"{claim.rule} {claim.threshold:g}"
        printed = claim.published()
        rows.append(
            {"claim": claim.name, "text": claim.text, "statistic": claim.statistic, "rule": rule}
            | {"rule_first": claim.first}
            | {"published": None if printed != printed else printed, "source": claim.source}
            | {"value": value, "lo": low, "hi": high, "verdict": decided, "notebook": claim.notebook}
        )
    if not found:
        raise SeptError(
            f"no recorded numbers in {str(folder)!r}: run `sept figures`, or name another --dir"
        )
    return rows
