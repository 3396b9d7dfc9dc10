"""Scores: pass@k, AVG, intervals, the temperature sweep and the baselines.

The unit of everything here is a counts table: one row per question with its id, family, number of
samples n and number of correct ones c. Every score and every interval is a function of such tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .config import SeptError
from .grading import grade_all
from .policy import Policy
from .problems import ProblemSet, fitting
from .sampling import Rollouts, Sampler

AVG_KS = (1, 8, 32)
DETAIL_KS = (1, 2, 4, 8, 16, 32)
METRICS = (*(f"pass@{k}" for k in DETAIL_KS), "AVG")
"""Whatever of these a table of scores holds is averaged, resampled and compared."""


def pass_at_k(n: int, c: Any, k: int) -> np.ndarray:
    """Unbiased pass@k from c correct of n samples: 1 - C(n-c, k) / C(n, k), in product form.

    c is an int or an array; the result has its shape. SeptError unless 1 <= k <= n.
    """
    if not 1 <= k <= n:
        raise SeptError(f"pass@{k} from n = {n} samples: k must lie between 1 and n; draw more samples")
    c = np.asarray(c, dtype=float)
    miss = np.ones_like(c)
    for i in range(k):
        miss = miss * np.clip(n - c - i, 0, None) / (n - i)
    return 1.0 - miss


def question_scores(counts: pd.DataFrame, greedy: bool = False, ks: Sequence[int] = AVG_KS) -> pd.DataFrame:
    """Per question: pass@k for the `ks` that are at most n, and AVG (of k = 1, 8, 32), as shares of 1.

    greedy: one deterministic answer stands for any number of draws, so all pass@k are equal.
    """
    n = int(counts["n"].iloc[0])
    if (counts["n"] != n).any():
        raise SeptError("counts table: every question needs the same number of samples")
    out = counts[["id", "family"]].copy()
    for k in ks:
        if greedy:
            out[f"pass@{k}"] = (counts["c"] > 0).astype(float)
        elif k <= n:
            out[f"pass@{k}"] = pass_at_k(n, counts["c"].to_numpy(), k)
    if all(f"pass@{k}" in out for k in AVG_KS):
        out["AVG"] = out[[f"pass@{k}" for k in AVG_KS]].mean(axis=1)
    return out


def score_rollouts(rollouts: Rollouts, problems: ProblemSet, policy: Policy, n: int) -> pd.DataFrame:
    """Counts table of rollouts drawn n per problem: id, family, n, c, plus finished and tokens (sums)."""
    texts = (
        policy.decode(tokens[:length].tolist())
        for tokens, length in zip(rollouts.tokens, rollouts.lengths, strict=True)
    )
    asked = [problem for problem in problems.items for _ in range(n)]
    right = grade_all(texts, rollouts.finished.tolist(), asked, problems.world)
    rows = []
    for i, problem in enumerate(problems.items):
        own = slice(i * n, (i + 1) * n)
        ended, tokens = int(rollouts.finished[own].sum()), int(rollouts.lengths[own].sum())
        row = {"id": problem.id, "family": problem.family, "n": n, "c": sum(right[own])}
        rows.append(row | {"finished": ended, "tokens": tokens})
    return pd.DataFrame(rows)


def evaluate(
    policy: Policy,
    sampler: Sampler,
    problems: ProblemSet,
    tau: float,
    n: int,
    seed: int = 0,
    max_new_tokens: int = 56,
) -> pd.DataFrame:
    """Counts table of n answers per problem at temperature tau (0: one greedy answer).

    Prompts that do not fit are left out and reported; of the embedded world they are a SeptError.
    """
    if not problems.items:
        raise SeptError(f"problems {problems.name!r}: an endless set cannot be evaluated on, use toy:test")
    if max_new_tokens < 1:
        raise SeptError(f"max_new_tokens = {max_new_tokens}: must be at least 1")
    n = 1 if tau == 0 else n
    problems = fitting(problems, policy.encode, policy.context - max_new_tokens)
    prompts = [policy.encode(p.prompt) for p in problems.items]
    ids = [p.id for p in problems.items]
    rollouts = sampler.sample(prompts, ids, n, tau, max_new_tokens, seed)
    if not np.isfinite(rollouts.log_probs.numpy()).all():
        raise SeptError(
            f"model {policy.name!r}: its logits are not finite, so it is damaged; fetch it again"
        )
    return score_rollouts(rollouts, problems, policy, n)


def examine(problems: ProblemSet, policy: Policy) -> dict[str, Any]:
    """What a problem set holds, and in `wrong` what is wrong with it, a line each (empty: nothing).

    Wrong are prompts of which the policy's tokenizer does not know a character, and references that the
    set's own grader does not accept as an answer to their problem: nobody could get those right.
    """
    items = problems.items or tuple(problems.batch(0, 64, 0))
    prompts = [policy.encode(p.prompt) for p in items]
    answers = [f"#{p.answer}" if problems.world == "toy" else f"\\boxed{{{p.answer}}}" for p in items]
    graded = grade_all(answers, [True] * len(items), items, problems.world)
    shown = [policy.shown(p.prompt).casefold() for p in items]  # a tokenizer may drop what it does not know
    strange = [
        p.id
        for p, s in zip(items, shown, strict=True)
        if set("".join(p.prompt.casefold().split())) - set(s)
    ]
    hopeless = [p.id for p, right in zip(items, graded, strict=True) if not right]
    wrong = []
    for ids, what in (
        (strange, f"the tokenizer of {policy.name} does not know all of its prompt; name your --model"),
        (
            hopeless,
            f"grader {problems.world!r} refuses its own reference; correct it or take another grader",
        ),
    ):
        wrong += [f"problem {', '.join(ids[:5])}{', ...' * (len(ids) > 5)}: {what}"] if ids else []
    return {
        "problems": problems.name,
        "number": len(problems.items) or "endless",
        "families": ", ".join(dict.fromkeys(p.family for p in items)),
        "grader": problems.world,
        "longest": f"{max(map(len, prompts))} tokens of {policy.context} in a prompt of {policy.name}",
        "first": policy.shown(items[0].prompt),
        "wrong": wrong,
    }


def family_means(scores: pd.DataFrame) -> pd.Series:
    """Unweighted mean over families of the mean over their questions, per metric."""
    columns = [m for m in METRICS if m in scores]
    return scores.groupby("family", sort=False)[columns].mean().mean()


def bootstrap(scores: pd.DataFrame, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """[draws x metrics] family means of questions resampled within each family.

    The same seed resamples the same questions, so differences of two calls are paired.
    """
    columns = [m for m in METRICS if m in scores]
    rng = np.random.default_rng(seed)
    total = np.zeros((draws, len(columns)))
    groups = [g[columns].to_numpy() for _, g in scores.groupby("family", sort=False)]
    for values in groups:
        picks = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws)
        total += picks @ values / len(values)
    return pd.DataFrame(total / len(groups), columns=columns)


def summarise(runs: Sequence[pd.DataFrame], level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Mean and interval over questions and seeds, in percent: rows are metrics, columns value, lo, hi.

    runs: question_scores of one arm, or paired differences of two, one table per seed, on the same
    questions. Questions by bootstrap (of the mean over seeds), seeds by Student's t, half-widths added
    in quadrature. With one run the interval covers the questions only. Conditional on the base.
    """
    from scipy import stats

    columns = [m for m in METRICS if m in runs[0]]
    mean = runs[0].copy()
    mean[columns] = np.mean([r[columns].to_numpy() for r in runs], axis=0)
    centre = family_means(mean)
    spread = bootstrap(mean, seed=seed)
    half = (1 - level) / 2
    low = (centre - spread.quantile(half)).clip(lower=0)
    high = (spread.quantile(1 - half) - centre).clip(lower=0)
    by_seed = 0.0
    if len(runs) > 1:
        means = np.array([family_means(r)[columns].to_numpy() for r in runs])
        error = means.std(axis=0, ddof=1) / np.sqrt(len(runs))
        by_seed = stats.t.ppf(1 - half, len(runs) - 1) * error
    out = pd.DataFrame(index=pd.Index(columns, name="metric"))
    out["value"] = 100 * centre
    out["lo"] = 100 * (centre - np.hypot(low, by_seed))
    out["hi"] = 100 * (centre + np.hypot(high, by_seed))
    out["seeds"], out["questions"] = len(runs), len(mean)
    return out


