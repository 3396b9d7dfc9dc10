"""Theorem 1 on a causal language model: one round, at three levels, and how far its margins follow.

    logits  the optimum over free logits at visited prefixes: what the arithmetic itself allows
    head    only the output layer is trained
    full    every weight is trained

`head` and `full` are one SePT round run to convergence: fixed
questions, pi_old frozen in the sampler, fresh samples from it at every step, a number of steps that is the
same for every temperature. Slopes are measured on new samples of pi_old: on the same questions, whose prefixes
are visited and of which the theorem speaks, and apart from them on other questions, where only what margins
share between questions can carry over.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import objectives
from .config import SeptError
from .free_logits import logit_floors
from .margins import headline, nucleus, prefix_statistics, rows_batch, tail_sums, visited_logits
from .policy import Policy, response_logits
from .problems import Problem, ProblemSet, check_lengths, load_problems
from .sampling import Rollouts, Sampler, make_sampler, thinned
from .sampling_static import StaticEngine

LEVELS = ("logits", "head", "full")
TARGETS = ("sampled", "soft")
STEPS, SAMPLES, MEASURED, LEARNING_RATE, BETAS = 200, 256, 2048, 1e-3, (0.9, 0.99)
RECORDED = (2, 5, 10, 20, 40, 80, 140)
"""Steps after which the slope is recorded on the way, besides the last."""
KEPT = 2**26
"""Logits of drawn tokens kept at once, in elements (256 MiB)."""
NOISE = 0.2
"""Standard deviation of what a perturbed start adds to each weight, relative to its tensor's own."""


