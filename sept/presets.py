"""The paper's runs as presets: which model, which questions, which arm, and what differs from the arm.

A name is ARM-MODEL-DATA, as in `sept-qwen2.5-math-7b-dsr`, or `sweep-MODEL`; `:authors` behind it asks for
the settings of the authors' code where they differ from the paper's text (`:paper`, the default). What the
paper leaves open is as in the code in both.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from .config import Config, SeptError, preset


@dataclass(frozen=True)
class Shape:
    """A model's architecture, as far as its size and cost depend on it."""

    hub: str
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


def _qwen7(name: str, context: int, **more: Any) -> Shape:
    return Shape(f"Qwen/{name}", 3584, 28, 28, 4, 18944, 152064, context, bias=True, **more)


SHAPES = {
    "qwen2.5-math-7b": _qwen7("Qwen2.5-Math-7B", 4096),
    "qwen2.5-7b": _qwen7("Qwen2.5-7B", 131072, tau_s=0.9),
    "qwen2.5-7b-instruct": _qwen7("Qwen2.5-7B-Instruct", 32768, tau_s=0.9, template="qwen_instruct"),
    "deepseek-math-7b": Shape(
        *("deepseek-ai/deepseek-math-7b-instruct", 4096, 30, 32, 32, 11008, 102400, 4096),
        template="deepseek_math_instruct",
    ),
    "llama-3.1-8b": Shape(
        *("meta-llama/Llama-3.1-8B-Instruct", 4096, 32, 32, 8, 14336, 128256, 131072),
        tau_s=0.9,
        template="chat_reasoning",
    ),
    # For one GPU; the paper has no runs of these.
    "qwen2.5-math-1.5b": Shape(
        "Qwen/Qwen2.5-Math-1.5B", 1536, 28, 12, 2, 8960, 151936, 4096, tied=True, bias=True
    ),
    "qwen2.5-0.5b": Shape(
        "Qwen/Qwen2.5-0.5B", 896, 24, 14, 2, 4864, 151936, 32768, tied=True, bias=True, tau_s=0.9
    ),
}

DATA = {"dsr": "deepscaler:parity", "otm": "openthoughts-math:parity"}
"""Training questions: DeepScaleR, and the mathematical ones of OpenThoughts3; the authors' verifier."""

BENCHMARKS = "math500+amc23+minerva+olympiad+aime24+aime25:parity"
"""Questions of every published score."""

VARIANTS = ("paper", "authors")

# arm: preset of `sept.config` in the text and in the code, what differs from it in both, what in the code.
ARMS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "sept": ("sept-annealed", "sept-annealed", {}, {}),
    "sept-g4": ("sept-annealed", "sept-annealed", {"G": 4}, {}),
    "sept-g8": ("sept-annealed", "sept-annealed", {"G": 8}, {}),
    "grpo": ("grpo", "grpo", {"lr": 5e-7, "questions": 128, "mini_batch": 64}, {}),
    "em-ft": ("em-ft", "em-ft", {"loss_normalisation": "microbatch-token"}, {}),
    # "Standard SFT" of the text is the same run without refreshes; the code has a trainer of its own.
    "offline": ("offline", "offline-sft", {}, {"lr": 1e-5, "warmup": 9}),
    # The text says tau_s = tau_t, not at which value; the code's switch ties tau_t to the annealed tau_s.
    "coupled": ("coupled", "coupled-annealed", {}, {}),
}

LIMIT, SAMPLES = 3072, 32
"""Tokens of an answer, answers per question: in every sweep and evaluation."""

COMMON: dict[str, Any] = {
    "rounds": 942,  # 3 epochs of 40,315 questions (DSR); of OTM the paper says nearly as many
    "lr": 1e-7,
    "max_new_tokens": LIMIT,
    "gradient_checkpointing": True,
    "micro_batch": 4,  # the code's; the text has 32 and no accumulation, which its sum does not notice
    "save_every": 50,
}

_MATH, _DEEPSEEK, _LLAMA = "qwen2.5-math-7b", "deepseek-math-7b", "llama-3.1-8b"
_FIVE = (_MATH, "qwen2.5-7b", "qwen2.5-7b-instruct", _DEEPSEEK, _LLAMA)
# arm, data: the models it was run on. 22 training runs, as published.
RUNS: dict[tuple[str, str], tuple[str, ...]] = {
    ("sept", "dsr"): _FIVE,
    ("sept", "otm"): (_MATH, _DEEPSEEK, _LLAMA),
    ("grpo", "dsr"): _FIVE,
    ("grpo", "otm"): (_MATH, _DEEPSEEK, _LLAMA),
    ("em-ft", "dsr"): (_MATH, _DEEPSEEK),
    ("sept-g4", "dsr"): (_MATH,),
    ("sept-g8", "dsr"): (_MATH,),
    ("offline", "dsr"): (_MATH,),
    ("coupled", "dsr"): (_MATH,),
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
    runs = [f"{arm}-{model}-{data}" for (arm, data), models in RUNS.items() for model in models]
    return runs + [f"sweep-{model}" for model in _FIVE]


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
    arm, model, data = next(
        (arm, model, data)
        for (arm, data), models in RUNS.items()
        for model in models
        if f"{arm}-{model}-{data}" == bare
    )
    *arms, both, code = ARMS[arm]
    authors = variant == "authors"
    fields = {**COMMON, "loss_normalisation": "microbatch-token" if authors else "sequence-sum", **both}
    fields |= code if authors else {}
    if arm not in ("grpo", "em-ft") and arms[authors] != "coupled":  # these draw at 1 on every model
        fields["tau_s"] = SHAPES[model].tau_s
    return Preset(name, model, arms[authors], DATA[data], tuple(sorted(fields.items())))
