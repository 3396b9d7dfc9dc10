"""The frozen config, its validation and the named presets. Every arm of the paper is one preset."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import logging
import os
import re
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

RESULTS_VERSION = 2
"""Part of every result's key. Raise it with every change that alters numbers: sampling, training,
grading, the toy world."""


class SeptError(ValueError):
    """A mistake the user can fix: one line that says what is wrong, where, and what to do."""


class TrainingError(RuntimeError):
    """A run that cannot go on: says the round, the batch and the last good checkpoint."""


@cache
def notice(line: str) -> None:
    """Tell the user something that is no mistake, on standard error, once per process."""
    logging.getLogger("sept").warning(without_secrets(" ".join(line.split())))


def is_secret(name: str) -> bool:
    """Whether an environment variable or setting of this name holds what nobody may see, such as HF_TOKEN."""
    return re.search(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)$", name.upper()) is not None


def without_secrets(text: str) -> str:
    """`text` with the values of secret environment variables taken out: for whatever others said."""
    for name, value in os.environ.items():
        if len(value) >= 8 and is_secret(name):
            text = text.replace(value, f"({name})")
    return text


def shipped_text(name: str) -> str:
    """A file of `sept/data`."""
    return (files("sept") / "data" / name).read_text(encoding="utf-8")


def shipped(name: str) -> dict[str, Any]:
    """A TOML file of `sept/data`."""
    return tomllib.loads(shipped_text(name))


OBJECTIVES = ("nll", "entropy", "grpo")
NORMALISATIONS = ("token", "sequence-sum", "microbatch-token")
SCHEDULES = ("constant", "linear", "cosine")
SHARDINGS = ("auto", "ddp", "fsdp")


@dataclass(frozen=True)
class Config:
    """One training run. Frozen and validated; `key()` identifies it; every field has one meaning."""

    # --- what is minimised
    objective: str = "nll"
    """`nll` (SFT on the samples), `entropy` (of visited prefixes, EM-FT) or `grpo`."""
    loss_normalisation: str = "token"
    """`token`: summed over all response tokens of an optimizer step, divided by their number.
    `sequence-sum`: summed over tokens, divided by the number of sequences (the paper's equation 1).
    `microbatch-token`: token mean inside each micro-batch, then plain mean (the authors' code).
    Accumulation does not change the first two."""
    tau_t: float | None = 1.0
    """Training temperature; None ties it to the current tau_s (the Coupled arms)."""
    clip: float = 0.2
    """GRPO: ratio clipped to [1 - clip, 1 + clip]; dual clip at 3 for negative advantages."""

    # --- sampling
    tau_s: float = 0.6
    """Sampling temperature at the start."""
    tau_s_end: float = 1.0
    """Where a linear or cosine schedule ends."""
    tau_s_schedule: str = "constant"
    """`constant`, or per round from tau_s to tau_s_end over the first `anneal_share` of the run."""
    anneal_share: float = 2 / 3
    """Share of the rounds over which tau_s is annealed (the paper: 2 of 3 epochs)."""
    G: int = 1
    """Answers drawn per question."""
    refresh_every: int | None = 1
    """The sampler gets the new weights every so many rounds; None: never (offline)."""
    max_new_tokens: int = 56
    """Response limit in tokens. Longer answers are cut, counted and trained on as they are."""
    append_eos: bool = False
    """Train on cut answers as if they had ended there (what the authors' offline trainer does)."""

    # --- how much
    rounds: int = 120
    """Rounds of sample, train, refresh (the paper's training steps)."""
    questions: int = 128
    """Questions drawn per round."""
    mini_batch: int = 64
    """Questions per optimizer step; `questions / mini_batch` steps a pass."""
    mu: int = 1
    """Passes over each round's samples."""
    micro_batch: int = 64
    """Sequences per forward and backward; gradients accumulate over a mini-batch."""

    # --- optimizer
    lr: float = 1e-4
    """AdamW learning rate after the warm-up."""
    lr_schedule: str = "constant"
    """`constant`, or `cosine`: half a wave from lr to 0 over the whole run."""
    warmup: int = 10
    """Rounds of linear warm-up. Round r (from 0) runs at lr * min(1, r / warmup), as in the authors'
    code: with a warm-up the first round changes nothing."""
    beta1: float = 0.9
    """AdamW."""
    beta2: float = 0.999
    """AdamW."""
    eps: float = 1e-8
    """AdamW."""
    weight_decay: float = 0.01
    """AdamW, decoupled."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 switches clipping off. A non-finite norm stops the run."""

    # --- memory
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora_rank: int = 0
    """0 trains all weights; otherwise peft LoRA adapters of this rank on all linear layers."""

    sharding: str = "auto"
    """Under torchrun: `ddp`, every process holds all weights, or `fsdp`, a share of weights, gradients and
    moments. `auto`: ddp, or a single process without torchrun. Changes no numbers but their rounding."""

    # --- bookkeeping
    seed: int = 0
    """Seed of question order and of every draw, by coordinates (seed, round, problem, sample)."""
    save_every: int = 20
    """Rounds between checkpoints; the last two are kept."""
    eval_every: int = 0
    """Rounds between evaluations on the dev questions; 0: none."""
    margins_every: int = 10
    """Rounds between measurements of the margins at fixed prefixes; 0: none. Changes nothing else."""
    answers_every: int = 20
    """Rounds between sample answers in rounds.jsonl, three questions' first ones; 0: none. Changes nothing
    else."""

    def __post_init__(self) -> None:
        def need(ok: bool, field: str, remedy: str) -> None:
            if not ok:
                raise SeptError(f"{field} = {getattr(self, field)!r}: {remedy}")

        for field, choices in (
            ("objective", OBJECTIVES),
            ("loss_normalisation", NORMALISATIONS),
            ("tau_s_schedule", SCHEDULES),
            ("lr_schedule", ("constant", "cosine")),
            ("sharding", SHARDINGS),
        ):
            need(getattr(self, field) in choices, field, f"choose one of {', '.join(choices)}")
        for field in ("append_eos", "gradient_checkpointing"):
            need(isinstance(getattr(self, field), bool), field, "must be true or false")
        for field in ("tau_s", "tau_s_end", "lr", "eps"):
            value = getattr(self, field)
            need(_number(value) and value > 0, field, "must be a finite number above 0")
        need(
            self.tau_t is None or (_number(self.tau_t) and self.tau_t > 0),
            "tau_t",
            "must be a finite number above 0, or null to tie it to tau_s",
        )
        for field in ("G", "rounds", "questions", "mini_batch", "mu", "micro_batch"):
            need(_integer(getattr(self, field), 1), field, "must be an integer of at least 1")
        for field in ("max_new_tokens", "save_every"):
            need(_integer(getattr(self, field), 1), field, "must be an integer of at least 1")
        for field in ("warmup", "lora_rank", "eval_every", "margins_every", "answers_every", "seed"):
            need(_integer(getattr(self, field), 0), field, "must be an integer of at least 0")
        need(
            self.refresh_every is None or _integer(self.refresh_every, 1),
            "refresh_every",
            "must be an integer of at least 1, or null for never",
        )
        for field in ("beta1", "beta2"):
            value = getattr(self, field)
            need(_number(value) and 0 <= value < 1, field, "must be at least 0 and below 1")
        for field in ("weight_decay", "grad_clip"):
            value = getattr(self, field)
            need(_number(value) and value >= 0, field, "must be a finite number of at least 0")
        need(_number(self.clip) and 0 < self.clip < 1, "clip", "must lie between 0 and 1")
        need(
            _number(self.anneal_share) and 0 < self.anneal_share <= 1,
            "anneal_share",
            "must lie above 0 and be at most 1",
        )
        if self.questions % self.mini_batch:
            raise SeptError(
                f"questions = {self.questions} and mini_batch = {self.mini_batch}: "
                "questions must be a multiple of mini_batch"
            )
        if self.append_eos and self.objective != "nll":
            raise SeptError("append_eos = true: only for objective 'nll', the others need a drawn token")
        if self.objective == "grpo" and self.G < 2:
            raise SeptError("objective = 'grpo' and G = 1: a group needs G of at least 2")
        if self.sharding == "fsdp" and self.lora_rank:
            raise SeptError(
                "sharding = 'fsdp' and lora_rank > 0: adapters are small, take sharding = 'ddp'"
            )
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if str(f.type).startswith("float") and value is not None:
                object.__setattr__(self, f.name, float(value))  # 1 and 1.0 are one config

    def to_json(self) -> str:
        """The config as JSON, one field a line."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def key(self) -> str:
        """Twelve hex digits that identify everything in this config that changes numbers."""
        fields = dataclasses.asdict(self)
        for name in ("save_every", "margins_every", "answers_every", "sharding"):
            del fields[name]
        return digest(fields)[:12]


def _number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )


def _integer(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**63


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


PRESETS: dict[str, dict[str, Any]] = {
    "sept": {},
    "sept-annealed": {"tau_s_schedule": "linear"},
    "offline": {"refresh_every": None},
    # The authors' offline trainer: cosine decay, one step per round, cut answers closed; see RESULTS.md.
    "offline-sft": {
        "refresh_every": None,
        "mini_batch": 128,
        "lr_schedule": "cosine",
        "beta2": 0.95,
        "append_eos": True,
    },
    "coupled": {"tau_s": 1.0},
    "coupled-tau_s": {"tau_t": None},
    "coupled-annealed": {"tau_t": None, "tau_s_schedule": "linear"},
    "inverted": {"tau_s": 1.4},
    "em-ft": {"objective": "entropy", "tau_s": 1.0},
    # As many sampled answers a round as SePT: 16 questions of 8 answers instead of 128 of one.
    "grpo": {"objective": "grpo", "tau_s": 1.0, "G": 8, "questions": 16, "mini_batch": 8},
}
"""Named arms on the embedded world: what differs from the embedded SePT (constant tau_s = 0.6)."""

ARM_NAMES = {
    "sept": "SePT",
    "sept-annealed": "SePT (annealed)",
    "offline": "Offline",
    "offline-sft": "Offline (authors' trainer)",
    "coupled": "Coupled",
    "coupled-tau_s": "Coupled (0.6)",
    "coupled-annealed": "Coupled (annealed)",
    "inverted": "Inverted",
    "em-ft": "EM-FT",
    "grpo": "GRPO",
}
"""What figures and tables call an arm."""


def preset(name: str, **overrides: Any) -> Config:
    """The config of a named arm, with fields overridden. SeptError on unknown names or fields."""
    if name not in PRESETS:
        raise SeptError(f"arm {name!r}: unknown, choose one of {', '.join(PRESETS)}")
    return from_dict({**PRESETS[name], **overrides})


def from_dict(fields: dict[str, Any]) -> Config:
    """A config from JSON-like fields; unknown names are an error that lists the close ones."""
    known = {f.name for f in dataclasses.fields(Config)}
    unknown = sorted(set(fields) - known)
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, 1, 0.5)
        hint = f"did you mean {close[0]}" if close else f"known are {', '.join(sorted(known))}"
        raise SeptError(f"config field {unknown[0]!r}: unknown, {hint}")
    return Config(**fields)