def question_sets(policy: Policy, prompts: str | None, seed: int) -> tuple[ProblemSet, ProblemSet | None]:
    """Questions to train on and others: 64 and 64 of a set, or the halves of a smaller one.

    prompts: a problem set, a text file with a prompt a line, or None: embedded questions for a model of the
    embedded world, for any other generation from the beginning-of-sequence token alone, which has no others.
    """
    if prompts is None:
        toy = set("0123456789+-:>~!=;#") <= set(policy.tokenizer.get_vocab()) and len(policy.tokenizer) < 64
        if not toy:
            if policy.tokenizer.bos_token_id is None:
                raise SeptError(
                    f"model {policy.name!r}: has no beginning-of-sequence token to start from; give --prompts"
                )
            policy.model.config.sept_template = "plain"  # that token alone, whatever it was trained with
            return ProblemSet("bos", (Problem("bos", "bos", "", "-"),)), None
        prompts = "toy:train"
    if prompts.endswith(".txt"):
        try:
            lines = [line for line in Path(prompts).read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8"
            raise SeptError(f"prompts {prompts!r}: cannot be read ({why}); name a text file") from None
        problems = ProblemSet(prompts, tuple(Problem(str(i), "text", x, "-") for i, x in enumerate(lines)))
    else:
        problems = load_problems(prompts)
    if problems.stream is not None:
        both = problems.batch(0, 128, seed)
    else:
        both = list(problems.items)
    if not both:
        raise SeptError(f"prompts {prompts!r}: the set is empty; give at least one prompt")
    half = min(64, (len(both) + 1) // 2)
    sets = [
        ProblemSet(f"{prompts} {name}", tuple(part), world=problems.world)
        for name, part in (("trained", both[:half]), ("other", both[half : 2 * half]))
        if part
    ]
    return sets[0], sets[1] if len(sets) == 2 else None


def draw(
    policy: Policy, sampler: Any, problems: ProblemSet, tau_s: float, limit: int, seed: int, samples: int
) -> Rollouts:
    """About `samples` answers of the sampler's weights, evenly over the questions, none ever trained on."""
    prompts = [policy.encode(p.prompt) for p in problems.items]
    keys = [p.id for p in problems.items]
    check_lengths(prompts, keys, policy.context - limit)
    n = max(1, samples // len(keys))
    return sampler.sample(prompts, keys, n, tau_s, limit, seed, draw=-1)  # rounds draw from 0 up


def compare(
    old: Any,
    new: Policy,
    rollouts: Rollouts,
    tau_s: float,
    tau_t: float,
    rows: int = 256,
    order: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`prefix_statistics` of new against old at every visited prefix, and the growth of rare margins.

    old: a model. Further columns of the first table: sequence, token (drawn there) and prefix (its number:
    answers with equal beginnings share it). The second has a row per decade of q: q, slope, pairs
    (`margins.tail_sums`), no pairs without `order`. Streamed, `rows` answers at a time.
    """
    parts: list[pd.DataFrame] = []
    tail, numbers = torch.zeros(12, 3, dtype=torch.float64), np.array(prefix_numbers(rollouts))
    pairs = (visited_logits(m, rollouts, new, rows) for m in (old, new.model))
    for (sequence, token, before), (_, _, after) in zip(*pairs, strict=True):
        done = sum(len(part) for part in parts)
        own = numbers[done : done + len(before)]
        _, firsts, copies = np.unique(own, return_index=True, return_inverse=True)  # each prefix once
        one, other = before[firsts], after[firsts]
        table = prefix_statistics(one, other, tau_s, tau_t, order=order, threads=torch.get_num_threads())
        table = table.iloc[copies].assign(sequence=sequence.numpy(), token=token.numpy(), prefix=own)
        parts.append(table)
        tail += tail_sums(before, after, tau_s) if order else 0
    rare = pd.DataFrame({"q": [10 ** (-b - 0.5) for b in range(12)], "slope": tail[:, 0] / tail[:, 1]})
    return pd.concat(parts, ignore_index=True), rare.assign(pairs=tail[:, 2].long().numpy())


def prefix_numbers(rollouts: Rollouts) -> list[int]:
    """For every visited prefix, answer by answer: a number that equal prefixes share."""
    numbers: dict[tuple[int, int], int] = {}
    roots: dict[tuple[int, ...], int] = {}
    out = []
    lengths = rollouts.lengths.tolist()
    for prompt, tokens, n in zip(rollouts.prompts, rollouts.tokens.tolist(), lengths, strict=True):
        at = roots.setdefault(tuple(prompt), -len(roots) - 1)
        for token in tokens[:n]:
            out.append(at)
            at = numbers.setdefault((at, token), len(numbers))
    return out


def between(
    old: Policy, new: Policy, problems: ProblemSet, tau_s: float, tau_t: float, seed: int, limit: int
) -> dict[str, Any]:
    """Margins of a trained model against those of the model it came from, at answers of the latter."""
    check_temperatures(tau_s, tau_t)
    if old.tokenizer.get_vocab() != new.tokenizer.get_vocab():
        raise SeptError(
            f"models {old.name!r} and {new.name!r} have different vocabularies, so their margins cannot be "
            "compared; give a model and what was trained from it"
        )
    for policy in (old, new):
        check_finite(policy)
    rollouts = draw(old, make_sampler(old), problems, tau_s, limit, seed, MEASURED)
    table, _ = compare(old.model, new, rollouts, tau_s, tau_t)
    out = {"model": old.name, "trained": new.name, "tau_s": tau_s, "tau_t": tau_t}
    return out | {"target": tau_t / tau_s} | headline(table) | {"tables": {"trained": table}}


def check_temperatures(tau_s: float, tau_t: float) -> None:
    """SeptError unless both lie where a softmax of ordinary logits is neither one token nor noise."""
    for name, tau in (("tau_s", tau_s), ("tau_t", tau_t)):
        if not (math.isfinite(tau) and 0.05 <= tau <= 20):
            raise SeptError(f"{name} = {tau}: out of range, must lie between 0.05 and 20")


def check_finite(policy: Policy) -> None:
    """SeptError naming the first tensor with a NaN or an infinity."""
    for name, value in policy.model.state_dict().items():
        if not torch.isfinite(value).all():
            raise SeptError(f"model {policy.name!r}: tensor {name!r} has values that are not finite")


def check(
    policy: Policy,
    trained: ProblemSet,
    other: ProblemSet | None,
    tau_s: float,
    tau_t: float = 1.0,
    level: str = "full",
    steps: int = STEPS,
    samples: int = SAMPLES,
    seed: int = 0,
    max_new_tokens: int = 56,
    targets: str = "soft",
    lr: float = LEARNING_RATE,
    measured: int = MEASURED,
    top_p: float = 1.0,
    on_record: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """One round of the theorem on `policy`, which is changed in place (`logits` leaves it alone).

    Returns target, slope, slope_interval, slope_quantiles, r2, order_agreement, kl, prefixes, sequences, other
    (the same for the other questions, or None), trajectory (a list of step, slope, slope_interval, r2, kl and
    other_*), start (of a perturbed start), settings, `tables`, the per-prefix tables of trained and other, and
    `tail` (both as `compare` makes them);
    for `logits` floors in place of a trajectory. At tau_s = tau_t a model that does nothing would pass, so
    there it starts from a perturbed copy. SeptError for a temperature, level or length that cannot be.
    """
    for name, value, choices in (("level", level, LEVELS), ("targets", targets, TARGETS)):
        if value not in choices:
            raise SeptError(f"{name} {value!r}: unknown, choose one of {', '.join(choices)}")
    for field, count in (("steps", steps), ("samples", samples), ("measured", measured)):
        if count < 1:
            raise SeptError(f"{field} = {count}: must be an integer of at least 1")
    check_temperatures(tau_s, tau_t)
    check_finite(policy)
    old = copy.deepcopy(policy.model).eval().requires_grad_(False)
    sampler = make_sampler(policy)
    sets = {"trained": trained} | ({"other": other} if other is not None else {})
    rollouts = {k: draw(policy, sampler, p, tau_s, max_new_tokens, seed, measured) for k, p in sets.items()}
    out: dict[str, Any] = {"model": policy.name, "level": level, "tau_s": tau_s, "tau_t": tau_t}
    out |= {"target": tau_t / tau_s}
    if level == "logits":
        return out | logit_floors(old, policy, rollouts["trained"], tau_s, tau_t)
    trajectory: list[dict[str, Any]] = []

    def record(step: int) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
        last = step == steps
        part = {k: r if last else thinned(r, measured // 4) for k, r in rollouts.items()}
        both = {k: compare(old, policy, r, tau_s, tau_t, order=last) for k, r in part.items()}
        tables = {k: table for k, (table, _) in both.items()}
        row: dict[str, Any] = {"step": step}
        for name, table in tables.items():
            got, prefix = headline(table), "" if name == "trained" else f"{name}_"
            row |= {prefix + k: got[k] for k in ("slope", "slope_interval", "r2", "kl")}
        trajectory.append(row)
        if on_record is not None:
            on_record(row)
        return tables, both["trained"][1]

    if level == "head":
        only_head(policy)
    if math.isclose(tau_s, tau_t):
        perturb(policy, seed)
        out["start"] = headline(record(0)[0]["trained"])
    train_round(
        policy,
        old if targets == "soft" else None,
        sampler,
        trained,
        tau_s,
        tau_t,
        steps,
        samples,
        lr,
        seed,
        max_new_tokens,
        lambda step: record(step) if step in RECORDED and step < steps else None,
        top_p,
    )
    tables, tail = record(steps)
    out |= headline(tables["trained"])
    out["other"] = headline(tables["other"]) if "other" in tables else None
    out["trajectory"] = trajectory
    named = {"steps": steps, "samples": samples, "lr": lr, "seed": seed, "targets": targets}
    out["settings"] = {"questions": [p.name for p in sets.values()], **named, "limit": max_new_tokens}
    return out | {"tables": tables, "tail": tail}


def train_round(
    policy: Policy,
    teacher: Any,
    sampler: Sampler,
    problems: ProblemSet,
    tau_s: float,
    tau_t: float,
    steps: int,
    samples: int,
    lr: float,
    seed: int,
    limit: int,
    on_step: Callable[[int], Any] = lambda step: None,
    top_p: float = 1.0,
) -> None:
    """One SePT round run to convergence: equation 1 with pi_old frozen in `sampler`, drawing anew every step.

    About `samples` answers a step, evenly over the problems; their loss is summed over tokens and divided
    by the number of answers, as in equation 1. Equal answers are computed once and weighted by their number,
    and stand in batches of like length: the same gradient, some times faster. With a `teacher` (pi_old's
    model) the negative log-probability of the drawn token is replaced by its expectation over
    softmax(teacher / tau_s) at the drawn prefix, which by Proposition 1 is the same objective with less noise;
    top_p cuts that distribution to its nucleus. AdamW without weight decay; the rate warms up over a tenth of
    the steps and falls to 0 by half a cosine wave.
    """
    weights = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=BETAS, weight_decay=0.0)
    prompts, keys = [policy.encode(p.prompt) for p in problems.items], [p.id for p in problems.items]
    check_lengths(prompts, keys, policy.context - limit)
    n = max(1, samples // len(keys))
    kept = room_for_logits(sampler, n * len(keys), limit) if teacher is not None else None
    also: dict[str, Any] = {} if kept is None else {"logits": kept}
    for step in range(steps):
        progress = min(1.0, (step + 1) / max(1, steps // 10)) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr * progress
        rollouts = sampler.sample(prompts, keys, n, tau_s, limit, seed, draw=step, **also)
        optimizer.zero_grad(set_to_none=True)
        for rows, counts in merged(rollouts):
            batch = rows_batch(policy, rollouts, rows)
            logits = response_logits(policy.model, batch, policy.vocab)
            if teacher is None:
                losses = objectives.nll(logits, batch.tokens, tau_t)
            else:
                with torch.no_grad():
                    if kept is None:
                        before = response_logits(teacher, batch, policy.vocab).float()
                    else:
                        before = kept[rows, : batch.mask.shape[1]]
                    q = torch.softmax(before / tau_s, -1)
                    q = q if top_p == 1 else nucleus(q, top_p)
                losses = -(q * torch.log_softmax(logits.float() / tau_t, -1)).sum(-1)
            weight = counts.to(losses)[:, None] * batch.mask / len(rollouts)
            loss = (losses * weight).sum()
            if not torch.isfinite(loss):
                raise SeptError(
                    f"step {step}: the loss is not finite; the model or its rate {lr} is at fault"
                )
            loss.backward()
        optimizer.step()
        policy.version += 1
        on_step(step + 1)


def room_for_logits(sampler: Sampler, answers: int, limit: int) -> Tensor | None:
    """Where the built-in engine puts the logits that it draws from: [answers, limit, V], if that is few enough.

    They are the teacher's, who then need not be asked again.
    """
    if not isinstance(sampler, StaticEngine) or answers * limit * sampler.head.shape[1] > KEPT:
        return None
    return torch.zeros(answers, limit, sampler.head.shape[1])  # of ended answers too: it must be finite


def merged(rollouts: Rollouts, rows: int = 32) -> Iterator[tuple[list[int], Tensor]]:
    """Rows of the distinct answers and how often each was drawn, in batches of like length."""
    number: dict[tuple[Any, ...], int] = {}
    counts: list[int] = []
    firsts: list[int] = []
    for i, (prompt, n) in enumerate(zip(rollouts.prompts, rollouts.lengths.tolist(), strict=True)):
        place = number.setdefault((tuple(prompt), tuple(rollouts.tokens[i, :n].tolist())), len(counts))
        if place == len(counts):
            counts.append(0)
            firsts.append(i)
        counts[place] += 1
    lengths = {i: len(rollouts.prompts[i]) + int(rollouts.lengths[i]) for i in firsts}
    order = sorted(range(len(firsts)), key=lambda k: lengths[firsts[k]])
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        yield [firsts[k] for k in part], torch.tensor([counts[k] for k in part])


def only_head(policy: Policy) -> None:
    """Freeze everything but the output layer, which gets weights of its own where it was tied."""
    model = policy.model
    head = model.get_output_embeddings()
    own = torch.nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)
    own.load_state_dict({k: v.detach().clone() for k, v in head.state_dict().items()})
    model.requires_grad_(False)
    model.set_output_embeddings(own.to(head.weight.device, head.weight.dtype))
    model.config.tie_word_embeddings = False


def perturb(policy: Policy, seed: int, noise: float = NOISE) -> None:
    """Add Gaussian noise to every weight that is trained: `noise` times its tensor's standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.model.parameters():
            if p.requires_grad and p.numel() > 1:
                p += (noise * p.std() * torch.randn(p.shape, generator=generator).to(p)).to(p.dtype)
