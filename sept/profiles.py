"""Profiles: the same notebooks at five scales, from a laptop's minutes to the paper's cluster."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .config import PRESETS, RESULTS_VERSION, SeptError, digest, shipped
from .experiments import Run, Score


@dataclass(frozen=True)
class Profile:
    """One scale of the same notebooks. Times are for 2 CPU cores."""

    seeds: tuple[int, ...]
    """Training seeds reported (never used to choose anything)."""
    temperatures: tuple[float, ...]
    """Decoding temperatures of every sweep; 0 is greedy."""
    test: str = "toy:test:100"
    """Questions that are reported on."""
    dev: str = "toy:dev:32"
    """Questions that anything is chosen on."""
    train: str = "toy:train"
    """Questions that are trained on."""
    other_train: str = "toy:train:add3+add4+add5"
    """Another set of training questions, of other composition (the paper's OTM beside DSR)."""
    other_tasks: str = "toy:test:rev+sort:100"
    """Questions of tasks that are never trained on."""
    curve: str = "toy:test:24"
    """Questions that are scored again and again while a run trains."""
    model: str = "H"
    """Shipped base, folder or hub id."""
    others: tuple[str, ...] = ("I", "F", "E")
    """Models of other character: instruction-tuned, nothing to gain, failing."""
    others_temperatures: tuple[float, ...] = ()
    """Decoding temperatures of their sweeps; empty: the same."""
    rounds_many: int | None = None
    """Rounds of the runs with more than one answer per question; None: all."""
    n: int = 32
    """Samples per question."""
    max_new_tokens: int = 56
    """Response limit in tokens, in training and in evaluation."""
    train_overrides: dict[str, Any] = field(default_factory=dict)
    """Config fields that differ from the arm's preset at this scale."""
    tuning_seeds: tuple[int, ...] = (900,)
    """Training seeds for choosing learning rates, never reported."""
    rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4)
    """The grid of learning rates, the same for every arm."""
    notebooks: str = ""
    """Comma-separated beginnings of the notebooks that belong to it; empty: all."""
    engine: str = "auto"
    """What draws for every run and score; SEPT_ENGINE in the environment names another."""

    def key(self) -> str:
        """Hash of everything that this scale and the arms' presets determine."""
        return digest([RESULTS_VERSION, asdict(self), PRESETS])[:12]

    def label(self, model: str = "") -> str:
        """What figures call a model, by default the profile's: `embedded base H, 0.3 M parameters`."""
        from .policy import BASES, load_policy

        name = model or self.model
        size = sum(p.numel() for p in load_policy(name).model.parameters())
        shown = f"{size / 1e9:.1f} B" if size > 1e9 else f"{size / 1e6:.1f} M"
        return f"{'embedded base ' * (BASES / name).is_dir()}{name}, {shown} parameters"

    def runs(
        self,
        arm: str,
        count: int | None = None,
        seeds: tuple[int, ...] = (),
        model: str = "",
        train: str = "",
        **overrides: Any,
    ) -> list[Run]:
        """An arm's runs, one per seed: the reported seeds, or the first `count` of them, or `seeds`."""
        overrides = {**self.train_overrides, **overrides}
        if arm == "grpo" and "questions" in overrides:  # as many answers a round, in groups of G
            overrides |= {"questions": overrides["questions"] // 8, "mini_batch": 1}
        pairs = tuple(sorted({"max_new_tokens": self.max_new_tokens, **overrides}.items()))
        where = model or self.model, train or self.train
        chosen = (seeds or self.seeds)[:count]
        return [Run(where[0], arm, seed, where[1], pairs, self.engine) for seed in chosen]

    def points(self, run: Run, parts: int = 10) -> list[Score]:
        """Scores of a run after each of `parts` equal stretches of it, on the questions of curves."""
        rounds = run.config().rounds
        at = sorted({max(1, rounds * i // parts) for i in range(1, parts + 1)})
        return [replace(self.score(run, 1.0, self.curve), at=r) for r in at]

    def sweep(self, model: str = "", problems: str | None = None) -> dict[float, Score]:
        """Scores of an untrained model at every decoding temperature."""
        other = self.others_temperatures if model in self.others else ()
        name = model or self.model
        return {tau: self.score(name, tau, problems) for tau in other or self.temperatures}

    def score(self, model: str | Run, tau: float = 1.0, problems: str | None = None) -> Score:
        """A score at this scale, on the test questions unless told otherwise."""
        limit = self.max_new_tokens
        return Score(model, problems or self.test, tau, self.n, max_new_tokens=limit, engine=self.engine)


PROFILES = {
    name: Profile(**fields | {k: tuple(v) for k, v in fields.items() if isinstance(v, list)})
    for name, fields in shipped("profiles.toml").items()
}


def profile(name: str) -> Profile:
    """A profile by name. SeptError on an unknown one."""
    if name not in PROFILES:
        raise SeptError(f"profile {name!r}: unknown, choose one of {', '.join(PROFILES)}")
    found = PROFILES[name]
    return replace(found, engine=os.environ.get("SEPT_ENGINE", found.engine))
