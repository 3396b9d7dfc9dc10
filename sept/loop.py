"""Algorithm 1 of the paper, and every other arm of it as settings of the same loop.

    for each round:
        1. take the round's questions
        2. draw G answers to each from the sampler, at tau_s           o ~ pi_old(. | q; tau_s)
        3. step on them at tau_t                                       min -log pi_theta(o | q; tau_t)
        4. every `refresh_every` rounds, give the sampler the weights  pi_old <- pi_theta

Left out on purpose: rewards (except in the GRPO arm), KL terms, reference models, filters, old
log-probs for SePT. Training uses the sampler's own token ids; they are never decoded and re-encoded.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .cards import begin_card
from .checkpoints import (
    checkpoints,
    claimed,
    copy_weights,
    last_good,
    open_folder,
    read_rows,
    restore,
    save,
    write_rows,
)
from .config import RESULTS_VERSION, Config, SeptError, TrainingError, digest
from .distributed import Ranks, SharedSampler, join
from .durable import Preempted, Sigterm, sigterm
from .evaluation import evaluate, family_means, question_scores
from .grading import grade_all
from .margins import Probe
from .policy import Policy, fingerprint, save_policy
from .problems import Problem, ProblemSet, check_lengths, fitting
from .sampling import EngineError, Rollouts, Sampler, make_sampler, parse_engine, with_end
from .schedules import tau_s_at
from .steps import NonFiniteError as _NonFiniteError
from .steps import take_steps as _steps

CANARY = 1e-3
"""Largest mean |sampler log-prob - policy log-prob|, nats per token, on weights that should be equal (50
times that below fp32). After the first round the limit is ten times that round's gap, or 1e-5 if that is
more: fp32 engines agree to 1e-6, one missed refresh at lr 1e-4 on base H shows as 3e-3."""


class StaleSamplerError(TrainingError):
    """Samples were not drawn by the weights the arm asks for."""


def train(
    config: Config,
    policy: Policy,
    problems: ProblemSet,
    out: Path,
    *,
    dev: ProblemSet | None = None,
    resume: bool = False,
    sampler: Sampler | None = None,
    engine: str = "auto",
    on_round: Callable[[dict[str, Any]], None] | None = None,
    name: str = "",
) -> list[dict[str, Any]]:
    """Run Algorithm 1; returns one row per round (columns in RESULTS.md).

    policy is trained in place (a finished run leaves it as it is). out gets config.json, rounds.jsonl,
    checkpoint-R folders (the last two) and, at the end, final/ in Hugging Face form. With resume, a run
    that was cut off continues to the same result; without, `out` must be empty or absent. SeptError for
    user mistakes, TrainingError for a run gone wrong. Ctrl-C leaves a folder that resumes from its last
    checkpoint; SIGTERM saves one first (during sampling at once, else and under torchrun at the end of the
    round) and is raised as `durable.Preempted`. engine: what make_sampler takes, where no sampler is given.
    name: of the arm or preset, for people; it goes to config.json and to the model card.

    Under torchrun all ranks call this alike, on a folder that all of them see; the first one writes, grades
    and reports, so the rows that others return lack what was drawn.
    """
    ranks = join(config.sharding)
    identity = {
        "config": config.key(),
        "checkpoint": fingerprint(policy),
        "problems": problems.hash(),
        "results_version": RESULTS_VERSION,
    }
    if engine.startswith(("vllm", "exact")):  # which round otherwise than the others
        identity["engine"] = engine.partition(":")[0]
    # Whatever can be refused is refused before anything is written.
    parse_engine(engine)
    room = policy.context - config.max_new_tokens - config.append_eos
    problems = fitting(problems, policy.encode, room)
    first = problems.batch(0, config.questions, config.seed)
    check_lengths([policy.encode(p.prompt) for p in first], [p.id for p in first], room)
    if dev is not None:
        if not dev.items:
            raise SeptError(
                f"dev questions {dev.name!r}: an endless set cannot be evaluated on, use toy:dev"
            )
        identity["dev"] = dev.hash()
        dev = fitting(dev, policy.encode, room)
    policy.model = _prepare(policy.model, config)
    with ranks.watched(), claimed(out) if ranks.first else nullcontext(), sigterm() as stop:
        ranks.agree(digest([identity, config.sharding]), "config, model or problems")
        rows = []
        if ranks.first:
            rows = open_folder(out, config, identity, policy, problems, resume, name or config.objective)
        done = int(ranks.gather(torch.tensor(len(rows)))[0])
        if not ranks.first:
            rows = read_rows(out)[:done] if done else []
            if len(rows) < done or not (out / "config.json").is_file():
                raise SeptError(f"rank {ranks.rank} does not see {str(out)!r}: all nodes must share --out")
        if done == config.rounds and (out / "final").is_dir():
            return rows
        sampler = SharedSampler(sampler or make_sampler(policy, engine), ranks)
        return _rounds(config, policy, problems, out, rows, room, dev, sampler, on_round, ranks, stop)


def _rounds(
    config: Config,
    policy: Policy,
    problems: ProblemSet,
    out: Path,
    rows: list[dict[str, Any]],
    room: int,
    dev: ProblemSet | None,
    sampler: Sampler,
    on_round: Callable[[dict[str, Any]], None] | None,
    ranks: Ranks,
    stop: Sigterm,
) -> list[dict[str, Any]]:
    """Algorithm 1 itself, from round len(rows) on."""
    # A sampler that may lag behind the policy needs its own weights in every checkpoint.
    lagging = config.refresh_every != 1
    apart = lagging and dev is not None and config.eval_every
    evaluator = SharedSampler(make_sampler(policy), ranks) if apart else sampler
    ranks.spread(policy)
    weights = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    start = len(rows)
    limit = CANARY if policy.compute == torch.float32 else 50 * CANARY
    behind = copy_weights(policy.model, ranks) if lagging else None
    if start and rows[0]["sampler_gap"] < limit:
        limit = min(limit, max(1e-5, 10 * rows[0]["sampler_gap"]))
    probe = None
    if config.margins_every:  # policy and sampler still hold the untrained weights, resumed or not
        first = problems.batch(0, config.questions, config.seed)
        probe = Probe(policy, sampler, first, config.seed, config.max_new_tokens, problems.world)
    if start:
        behind = restore(out / f"checkpoint-{start}", policy, optimizer, sampler, ranks)
    sampler_version = sampler.version  # the version that this arm's next samples must carry

    saved = start

    def keep() -> None:
        nonlocal saved
        if len(rows) > saved:
            save(out, rows, policy, optimizer, sampler.version, behind, ranks)
            saved = len(rows)

    for round in range(start, config.rounds):
        try:
            # 1. questions
            questions = problems.batch(round, config.questions, config.seed)
            prompts = [policy.encode(q.prompt) for q in questions]
            names = [q.id for q in questions]
            check_lengths(prompts, names, room)

            # 2. answers, at tau_s. An offline sampler is one frozen data set: its draws have no round.
            tau_s = tau_s_at(
                round / config.rounds,
                config.tau_s,
                config.tau_s_end,
                config.tau_s_schedule,
                config.anneal_share,
            )
            tau_t = tau_s if config.tau_t is None else config.tau_t
            draw = round if config.refresh_every else 0
            # No weight has changed since the last round, but other ranks may wait for this one's answers.
            with stop.at_once() if ranks.world == 1 else nullcontext():
                rollouts = sampler.sample(
                    prompts, names, config.G, tau_s, config.max_new_tokens, config.seed, draw
                )
            if rollouts.version != sampler_version:
                raise StaleSamplerError(
                    f"round {round}: samples carry weights version {rollouts.version}, this arm wants "
                    f"{sampler_version}; the sampler was not refreshed"
                )

            if not torch.isfinite(rollouts.log_probs).all():
                raise _NonFiniteError(0, "a sampled log-prob")

            # 3. steps, at tau_t
            lr = config.lr * (min(1.0, round / config.warmup) if config.warmup else 1.0)
            if config.lr_schedule == "cosine":
                lr *= (1 + math.cos(math.pi * round / config.rounds)) / 2
            for group in optimizer.param_groups:
                group["lr"] = lr
            row: dict[str, Any] = dict(round=round, tau_s=tau_s, tau_t=tau_t, lr=lr)
            rewards = torch.zeros(len(rollouts))
            if ranks.first:
                row |= describe(rollouts, questions, policy, problems.world, config.G)
                rewards, answers = row.pop("rewards"), row.pop("answers")
                if config.answers_every and (
                    round % config.answers_every == 0 or round + 1 == config.rounds
                ):
                    row["answers"] = answers
            if config.objective == "grpo":  # rank 0's word, while the others wait for it
                ranks.meet()
                rewards = ranks.gather(rewards)[0]
            if config.append_eos:
                rollouts = with_end(rollouts, policy.eos_ids[0])
            fresh = rollouts.version == policy.version
            measured = round + 1 == config.rounds or (round + 1) % (config.margins_every or 1) == 0
            before = probe.logits(policy) if probe is not None and measured else None
            row |= _steps(config, policy, optimizer, weights, rollouts, tau_t, rewards, ranks)
            if fresh and row["sampler_gap"] > limit:
                raise StaleSamplerError(
                    f"round {round}: sampler and policy differ by {row['sampler_gap']:.1e} nats a token "
                    "on weights that should be equal; the engine's copy is stale or wrong"
                )
            if round == 0 and fresh:
                limit = min(limit, max(1e-5, 10 * row["sampler_gap"]))
            if probe is not None and before is not None:
                row |= probe.measure(policy, before, tau_s, tau_t)

            # 4. refresh
            if config.refresh_every and (round + 1) % config.refresh_every == 0:
                sampler.refresh(policy)
                sampler_version = policy.version
                behind = copy_weights(policy.model, ranks) if lagging else None

            if dev is not None and config.eval_every and (round + 1) % config.eval_every == 0:
                if evaluator.version != policy.version:
                    evaluator.refresh(policy)
                row |= _dev_scores(config, policy, dev, evaluator)
            rows.append(row)
            if on_round is not None and ranks.first:
                on_round(row)
            if (round + 1) % config.save_every == 0 and round + 1 < config.rounds:
                keep()
            if ranks.gather(torch.tensor(stop.asked)).any():
                raise Preempted
        except Preempted:
            keep()
            raise Preempted(
                f"stopped by SIGTERM after {len(rows)} rounds; continue with --resume from {last_good(out)}"
            ) from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted in round {round}; continue with --resume from {last_good(out)}"
            ) from None
        except EngineError as error:
            raise TrainingError(
                f"round {round}: the engine died ({error}); continue with --resume from {last_good(out)}"
            ) from error
        except _NonFiniteError as error:
            raise TrainingError(
                f"round {round}, batch {error.batch}: {error.what} is not finite; last good checkpoint: "
                f"{last_good(out)}; lower lr or raise tau_t"
            ) from None
    if ranks.first:
        write_rows(out, rows)
    card = partial(begin_card, run=out, rounds=len(rows))
    save_policy(policy, out / "final", card, ranks.first)  # last: its presence says that the run is whole
    for folder in checkpoints(out) if ranks.first else ():
        shutil.rmtree(folder)
    return rows


def describe(
    rollouts: Rollouts, questions: list[Problem], policy: Policy, world: str, G: int
) -> dict[str, Any]:
    """What was drawn: samples, mean length, shares finished, badly formed and right, style mix.

    `rewards` [N] (1 for right) comes along for GRPO; SePT never looks at it. `answers`: the first one to
    each of the first three questions, for people.
    """
    texts = [
        policy.decode(rollouts.tokens[i, : rollouts.lengths[i]].tolist()) for i in range(len(rollouts))
    ]
    ended = rollouts.finished.tolist()
    asked = [question for question in questions for _ in range(G)]
    rewards = torch.tensor([float(right) for right in grade_all(texts, ended, asked, world)])
    row: dict[str, Any] = {
        "samples": len(texts),
        "tokens": int(rollouts.lengths.sum()),
        "length": float(rollouts.lengths.float().mean()),
        "finished": sum(ended) / len(ended),
        "accuracy": float(rewards.mean()),
        "rewards": rewards,
    }
    row["answers"] = [
        {"id": q.id, "prompt": q.prompt, "answer": text, "right": bool(right)}
        for q, text, right in zip(questions[:3], texts[::G], rewards[::G], strict=False)
    ]
    if world == "toy":
        from .toy import STYLES, is_well_formed

        good = [is_well_formed(text, end) for text, end in zip(texts, ended, strict=True)]
        row["bad_format"] = 1 - sum(good) / len(good)
        for style in STYLES:
            row[f"style {style}"] = sum(text.startswith(style) for text in texts) / len(texts)
    return row


def _dev_scores(config: Config, policy: Policy, dev: ProblemSet, sampler: Sampler) -> dict[str, float]:
    counts = evaluate(policy, sampler, dev, 1.0, 32, config.seed, config.max_new_tokens)
    means = family_means(question_scores(counts))
    return {f"dev {m}": 100 * float(value) for m, value in means.items()}


def _prepare(model: Any, config: Config) -> Any:
    """Options that change the model before the first step."""
    if config.lora_rank:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise SeptError(
                "lora_rank > 0 needs peft: pip install 'sept[lora]', or set lora_rank = 0"
            ) from None
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model = get_peft_model(
                model, LoraConfig(r=config.lora_rank, target_modules="all-linear", lora_alpha=16)
            )
    if config.gradient_checkpointing:  # works in train mode only, so dropout is taken out by hand
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model
