"""When does a model help itself? Bases over corpus, passes, noise and size, and each one's gain.

A shard is one base, built, measured without labels, trained by three arms and scored. It is two small
files: NAME.json (recipe and predictors) and, written last, NAME.csv (right answers, a row per question and a
column per way of answering). Gains, intervals and maps are functions of shards.
"""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from itertools import combinations, count, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import experiments
from .config import PRESETS, RESULTS_VERSION, SeptError, digest
from .durable import locked
from .evaluation import question_scores
from .experiments import Run, Score
from .pretrain import _WELL, Recipe, Stage, documents, pretrain
from .provenance import environment, write_json, write_text

DOCUMENTS, TOKENS = (125, 500, 2_000, 8_000), (400_000, 800_000, 1_600_000)
NOISE = {"low": (0.0, 0.1, 0.4), "mid": (0.05, 0.2, 0.5), "high": (0.1, 0.3, 0.6)}
SMALL = Recipe((_WELL,), hidden=64, mlp=176)
"""Base F's recipe on a smaller model, where the small bases go on from."""
ARMS = ("sept", "offline", "em-ft")
TEMPERATURES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)


@dataclass(frozen=True)
class Cell:
    """A place on the map. start: F, small or nothing; documents: 0 means always fresh ones."""

    start: str
    documents: int
    tokens: int
    noise: str
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.start}-{self.documents}x{self.tokens // 1000}k-{self.noise}-{self.seed}"

    def recipe(self, share: float = 1.0) -> Recipe:
        """Its recipe with a `share` of the tokens; no two bases share a corpus."""
        seed = int(digest(self.name)[:5], 16)
        lr = 2.5e-3 if self.start == "nothing" else 1.5e-3
        stage = Stage(self.documents, int(self.tokens * share), NOISE[self.noise], lr)
        small = self.start == "small"
        hidden, mlp = (SMALL.hidden, SMALL.mlp) if small else (96, 256)
        start = "" if self.start == "nothing" else self.start
        return Recipe((stage,), start=start, hidden=hidden, mlp=mlp, seed=seed)


BESIDE = (
    Cell("nothing", 0, 800_000, "mid"),
    Cell("small", 500, 800_000, "mid"),
    Cell("nothing", 0, 2_000_000, "high"),
    Cell("small", 2_000, 1_600_000, "high"),
    Cell("nothing", 500, 2_000_000, "mid"),
    Cell("small", 8_000, 400_000, "low"),
    Cell("nothing", 2_000, 800_000, "low"),
    Cell("small", 125, 1_600_000, "mid"),
)
"""Bases beside the grid, in order: every fourth of the list."""


@dataclass(frozen=True)
class Plan:
    """How much of the map, and how exactly."""

    bases: int
    """The first so many of the list are made, if they are missing; whatever is finished is read."""
    test: str = "toy:test:50"
    dev: str = "toy:dev:16"
    n: int = 32
    share: float = 1.0
    """Of the tokens of every recipe."""
    steps: int = 30
    """Of the round that carry-over is measured after."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Config fields of all arms."""
    temperatures: tuple[float, ...] = TEMPERATURES


PLANS = {
    "smoke": Plan(
        3, "toy:test:2", "toy:dev:2", 32, 0.01, 2,
        {"rounds": 2, "warmup": 0, "questions": 16, "mini_batch": 8}, (0.0, 0.6, 1.0),
    ),
    "quick": Plan(6, "toy:test:16", "toy:dev:8", 32, 0.5, 20, {"rounds": 40}, (0.0, 0.2, 0.4, 0.7, 1.0)),
    "laptop": Plan(0),
}  # fmt: skip
"""By profile; the others are those of `laptop`, since the map is one of embedded bases."""
PREDICTORS = (
    "entropy", "margin", "undecided", "agreement", "against_majority", "confidence", "calibration",
    "log_likelihood", "gap", "loss_fresh", "slope_trained", "slope_fresh", "carry_over",
)  # fmt: skip
"""What is known of a base without a right answer (`predictors`)."""


def place(profile: str) -> tuple[Plan, Path]:
    """A profile's plan and its shards' folder; SEPT_BASES in the environment asks for more or fewer bases.

    Shards of `laptop` lie in the checkout, where they are committed; the others in the store.
    SeptError if SEPT_BASES is no number.
    """
    known = profile if profile in PLANS else "laptop"
    plan = PLANS[known]
    asked = os.environ.get("SEPT_BASES", str(plan.bases))
    if not asked.isdecimal():
        raise SeptError(f"SEPT_BASES = {asked!r}: must be a number of bases, as in make map BASES=40")
    plan = replace(plan, bases=int(asked))
    checkout = Path(__file__).parent.parent / "figures" / "map"
    return plan, checkout if known == "laptop" else experiments.results_dir() / f"map-{known}"


def balanced(axes: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """All combinations, so ordered that every beginning of the list is spread over levels and pairs of them.

    Greedy: next comes a combination whose levels, then whose pairs of levels, were met least.
    """
    left = list(product(*axes))
    left = [left[i] for i in np.random.default_rng(0).permutation(len(left))]
    seen: Counter[Any] = Counter()
    out = []
    while left:

        def met(cell: tuple[Any, ...]) -> tuple[float, float]:
            levels = list(enumerate(cell))
            alone = sum(seen[x] * len(axes[x[0]]) for x in levels)
            return alone, sum(seen[pair] for pair in combinations(levels, 2))

        chosen = min(left, key=met)
        left.remove(chosen)
        levels = list(enumerate(chosen))
        seen.update(levels)
        seen.update(combinations(levels, 2))
        out.append(chosen)
    return out


def cells(number: int) -> list[Cell]:
    """The first `number` bases of the map; where the grid is done, it begins again with other seeds."""

    def endless() -> Iterator[Cell]:
        for seed in count():
            grid = [Cell("F", d, t, n, seed) for d, t, n in balanced((DOCUMENTS, TOKENS, tuple(NOISE)))]
            beside = [replace(cell, seed=seed) for cell in BESIDE]
            while grid or beside:
                yield from (part.pop(0) for part in (grid, grid, grid, beside) if part)

    stream = endless()
    return [next(stream) for _ in range(number)]


# ------------------------------------------------------------------------------------- one base


def build(recipe: Recipe) -> Path:
    """Folder of a base in the store, trained if it is not there. A start named `small` is built first."""
    from .policy import Policy, save_policy

    described = [RESULTS_VERSION, asdict(recipe), asdict(SMALL) if recipe.start == "small" else None]
    folder = experiments.results_dir() / f"base-{digest(described)[:16]}"
    with locked(folder.with_name(f".{folder.name}.lock"), wait=True):
        if not folder.is_dir():
            start = str(build(SMALL)) if recipe.start == "small" else recipe.start
            model, tokenizer, _ = pretrain(replace(recipe, start=start))
            save_policy(Policy(model, tokenizer, folder.name), folder)
    return folder


@lru_cache(maxsize=1)
def document_length() -> float:
    """Tokens of a document, on average, as pre-training counts them."""
    drawn = islice(documents(Stage(0, 0, NOISE["low"], 0.0), 0), 500)
    return float(np.mean([len(prompt) + len(response) + 2 for prompt, response in drawn]))


def mean_loss(policy: Any, pairs: Iterable[tuple[str, str]], rows: int = 64) -> float:
    """Nats per response token, end-of-sequence included, on (prompt, response) pairs."""
    import torch

    from .policy import make_batch, response_logits

    done = [(policy.encode(p), [*policy.encode(r)[1:], policy.eos_ids[0]]) for p, r in pairs]
    total, tokens = 0.0, 0
    for first in range(0, len(done), rows):
        part = done[first : first + rows]
        lengths = torch.tensor([len(r) for _, r in part])
        padded = torch.zeros(len(part), int(lengths.max()), dtype=torch.long)
        for i, (_, r) in enumerate(part):
            padded[i, : len(r)] = torch.tensor(r)
        batch = make_batch([p for p, _ in part], padded, lengths, policy.pad_id)
        with torch.no_grad():
            log_probs = torch.log_softmax(response_logits(policy.model, batch, policy.vocab), -1)
        picked = log_probs.gather(-1, batch.tokens[..., None])[..., 0]
        total -= float(picked[batch.mask].double().sum())
        tokens += int(batch.mask.sum())
    return total / tokens


def answers_statistics(drawn: Sequence[Sequence[str]], greedy: Sequence[str]) -> dict[str, float]:
    """agreement (of two answers to one question) and against_majority (share of questions whose greedy answer
    is not the most frequent of those drawn). drawn: final answers, a list per question."""
    counts = [Counter(answers) for answers in drawn]
    sizes = [len(answers) for answers in drawn]
    pairs = [
        sum(c * (c - 1) for c in own.values()) / (n * (n - 1)) for own, n in zip(counts, sizes, strict=True)
    ]
    wrong = [own[g] < max(own.values()) for own, g in zip(counts, greedy, strict=True)]
    return {"agreement": float(np.mean(pairs)), "against_majority": float(np.mean(wrong))}


def logit_statistics(logits: Any) -> dict[str, float]:
    """entropy (mean, nats), margin (median distance of the two best logits) and undecided (share of prefixes
    where that is below 1) of logits [prefixes, V]."""
    import torch

    log_p = torch.log_softmax(logits.double(), -1)
    best = logits.double().topk(2, -1).values
    margins = best[:, 0] - best[:, 1]
    return {
        "entropy": float(-(log_p.exp() * log_p).sum(-1).mean()),
        "margin": float(margins.median()),
        "undecided": float((margins < 1).double().mean()),
    }


def predictors(folder: Path, stage: Stage, seed: int, dev: str, steps: int) -> dict[str, float]:
    """What can be known of a base without a single right answer. seed: the one its corpus was written from.

    gap, loss_fresh (nats per response token; they need its corpus), entropy, margin, undecided, agreement,
    against_majority, confidence (mean probability of its own greedy answer), calibration (share of drawn
    answers that equal the greedy one, minus that), log_likelihood (of greedy answers, per token) and those of
    `carry_over`. Questions are those of `dev`, whose answers are not used.
    """
    import torch

    from .margins import visited_logits
    from .policy import load_policy
    from .problems import load_problems
    from .sampling import make_sampler, thinned

    policy, items = load_policy(str(folder)), load_problems(dev).items
    sampler = make_sampler(policy)
    prompts, keys = [policy.encode(p.prompt) for p in items], [p.id for p in items]
    rollouts, greedy = (sampler.sample(prompts, keys, n, tau, 56, 77) for n, tau in ((16, 1.0), (1, 0.0)))

    def final(r: Any) -> list[str]:
        texts = [policy.decode(t[:n].tolist()) for t, n in zip(r.tokens, r.lengths, strict=True)]
        return [
            t.rsplit("#", 1)[-1] if e and "#" in t else t for t, e in zip(texts, r.finished, strict=True)
        ]

    samples, best = final(rollouts), final(greedy)
    drawn = [samples[16 * i : 16 * i + 16] for i in range(len(items))]
    some = thinned(rollouts, 4 * len(items))
    logits = torch.cat([z for *_, z in visited_logits(policy.model, some, policy, 256)])
    out = answers_statistics(drawn, best) | logit_statistics(logits)
    rows = visited_logits(policy.model, greedy, policy, len(greedy))
    owner, tokens, z = (torch.cat(x) for x in zip(*rows, strict=True))
    picked = torch.log_softmax(z.double(), -1).gather(-1, tokens[:, None])[:, 0]
    whole = torch.zeros(len(greedy), dtype=torch.float64).index_add(0, owner, picked)
    share = np.mean([[a == g for a in own] for own, g in zip(drawn, best, strict=True)])
    out |= {"confidence": float(whole.exp().mean()), "log_likelihood": float(picked.mean())}
    out["calibration"] = float(share) - out["confidence"]
    some_documents = min(500, stage.documents or 500)
    fresh = documents(replace(stage, documents=0), seed + 2**20)
    losses = [mean_loss(policy, islice(s, some_documents)) for s in (documents(stage, seed), fresh)]
    out |= {"gap": losses[1] - losses[0], "loss_fresh": losses[1]}
    return out | carry_over(policy, steps)


def carry_over(policy: Any, steps: int, tau_s: float = 0.6) -> dict[str, float]:
    """slope_trained, slope_fresh: of new on old margins after a short round on 64 questions, on these and on 64
    others; carry_over is (slope_fresh - 1) / (1 / tau_s - 1). The policy is changed in place."""
    from .margins import aggregate
    from .sampling import make_sampler
    from .theorem import LEARNING_RATE, compare, draw, question_sets, train_round

    old = copy.deepcopy(policy.model).eval().requires_grad_(False)
    sampler, sets = make_sampler(policy), question_sets(policy, "toy:train", 0)
    rollouts = [draw(policy, sampler, p, tau_s, 56, 0, 512) for p in sets if p is not None]
    train_round(policy, old, sampler, sets[0], tau_s, 1.0, steps, 256, LEARNING_RATE, 0, 56)
    slopes = []
    for own in rollouts:
        table, _ = compare(old, policy, own, tau_s, 1.0, order=False)
        slopes.append(aggregate(table, table["sequence"], draws=10)["slope"])
    shared = (slopes[1] - 1) / (1 / tau_s - 1)
    return {"slope_trained": slopes[0], "slope_fresh": slopes[1], "carry_over": shared}


def shard_file(cell: Cell, plan: Plan, folder: Path) -> Path:
    """Where a base's shard is; the name changes with everything that is meant to alter its numbers."""
    exact = {k: v for k, v in asdict(plan).items() if k != "bases"}
    arms = {arm: PRESETS[arm] for arm in ARMS}
    key = digest([RESULTS_VERSION, exact, asdict(cell.recipe(plan.share)), asdict(SMALL), arms])
    return folder / f"{cell.name}-{key[:8]}.csv"


def make_shard(cell: Cell, plan: Plan, folder: Path) -> None:
    """Build, measure, train and score one base, and write its shard, unless it is there."""
    path, recipe = shard_file(cell, plan, folder), cell.recipe(plan.share)
    with locked(experiments.results_dir() / f".{path.stem}.lock", wait=True):
        if path.is_file():
            return
        base = build(recipe)
        known = predictors(base, recipe.stages[0], recipe.seed, plan.dev, plan.steps)
        overrides = tuple(sorted(plan.overrides.items()))
        arms = {arm: Run(str(base), arm, 100, overrides=overrides) for arm in ARMS}
        ways: dict[str, tuple[Any, float]] = {f"T={tau}": (str(base), tau) for tau in plan.temperatures}
        ways |= {arm: (run, 1.0) for arm, run in arms.items()}
        wanted = {
            (name, questions): Score(model, questions, tau, plan.n)
            for questions in (plan.test, plan.dev)
            for name, (model, tau) in ways.items()
            if questions == plan.test or isinstance(model, str)
        }
        experiments.compute(wanted.values(), workers=1, label=cell.name)
        tables = []
        for questions in (plan.test, plan.dev):
            part: dict[str, Any] = {}
            for (name, of), score in wanted.items():
                if of == questions:
                    table = experiments.counts(score)
                    part = part or {"id": table["id"], "family": table["family"], "n": plan.n}
                    part[name] = table["c"]
            tables.append(pd.DataFrame(part))
        described = {"cell": asdict(cell), "recipe": asdict(recipe), "predictors": known}
        write_json(path.with_suffix(".json"), {**described, "provenance": environment()})
        text = pd.concat(tables).astype({arm: "Int64" for arm in ARMS}).to_csv(index=False)
        write_text(path, text)  # last: its being there says that all of it is


def compute(plan: Plan, folder: Path, workers: int | None = None) -> list[Shard]:
    """Make the plan's shards exist and read all that do. Killed and started again it goes on."""
    experiments.check_store()
    known = {cell: shard_file(cell, plan, folder) for cell in cells(max(200, plan.bases))}
    places = {c: path for i, (c, path) in enumerate(known.items()) if i < plan.bases or path.is_file()}
    missing = [cell for cell, path in places.items() if not path.is_file()]
    job = partial(_make, plan, folder)
    if missing:
        experiments.side_by_side([("map", job, missing)], [], workers)
    return [read_shard(cell, path) for cell, path in places.items()]


def _make(plan: Plan, folder: Path, cell: Cell) -> None:
    make_shard(cell, plan, folder)


# ------------------------------------------------------------------------------------ what shards say


@dataclass(frozen=True)
class Shard:
    """A finished base. counts: right answers, a row per question and a column per way of answering."""

    cell: Cell
    known: dict[str, float]
    counts: pd.DataFrame

    def scores(self, way: str, split: str = "test") -> pd.DataFrame:
        """`question_scores` of a way of answering: T=0.3 or an arm."""
        rows = self.counts[self.counts["id"].str.startswith(split)].reset_index(drop=True)
        table = rows[["id", "family", "n"]].assign(c=rows[way].astype(int))
        return question_scores(table, greedy=way == "T=0.0")

    def sweep(self, split: str = "test") -> dict[float, pd.DataFrame]:
        """The untrained base at every temperature."""
        ways = [w for w in self.counts.columns if w.startswith("T=")]
        return {float(w[2:]): self.scores(w, split) for w in ways}


def read_shard(cell: Cell, path: Path) -> Shard:
    """A shard from its two files. SeptError if they are not of one base."""
    described = json.loads(path.with_suffix(".json").read_text())
    if described["cell"] != asdict(cell):
        raise SeptError(
            f"shard {str(path)!r}: its JSON file is about another base; delete both to make it anew"
        )
    return Shard(cell, described["predictors"], pd.read_csv(path, dtype={"id": str, "family": str}))
