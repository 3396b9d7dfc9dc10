"""What notebook 23 needs: its arms, answers by vote, equal entropy, verdicts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .config import SeptError
from .durable import locked
from .evaluation import METRICS
from .experiments import Run, Score, note_cost, results_dir, run_folder
from .experiments import compute as compute_scores
from .loop import train
from .policy import Policy, load_policy
from .pretrain import RECIPES, Recipe
from .problems import load_problems
from .profiles import Profile
from .provenance import write_text
from .regime import build
from .sampling import Rollouts, Sampler, make_sampler


def _once(name: str, make: Callable[[Path], Any]) -> Path:
    """Folder `name` of the results store, filled by `make` if it is not there; notes what it cost."""
    folder = results_dir().resolve() / name
    with locked(folder.with_name(f".{name}.lock"), wait=True):
        if not (folder / "seconds").is_file():
            started = time.monotonic()
            make(folder)
            write_text(folder / "seconds", f"{time.monotonic() - started:.1f}")
    note_cost([folder])
    return folder


def final(model: str | Run) -> str:
    """Folder or name of a model, of a run the one it ends with."""
    return str(run_folder(model).resolve() / "final") if isinstance(model, Run) else model


def arms(
    scale: Profile, seeds: tuple[int, ...], ranks: tuple[int, int, int, int]
) -> dict[str, dict[str, list[Any]]]:
    """Experiment -> arm -> runs or trained models, one per seed; makes what others start from.

    All draw as many answers a round as SePT in its usual shape of one answer to each question. ranks: how many
    of the seeds get the arms of first rank, those on other bases, and those of second and third rank; arms
    without any are left out.
    """
    first, other, second, third = ranks
    usual = scale.runs("sept", 1)[0].config()

    def of(arm: str, count: int, **overrides: Any) -> list[Run]:
        return scale.runs(arm, seeds=seeds[:count], **overrides) if count else []

    share = {
        G: {"questions": usual.questions // G, "G": G, "mini_batch": usual.mini_batch // G} for G in (4, 8)
    }
    sept, fresh, eights = of("sept", first), of("sept", first, **share[4]), of("sept", second, **share[8])
    questions = {  # each seed has finite sets of its own
        f"{6 * n:,} questions": [replace(r, problems=f"toy:train:{n}:{r.seed}") for r in fresh[:count]]
        for n, count in ((6, first), (24, second), (384, third))
    }
    # Base H is F after this stage on 1,000 documents.
    stage = RECIPES["H"].stages[1]
    tokens = stage.tokens * min(usual.rounds, 120) // 120  # small profiles train small bases
    others = {n: replace(stage, documents=n, tokens=tokens) for n in (250, 0)}
    on = {n: of("sept", other, model=str(build(Recipe((s,), "F", seed=1)))) for n, s in others.items()}
    half = max(1, usual.rounds // 2)
    halves, labelled = (of(arm, second, rounds=half) for arm in ("sept", "grpo"))
    compute_scores([scale.score(run) for run in halves], label="first halves")
    then = [replace(r, base=final(f)) for r, f in zip(labelled, halves, strict=True)]
    found: dict[str, dict[str, list[Any]]] = {
        "Training questions": {**questions, "fresh questions": fresh},
        "Sampler refreshed": {
            "every round": sept,
            "every 3 rounds": of("sept", third, refresh_every=3),
            "every 10 rounds": of("sept", second, refresh_every=10),
            "every 30 rounds": of("sept", second, refresh_every=30),
            "never": of("offline", second),
        },
        "Passes and rate": {
            "1 pass, lr 3e-5": of("sept", third, lr=3e-5),
            "4 passes, lr 3e-5": of("sept", third, lr=3e-5, mu=4),
            "1 pass, lr 1e-4": sept,
            "4 passes, lr 1e-4": of("sept", third, mu=4),
        },
        "Second stage of the base": {
            "250 documents": on[250],
            "1,000 documents (H)": sept,
            "fresh documents": on[0],
        },
        "Equal entropy": {"SePT": sept},
        "Votes": {"SePT, 16 x 8": eights, "majority, 16 x 8": [majority_trained(run) for run in eights]},
        "Then labels": {
            "SePT, half way": halves,
            "SePT": sept,
            "GRPO, half way": labelled,
            "SePT, then GRPO": then,
            "GRPO": of("grpo", second),
        },
    }
    return {panel: {arm: models for arm, models in own.items() if models} for panel, own in found.items()}


# -------------------------------------------------------------------------------------------- votes


def vote(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer; of equally frequent ones the one that was given first. None is no answer."""
    counts = Counter(a for a in answers if a is not None)
    return max(counts, key=counts.__getitem__) if counts else None


def final_answers(rollouts: Rollouts, policy: Policy) -> list[str | None]:
    """What follows the last `#` of each answer; None if it was cut or has no `#`."""
    texts = (policy.decode(t[:n].tolist()) for t, n in zip(rollouts.tokens, rollouts.lengths, strict=True))
    ended = rollouts.finished.tolist()
    return [t.rsplit("#", 1)[1] if e and "#" in t else None for t, e in zip(texts, ended, strict=True)]