def difference(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Paired difference a - b of two question_scores tables on the same questions."""
    if list(a["id"]) != list(b["id"]):
        raise SeptError("paired difference: the two tables hold different questions")
    columns = [m for m in METRICS if m in a and m in b]
    out = a[["id", "family"]].copy()
    out[columns] = a[columns].to_numpy() - b[columns].to_numpy()
    return out


def compare(a: Sequence[pd.DataFrame], b: pd.DataFrame | Sequence[pd.DataFrame]) -> pd.DataFrame:
    """`summarise` of the paired differences a - b: b is one table for all seeds, or one per seed."""
    others = [b] * len(a) if isinstance(b, pd.DataFrame) else b
    return summarise([difference(x, y) for x, y in zip(a, others, strict=True)])


def dependence(a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Paired differences a - b, one table per seed, with the sign of each metric's mean taken off.

    Their `summarise` is how much it matters whether a or b, whichever is better.
    """
    tables = [difference(x, y) for x, y in zip(a, b, strict=True)]
    columns = [m for m in METRICS if m in tables[0]]
    signs = np.sign(np.mean([family_means(t)[columns].to_numpy() for t in tables], axis=0))
    return [t.assign(**{m: s * t[m] for m, s in zip(columns, signs, strict=True)}) for t in tables]


def best_temperature(sweep: dict[float, pd.DataFrame], metric: str = "AVG") -> float:
    """Temperature with the largest family mean of `metric`; the lowest of equals.

    sweep: temperature -> question_scores. AVG needs several draws, so greedy cannot win it, as in the
    paper; for a single k greedy takes part.
    """
    if not all(metric in scores for tau, scores in sweep.items() if tau > 0):
        raise SeptError(f"the sweep has no {metric} at every temperature; draw more samples per question")
    taus = [tau for tau in sweep if tau > 0 or metric != "AVG"]
    if not taus:
        raise SeptError(f"the sweep has greedy decoding only, which has no {metric}; add temperatures")
    return max(taus, key=lambda tau: (family_means(sweep[tau])[metric], -tau))


def summary_rows(runs: Sequence[pd.DataFrame], **labels: Any) -> list[dict[str, Any]]:
    """`summarise` as rows of a long table: the labels, then metric, value, lo, hi, seeds, questions."""
    table = summarise(runs).reset_index()
    return [{**labels, **{str(k): v for k, v in row.items()}} for row in table.to_dict("records")]


def comparison_table(
    baselines: dict[str, pd.DataFrame], arms: dict[str, Sequence[pd.DataFrame]]
) -> pd.DataFrame:
    """Long table of baselines (name -> question_scores) and arms (name -> one table per seed).

    Arms carry delta, delta_lo, delta_hi: the paired difference to the first baseline, with its interval.
    """
    rows = [row for name, scores in baselines.items() for row in summary_rows([scores], method=name)]
    reference = next(iter(baselines.values()))
    for name, runs in arms.items():
        delta = compare(runs, reference)
        for row in summary_rows(runs, method=name):
            d = delta.loc[row["metric"]]
            rows.append({**row, "delta": d["value"], "delta_lo": d["lo"], "delta_hi": d["hi"]})
    return pd.DataFrame(rows)


def detail_table(arms: dict[str, Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """Long table method, family, metric (pass@1, 2, ... 32), value, lo, hi: one family at a time.

    arms: name -> counts tables, one per seed.
    """
    rows = []
    for method, tables in arms.items():
        runs = [question_scores(t, ks=DETAIL_KS).drop(columns="AVG", errors="ignore") for t in tables]
        for family in runs[0]["family"].unique():
            parts = [r[r["family"] == family].reset_index(drop=True) for r in runs]
            rows += summary_rows(parts, method=method, family=family)
    return pd.DataFrame(rows)


def sweep_table(sweep: dict[float, pd.DataFrame]) -> pd.DataFrame:
    """Long table of a sweep {temperature: question_scores}: every family and their `Mean`."""
    rows = []
    for tau, scores in sweep.items():
        for family in scores["family"].unique():
            part = scores[scores["family"] == family].reset_index(drop=True)
            rows += summary_rows([part], family=family, temperature=tau)
        rows += summary_rows([scores], family="Mean", temperature=tau)
    return pd.DataFrame(rows)


def checkpoint_choice(curve: Sequence[pd.DataFrame]) -> dict[str, float]:
    """What it is worth to report the best of a run's checkpoints instead of the last, in points of AVG.

    curve: question_scores at checkpoints in order, on the same questions. Keys: last, best (chosen and
    scored on the same questions), best_at (index), honest (chosen on every other question, scored on
    the rest, and the other way round), honest_last (the last one's score, for comparison).
    """

    def means_of(rows: slice) -> np.ndarray:
        return np.array([100 * family_means(scores.iloc[rows])["AVG"] for scores in curve])

    means, by_half = means_of(slice(None)), [means_of(slice(first, None, 2)) for first in (0, 1)]
    chosen = [by_half[1 - i][int(half.argmax())] for i, half in enumerate(by_half)]
    return {
        "last": float(means[-1]),
        "best": float(means.max()),
        "best_at": int(means.argmax()),
        "honest": float(np.mean(chosen)),
        "honest_last": float(np.mean([half[-1] for half in by_half])),
    }


def peak_shift(sweep: dict[float, pd.DataFrame], early: str, late: str, draws: int = 2000) -> list[float]:
    """Best temperature for `late` minus best for `early`: value and 95% bootstrap interval (questions)."""
    taus = np.array(sorted(sweep))

    def best(metric: str) -> tuple[float, np.ndarray]:
        means = [family_means(sweep[t])[metric] for t in taus]
        resampled = [bootstrap(sweep[t], draws)[metric].to_numpy() for t in taus]
        return taus[int(np.argmax(means))], taus[np.argmax(resampled, axis=0)]

    (one, ones), (two, twos) = best(early), best(late)
    low, high = np.quantile(twos - ones, [0.025, 0.975])
    return [float(two - one), float(low), float(high)]


def best_for_each_k(sweep: dict[float, pd.DataFrame]) -> pd.DataFrame:
    """The strongest untrained rival: each pass@k at the temperature that is best for it, greedy included.

    Returns question_scores whose columns may stem from different temperatures; AVG is their mean.
    """
    out = next(iter(sweep.values()))[["id", "family"]].copy()
    metrics = [f"pass@{k}" for k in AVG_KS if all(f"pass@{k}" in s for t, s in sweep.items() if t > 0)]
    for metric in metrics:
        out[metric] = sweep[best_temperature(sweep, metric)][metric].to_numpy()
    out["AVG"] = out[metrics].mean(axis=1)
    return out
