"""Bases of the embedded world: recipes, pre-training from nothing, model cards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from .config import shipped_text
from .toy import AUTHOR_SHARES, BOS, EOS, PAD, ROTATION, VOCABULARY, build_tokenizer, draw, write_document

_POOL = 16


@dataclass(frozen=True)
class Stage:
    """One stretch of pre-training.

    documents: how many different documents it passes over again and again; 0 means always fresh ones.
    tokens: tokens trained on, in all passes. error_rates: per column, for careful, ordinary and
    sloppy authors. lr: peak AdamW learning rate (short warm-up, cosine to a tenth).
    """

    documents: int
    tokens: int
    error_rates: tuple[float, float, float]
    lr: float


@dataclass(frozen=True)
class Recipe:
    """How a base is made: model size, stages, seed. Everything that determines its weights."""

    stages: tuple[Stage, ...]
    start: str = ""
    """A shipped base to go on from; empty: an untrained model."""
    hidden: int = 96
    layers: int = 3
    mlp: int = 256
    heads: int = 4
    kv_heads: int = 1
    batch: int = 32
    seed: int = 0


_WELL = Stage(30_000, 5_000_000, (0.0, 0.1, 0.4), 2.5e-3)
RECIPES = {
    "F": Recipe((_WELL,)),
    "H": Recipe((_WELL, Stage(1_000, 1_500_000, (0.05, 0.2, 0.5), 1.5e-3))),
    "E": Recipe((Stage(0, 2_000_000, (0.05, 0.2, 0.5), 2.5e-3),)),
    "I": Recipe((Stage(100, 150_000, (0.0, 0.0, 0.0), 5e-4),), start="H", seed=3),
}
DESCRIPTIONS = {
    "F": "well trained: several passes over a mostly right corpus",
    "H": "F that went on to memorise a small noisy corpus: much of its error is prompt-specific",
    "E": "under-trained: fresh noisy documents, stopped early",
    "I": "H fine-tuned on a hundred right answers, as instruction tuning is done: flat over temperatures",
}


def documents(stage: Stage, seed: int) -> Iterator[tuple[str, str]]:
    """(prompt, response) pairs of a stage in training order, endless."""

    def write(index: int) -> tuple[str, str]:
        rng = np.random.default_rng([seed, 7, index])
        family = ROTATION[index % len(ROTATION)]
        rate = stage.error_rates[int(rng.choice(3, p=AUTHOR_SHARES))]
        return write_document(family, draw("corpus", family, rng), rate, rng)

    if stage.documents == 0:
        yield from map(write, count())
    corpus = [write(i) for i in range(stage.documents)]
    for epoch in count():
        for i in np.random.default_rng([seed, 11, epoch]).permutation(len(corpus)):
            yield corpus[i]


def build_model(recipe: Recipe) -> Any:
    """An untrained Qwen2 model of the recipe's size, initialised from the recipe's seed."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=VOCABULARY.index(PAD),
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=VOCABULARY.index(EOS),
        initializer_range=0.05,
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return Qwen2ForCausalLM(config).float()


def pretrain(
    recipe: Recipe, on_step: Callable[[int, int, float], None] | None = None
) -> tuple[Any, Any, list[dict[str, float]]]:
    """Train a base from nothing by its recipe: (model, tokenizer, loss log).

    Loss is on the response, end-of-sequence included: the digits of a question cannot be learned, and
    leaving them in costs 14 points of greedy accuracy at this size. on_step(done_tokens, all_tokens,
    loss) is called now and then.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from .policy import load_policy

    tokenizer = build_tokenizer()
    model = load_policy(recipe.start).model if recipe.start else build_model(recipe)
    index = {token: i for i, token in enumerate(VOCABULARY)}
    total, done_before = sum(stage.tokens for stage in recipe.stages), 0
    log: list[dict[str, float]] = []
    model.train()
    for number, stage in enumerate(recipe.stages):
        optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, betas=(0.9, 0.95), weight_decay=0.01)
        stream = documents(stage, recipe.seed + number)
        seen, step, running = 0, 0, 0.0
        pool: list[list[tuple[list[int], list[int]]]] = []
        order = np.random.default_rng([recipe.seed, 13, number])
        while seen < stage.tokens:
            if not pool:
                # Batches of like length waste no padding; a divisor shared by the whole pool keeps
                # every token's weight the same, so that short styles are not favoured.
                drawn = [next(stream) for _ in range(recipe.batch * _POOL)]
                divisor = sum(len(response) + 1 for _, response in drawn) / _POOL
                drawn.sort(key=lambda document: sum(map(len, document)))
                rows = [
                    ([index[BOS], *(index[c] for c in p)], [*(index[c] for c in r), index[EOS]])
                    for p, r in drawn
                ]
                pool = [rows[i : i + recipe.batch] for i in range(0, len(rows), recipe.batch)]
                pool = [pool[i] for i in order.permutation(len(pool))]
            rows = pool.pop()
            ids = pad_sequence([torch.tensor(p + r) for p, r in rows], batch_first=True)  # 0 is <pad>
            labels = pad_sequence([torch.tensor([0] * len(p) + r) for p, r in rows], batch_first=True)
            factor = min(1.0, (step + 1) / 50) * (0.55 + 0.45 * np.cos(np.pi * seen / stage.tokens))
            optimizer.param_groups[0]["lr"] = stage.lr * factor
            # Right padding needs no mask: attention is causal and padded labels are ignored.
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            total_loss = torch.nn.CrossEntropyLoss(ignore_index=0, reduction="sum")
            loss = total_loss(logits.flatten(0, 1), labels[:, 1:].flatten()) / divisor
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seen += sum(len(p) + len(r) for p, r in rows)
            step += 1
            running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
            if step % 50 == 0 or seen >= stage.tokens:
                log.append({"stage": number, "tokens": done_before + seen, "loss": running})
                if on_step is not None:
                    on_step(done_before + seen, total, running)
        done_before += seen
    return model.eval(), tokenizer, log


def write_card(folder: Path, base: str, log: list[dict[str, float]]) -> None:
    """Write README.md beside a rebuilt base: recipe, seed, loss, and its own temperature sweep on dev."""
    from .evaluation import evaluate, family_means, question_scores
    from .policy import load_policy
    from .problems import load_problems
    from .sampling import make_sampler

    policy = load_policy(str(folder))
    sampler, problems = make_sampler(policy), load_problems("toy:dev:32")
    rows = []
    for tau in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6):
        scores = question_scores(evaluate(policy, sampler, problems, tau, 32), greedy=tau == 0)
        cells = " | ".join(f"{100 * mean:.1f}" for mean in family_means(scores))
        rows.append(f"| {tau} | {cells} |")
    recipe, description = RECIPES[base], DESCRIPTIONS[base]
    ends = {int(row["stage"]): row["loss"] for row in log}
    losses = ", ".join(f"{loss:.3f} after stage {stage + 1}" for stage, loss in ends.items())
    shown: dict[str, Any] = {
        "base": base,
        "description": description[0].upper() + description[1:],
        "losses": losses,
    }
    shown |= {"size": sum(p.numel() for p in policy.model.parameters()), "characters": len(VOCABULARY)}
    shown |= {"start": f"base {recipe.start}" if recipe.start else "nothing", "recipe": recipe}
    shown |= {"questions": len(problems.items), "rows": "\n".join(rows)}
    text = shipped_text("base_card.md").format(**shown, settings=json.dumps(asdict(recipe), indent=1))
    Path(folder, "README.md").write_text(text)
