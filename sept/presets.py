"""The paper's runs as presets: which model, which questions, which arm, and what differs from the arm.

A name is ARM-MODEL-DATA, as in `sept-qwen2.5-math-7b-dsr`, or `sweep-MODEL`; `:authors` behind it asks for
the settings of the authors' code where they differ from the paper's text (`:paper`, the default). What the
paper leaves open is as in the code in both.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from .config import Config, SeptError, preset, shipped


@dataclass(frozen=True)
class Shape:
    """A model's architecture, as far as its size and cost depend on it."""

    hub: str
    """Repository and commit, as `load_policy` takes them."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    """Rows of the embedding, padding included."""
    context: int
    tied: bool = False
    bias: bool = False
    """Whether queries, keys and values have a bias (Qwen2)."""
    tau_s: float = 0.6
    """Where the paper's sampling temperature starts on it (B.1)."""
    template: str = "qwen_base_and_math"
    """Its prompt template in the paper's Figure 4, which has none for Llama."""

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Embeddings (once if tied), per layer attention, MLP and two norms, and the last norm."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        attention = self.hidden * (qkv + self.heads * self.head_dim) + self.bias * qkv
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden + (2 - self.tied) * self.vocab * self.hidden

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token in bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


_DATA = shipped("presets.toml")
SHAPES = {name: Shape(**fields) for name, fields in _DATA["models"].items()}
BENCHMARKS = "math500+amc23+minerva+olympiad+aime24+aime25:parity"
"""Questions of every published score."""
LIMIT, SAMPLES = 3072, 32
"""Tokens of an answer, answers per question: in every sweep and evaluation."""
VARIANTS = ("paper", "authors")
_RUNS = {
    f"{arm}-{model}-{data}": (arm, model, data)
    for arm, fields in _DATA["arms"].items()
    for data in _DATA["data"]
    for model in fields.get(data, ())
}


@dataclass(frozen=True)
class Preset:
    """A published run, or a sweep (no arm)."""

    name: str
    model: str
    """Key of SHAPES."""
    arm: str = ""
    """Preset of `sept.config`."""
    problems: str = ""
    """What it is trained on."""
    overrides: tuple[tuple[str, Any], ...] = ()
    """Config fields that differ from the arm's."""

    evaluated_on: str = BENCHMARKS

    @property
    def shape(self) -> Shape:
        return SHAPES[self.model]

    def config(self, **more: Any) -> Config:
        """The full config of a run, with further fields."""
        return preset(self.arm, **{**dict(self.overrides), **more})


def names() -> list[str]:
    """Every preset, without its variants: the 22 training runs, then the five sweeps."""
    return [*_RUNS, *(f"sweep-{model}" for model in _DATA["arms"]["sept"]["dsr"])]


def find_preset(name: str) -> Preset:
    """A preset by name, with `:paper` (the default) or `:authors` behind it. SeptError on unknown ones."""
    bare, _, variant = name.partition(":")
    variant = variant or "paper"
    if bare not in names() or variant not in VARIANTS:
        close = difflib.get_close_matches(bare, names(), 1)
        raise SeptError(
            f"preset {name!r}: unknown{f', did you mean {close[0]}' if close else ''}; `sept plan` lists them, "
            f"each with :{' or :'.join(VARIANTS)} behind it"
        )
    if bare.startswith("sweep-"):
        return Preset(name, bare.removeprefix("sweep-"))
    arm, model, data = _RUNS[bare]
    known, authors = _DATA["arms"][arm], variant == "authors"
    fields = {**_DATA["common"], "loss_normalisation": "microbatch-token" if authors else "sequence-sum"}
    fields |= known.get("both", {}) | (known.get("code", {}) if authors else {})
    if arm not in ("grpo", "em-ft") and known[variant] != "coupled":  # these draw at 1 on every model
        fields["tau_s"] = SHAPES[model].tau_s
    return Preset(name, model, known[variant], _DATA["data"][data], tuple(sorted(fields.items())))
