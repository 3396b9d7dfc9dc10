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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import objectives
from .checkpoints import (
    checkpoints,
    copy_weights,
    last_good,
    locked,
    open_folder,
    restore,
    save,
    write_rows,
)
from .config import RESULTS_VERSION, Config, SeptError
from .evaluation import evaluate, family_means, question_scores
from .grading import grade
from .policy import Policy, fingerprint, make_batch, response_logits, save_policy
from .problems import Problem, ProblemSet, check_lengths
from .sampling import Rollouts, Sampler, make_sampler, parse_engine, with_end
from .schedules import tau_s_at

CANARY = 1e-3
"""Largest mean |sampler log-prob - policy log-prob|, nats per token, on weights that should be equal (50
times that below fp32). After the first round the limit is ten times that round's gap, or 1e-5 if that is
more: fp32 engines agree to 1e-6, one missed refresh at lr 1e-4 on base H shows as 3e-3."""


class TrainingError(RuntimeError):
    """A run that cannot go on: says the round, the batch and the last good checkpoint."""


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
) -> list[dict[str, Any]]:
    """Run Algorithm 1; returns one row per round (columns in RESULTS.md).

    policy is trained in place (a finished run leaves it as it is). out gets config.json, rounds.jsonl,
    checkpoint-R folders (the last two) and, at the end, final/ in Hugging Face form. With resume, a run
    that was cut off continues to the same result; without, `out` must be empty or absent. SeptError for
    user mistakes, TrainingError for a run gone wrong. Ctrl-C leaves a folder that resumes from its last
    checkpoint. engine: what make_sampler takes, where no sampler is given.
    """
    identity = {
        "config": config.key(),
        "checkpoint": fingerprint(policy),
        "problems": problems.hash(),
        "results_version": RESULTS_VERSION,
    }
    if engine.startswith("vllm"):  # its draws differ from those of the built-in engines, which agree
        identity["engine"] = "vllm"
    # Whatever can be refused is refused before anything is written.
    parse_engine(engine)
    first = problems.items or problems.batch(0, config.questions, config.seed)
    problems.batch(0, config.questions, config.seed)
    room = policy.context - config.max_new_tokens - config.append_eos
    check_lengths([policy.encode(p.prompt) for p in first], [p.id for p in first], room)
    if dev is not None:
        if not dev.items:
            raise SeptError(
                f"dev questions {dev.name!r}: an endless set cannot be evaluated on, use toy:dev"
            )
        check_lengths([policy.encode(p.prompt) for p in dev.items], [p.id for p in dev.items], room)
        identity["dev"] = dev.hash()
    policy.model = _prepare(policy.model, config)
    rows = open_folder(out, config, identity, policy, problems, resume)
    with locked(out / ".lock", wait=False):
        if rows and rows[-1]["round"] == config.rounds - 1 and (out / "final").is_dir():
            return rows
        sampler = sampler or make_sampler(policy, engine)
        return _rounds(config, policy, problems, out, rows, room, dev, sampler, on_round)


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
) -> list[dict[str, Any]]:
    """Algorithm 1 itself, from round len(rows) on."""
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
    # A sampler that may lag behind the policy needs its own weights in every checkpoint.
    lagging = config.refresh_every != 1
    behind = copy_weights(policy.model) if lagging else None
    if start and rows[0]["sampler_gap"] < limit:
        limit = min(limit, max(1e-5, 10 * rows[0]["sampler_gap"]))
    if start:
        behind = restore(out / f"checkpoint-{start}", policy, optimizer, sampler)
    sampler_version = sampler.version  # the version that this arm's next samples must carry

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
            row |= describe(rollouts, questions, policy, problems.world, config.G)
            if config.append_eos:
                rollouts = with_end(rollouts, policy.eos_ids[0])
            fresh = rollouts.version == policy.version
            row |= _steps(config, policy, optimizer, weights, rollouts, tau_t, row.pop("rewards"))
            if fresh and row["sampler_gap"] > limit:
                raise StaleSamplerError(
                    f"round {round}: sampler and policy differ by {row['sampler_gap']:.1e} nats a token "
                    "on weights that should be equal; the engine's copy is stale or wrong"
                )
            if round == 0 and fresh:
                limit = min(limit, max(1e-5, 10 * row["sampler_gap"]))

            # 4. refresh
            if config.refresh_every and (round + 1) % config.refresh_every == 0:
                sampler.refresh(policy)
                sampler_version = policy.version
                behind = copy_weights(policy.model) if lagging else None

            if dev is not None and config.eval_every and (round + 1) % config.eval_every == 0:
                row |= _dev_scores(config, policy, dev, sampler)
            rows.append(row)
            if on_round is not None:
                on_round(row)
            if (round + 1) % config.save_every == 0 and round + 1 < config.rounds:
                save(out, rows, policy, optimizer, sampler.version, behind)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted in round {round}; continue with --resume from {last_good(out)}"
            ) from None
        except _NonFiniteError as error:
            raise TrainingError(
                f"round {round}, batch {error.batch}: {error.what} is not finite; last good checkpoint: "
                f"{last_good(out)}; lower lr or raise tau_t"
            ) from None
    write_rows(out, rows)
    save_policy(policy, out / "final")  # last: its presence says that the run is whole
    for folder in checkpoints(out):
        shutil.rmtree(folder)
    return rows