def votes(score: Score) -> pd.DataFrame:
    """id, family and, as pass@1, whether the majority of the answers that `score` asks for is right."""

    def make(folder: Path) -> None:
        policy, items = load_policy(final(score.model)), load_problems(score.problems).items
        prompts, ids = [policy.encode(p.prompt) for p in items], [p.id for p in items]
        sampler = make_sampler(policy, score.engine, training=False)
        drawn = sampler.sample(prompts, ids, score.n, score.tau, score.max_new_tokens, score.seed)
        answers, n = final_answers(drawn, policy), score.n
        rows = [
            (p.id, p.family, float(vote(answers[n * i : n * i + n]) == p.answer))
            for i, p in enumerate(items)
        ]
        write_text(
            folder / "votes.csv", pd.DataFrame(rows, columns=["id", "family", "pass@1"]).to_csv(index=False)
        )

    return pd.read_csv(_once(f"vote-{score.key()}", make) / "votes.csv")


def agreeing(answers: Sequence[str | None], G: int) -> list[int]:
    """For each row the row to train on instead: itself if it agrees with the vote of its group of G
    neighbours, else one that does, in turn. So every question keeps its weight. A group without any answer
    stays as it is."""
    rows: list[int] = []
    for first in range(0, len(answers), G):
        chosen = vote(answers[first : first + G])
        good = [i for i in range(first, first + G) if answers[i] == chosen]
        spare = (good[k % len(good)] for k in range(G))
        rows += [i if i in good else next(spare) for i in range(first, first + G)]
    return rows


class Majority:
    """A sampler whose answers all agree with the vote of those that `inner` drew for the same question."""

    def __init__(self, inner: Sampler, policy: Policy) -> None:
        self.inner, self.policy = inner, policy
        self.version = inner.version

    def refresh(self, policy: Policy) -> None:
        self.inner.refresh(policy)
        self.version = self.inner.version

    def sample(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[str], n: int, *settings: Any, **more: Any
    ) -> Rollouts:
        drawn = self.inner.sample(prompts, keys, n, *settings, **more)
        rows = agreeing(final_answers(drawn, self.policy), n)
        fields = {f: getattr(drawn, f)[rows] for f in ("tokens", "lengths", "finished", "log_probs")}
        return replace(drawn, **fields)  # neighbours share their prompt


def majority_trained(run: Run) -> str:
    """Folder of the model that `run` ends with if it trains on answers of the majority only."""

    def make(folder: Path) -> None:
        policy = load_policy(run.base)
        sampler, asked = Majority(make_sampler(policy, run.engine), policy), load_problems(run.problems)
        train(run.config(), policy, asked, folder, resume=True, sampler=sampler, name="majority")

    return str(_once(f"majority-{run.key()}", make) / "final")


# ------------------------------------------------------------------------------------ equal entropy


def token_entropy(
    model: str, problems: str, tau: float, n: int = 8, seed: int = 0, limit: int = 56
) -> float:
    """Nats per response token when the model answers at tau: mean of -log p of n sampled answers a question."""
    policy, items = load_policy(model), load_problems(problems).items
    prompts, ids = [policy.encode(p.prompt) for p in items], [p.id for p in items]
    drawn = make_sampler(policy).sample(prompts, ids, n, tau, limit, seed)
    mask = torch.arange(drawn.tokens.shape[1]) < drawn.lengths[:, None]
    return float(-(drawn.log_probs.double() * mask).sum() / drawn.lengths.sum())


def matched_temperature(
    entropy: Callable[[float], float], target: float, low: float = 0.05, high: float = 1.6
) -> float:
    """The temperature, to 0.01, at which a growing `entropy` is `target`, by bisection."""
    if not entropy(low) <= target <= entropy(high):
        raise SeptError(f"entropy {target:.3f}: not reached between temperatures {low} and {high}")
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(middle) < target else (low, middle)
    return round((low + high) / 2, 2)


# ----------------------------------------------------------------------------------------- verdicts


def combined(
    terms: Mapping[str, float], tables: Mapping[str, Sequence[pd.DataFrame]]
) -> list[pd.DataFrame]:
    """Per seed that all have, the sum of weight x per-question values of the arms that `terms` names."""
    out = []
    for own in zip(*(tables[arm] for arm in terms), strict=False):
        if any(list(table["id"]) != list(own[0]["id"]) for table in own):
            raise SeptError(f"{' and '.join(terms)}: their tables hold different questions")
        columns = [m for m in METRICS if all(m in table for table in own)]
        total = own[0][["id", "family"]].copy()
        parts = zip(terms.values(), own, strict=True)
        total[columns] = sum(weight * table[columns].to_numpy() for weight, table in parts)
        out.append(total)
    return out


def verdict(lo: float, hi: float, wanted: tuple[float, float], seeds: int) -> str:
    """held if the interval lies in the `wanted` range, refuted if it lies wholly outside, else open.

    One seed decides nothing: its interval covers the questions only.
    """
    if seeds > 1 and wanted[0] < lo and hi < wanted[1]:
        return "held"
    return "refuted" if seeds > 1 and (hi < wanted[0] or wanted[1] < lo) else "open"


def ordered(values: Sequence[float], number: int, tie: float = 1.0) -> str:
    """refuted if a value lies more than `tie` below the one before it; else held, or open if some of the
    `number` of values are missing."""
    if any(b < a - tie for a, b in zip(values, values[1:], strict=False)):
        return "refuted"
    return "held" if len(values) == number else "open"