class _NonFiniteError(Exception):
    def __init__(self, batch: int, what: str) -> None:
        self.batch, self.what = batch, what


def _steps(
    config: Config,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    weights: list[Tensor],
    rollouts: Rollouts,
    tau_t: float,
    rewards: Tensor,
) -> dict[str, float]:
    """All optimizer steps of a round: mu passes over the mini-batches. Returns the round's metrics."""
    advantages = old = None
    if config.objective == "grpo":
        advantages = objectives.group_advantages(rewards, config.G)
        old = rollouts.log_probs  # drawn at tau_s; the GRPO arm draws and trains at one temperature
    size = config.mini_batch * config.G
    device = weights[0].device
    sums = {"loss": 0.0, "nll": 0.0, "entropy": 0.0, "sampler_gap": 0.0, "grad_norm": 0.0}
    tokens_seen, steps, gap_tokens = 0, 0, 0
    policy.model.train(config.gradient_checkpointing)  # eval mode otherwise: no dropout, ever
    for batch_number, first in enumerate(list(range(0, len(rollouts), size)) * config.mu):
        step_rows = range(first, min(first + size, len(rollouts)))
        step_tokens = int(rollouts.lengths[step_rows.start : step_rows.stop].sum())
        parts = [
            list(step_rows[i : i + config.micro_batch])
            for i in range(0, len(step_rows), config.micro_batch)
        ]
        optimizer.zero_grad(set_to_none=True)
        for part in parts:
            batch = make_batch(
                [rollouts.prompts[i] for i in part],
                rollouts.tokens[part],
                rollouts.lengths[part],
                policy.pad_id,
                device=device,
            )
            logits = response_logits(policy.model, batch)
            if config.objective == "nll":
                losses = objectives.nll(logits, batch.tokens, tau_t)
            elif config.objective == "entropy":
                losses = objectives.entropy(logits, tau_t)
            else:
                T = batch.tokens.shape[1]
                assert old is not None and advantages is not None
                losses = objectives.grpo(
                    logits,
                    batch.tokens,
                    tau_t,
                    old[part, :T].to(device),
                    advantages[part].to(device),
                    config.clip,
                )
            loss = objectives.normalise(
                losses, batch.mask, config.loss_normalisation, step_tokens, len(step_rows), len(parts)
            )
            if not torch.isfinite(loss):
                raise _NonFiniteError(batch_number, "the loss")
            loss.backward()
            sums["loss"] += loss.item()
            with torch.no_grad():
                mask = batch.mask
                at_one = objectives.token_log_probs(logits, batch.tokens)
                sums["nll"] -= (at_one * mask).sum().item()
                sums["entropy"] += (objectives.entropy(logits) * mask).sum().item()
                tokens_seen += int(mask.sum())
                if batch_number == 0:  # the weights are still those of the round's start
                    tau = rollouts.tau or 1.0
                    now = objectives.token_log_probs(logits, batch.tokens, tau)
                    drawn = rollouts.log_probs[part, : now.shape[1]].to(device)
                    sums["sampler_gap"] += ((now - drawn).abs() * mask).nansum().item()
                    gap_tokens += int(mask.sum())
        limit = config.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(weights, limit)
        if not torch.isfinite(norm):
            raise _NonFiniteError(batch_number, "the gradient")
        sums["grad_norm"] += norm.item()
        optimizer.step()
        policy.version += 1
        steps += 1
    policy.model.eval()
    return {
        "loss": sums["loss"] / steps,
        "nll": sums["nll"] / tokens_seen,
        "entropy": sums["entropy"] / tokens_seen,
        "sampler_gap": sums["sampler_gap"] / max(gap_tokens, 1),
        "grad_norm": sums["grad_norm"] / steps,
        "version": policy.version,
    }


def describe(
    rollouts: Rollouts, questions: list[Problem], policy: Policy, world: str, G: int
) -> dict[str, Any]:
    """What was drawn: samples, mean length, shares finished, badly formed and right, style mix.

    `rewards` [N] (1 for right) comes along for GRPO; SePT never looks at it.
    """
    texts = [
        policy.decode(rollouts.tokens[i, : rollouts.lengths[i]].tolist()) for i in range(len(rollouts))
    ]
    ended = rollouts.finished.tolist()
    rewards = torch.tensor(
        [
            float(grade(text, end, questions[i // G], world))
            for i, (text, end) in enumerate(zip(texts, ended, strict=True))
        ]
    )
    row: dict[str, Any] = {
        "samples": len(texts),
        "tokens": int(rollouts.lengths.sum()),
        "length": float(rollouts.lengths.float().mean()),
        "finished": sum(ended) / len(ended),
        "accuracy": float(rewards.mean()),
        "rewards": rewards,
    }
    if world == "toy":
        from .toy import STYLES, is_well_formed

        good = [is_well_formed(text, end) for text, end in zip(texts, ended, strict=True)]
        row["bad_format"] = 1 - sum(good) / len(good)
        for style in STYLES:
            row[f"style {style}"] = sum(text.startswith(style) for text in texts) / len(texts)
    return row


def _dev_scores(config: Config, policy: Policy, dev: ProblemSet, sampler: Sampler) -> dict[str, float]:
    if sampler.version != policy.version:  # it lags behind, as this arm wants it to
        sampler = make_sampler(policy)
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
