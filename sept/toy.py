"""The embedded world: a small universe of written arithmetic in which the paper's effects are real.

A document is a question, a derivation in one of three styles and an answer:

    7352+8149:>290=11;541=10;311=05;780=15#15501

`>` shows every column (two digits, what is carried in, then carry out and digit), `~` only the results,
`!` answers at once. Columns run from the lowest digit up. Subtraction uses the same columns with
borrows, so six problem families of graded difficulty (3 to 5 digits) share one machinery. Two more tasks
(reverse, sort) are learned in pre-training and never trained on afterwards.

Each document has a hidden author who slips at some rate per column and then goes on consistently: the
corpus contains well-formed derivations of wrong answers, which is what a model can memorise and later
unlearn. Everything here is a function of integers; nothing reads a clock or a global random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .problems import Problem

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
CHARACTERS = "0123456789+-:>~!=;#rs"
VOCABULARY = (PAD, BOS, EOS, *CHARACTERS)

FAMILIES = ("add3", "sub3", "add4", "sub4", "add5", "sub5")
"""Trained and reported families, the analogue of the paper's six benchmarks."""
OTHER_TASKS = ("rev", "sort")
"""Learned in pre-training, never trained on afterwards: the analogue of general abilities."""
SPLITS = {"test": (0, 10), "dev": (10, 20), "corpus": (20, 60), "train": (60, 100)}
"""Split -> range of hash percentiles. A question belongs to exactly one split, whoever draws it."""
STYLES, STYLE_SHARES = (">", "~", "!"), (0.5, 0.3, 0.2)
AUTHOR_SHARES = (0.4, 0.4, 0.2)
"""Share of documents by careful, ordinary and sloppy authors."""
_ROTATION = FAMILIES * 3 + OTHER_TASKS
"""Order of tasks in a corpus: three documents of each family for one of each other task."""
MAX_RESPONSE = 56
"""Longest well-formed response is 43 tokens (`>` with five columns); the rest is margin."""


def split_of(family: str, operands: tuple[int, ...]) -> str:
    """The split a question belongs to, by a stable hash of what it asks (a+b and b+a are one)."""
    key = sorted(operands) if family.startswith("add") else operands
    digest = hashlib.blake2b(f"{family}:{key}".encode(), digest_size=8).digest()
    percentile = int.from_bytes(digest, "big") % 100
    return next(name for name, (low, high) in SPLITS.items() if low <= percentile < high)


def _operands(family: str, rng: np.random.Generator) -> tuple[int, ...]:
    if family in OTHER_TASKS:
        return tuple(int(d) for d in rng.integers(0, 10, 4))
    size = int(family[3:])
    low, high = 10 ** (size - 1), 10**size
    a, b = int(rng.integers(low, high)), int(rng.integers(low, high))
    return (max(a, b), min(a, b)) if family.startswith("sub") else (a, b)


def _question(family: str, operands: tuple[int, ...]) -> tuple[str, str]:
    """Prompt text and true answer."""
    if family in OTHER_TASKS:
        digits = operands[::-1] if family == "rev" else tuple(sorted(operands))
        return family[0] + "".join(map(str, operands)) + ":", "".join(map(str, digits))
    a, b = operands
    symbol, answer = ("+", a + b) if family.startswith("add") else ("-", a - b)
    return f"{a}{symbol}{b}:", str(answer)


def draw(split: str, family: str, rng: np.random.Generator) -> tuple[int, ...]:
    """Operands of one question of `family` that belongs to `split`."""
    while True:
        operands = _operands(family, rng)
        if split_of(family, operands) == split:
            return operands


def make_problem(split: str, family: str, index: int, seed: int = 0) -> Problem:
    """The `index`-th problem of a family in a split; a pure function of its arguments."""
    rng = np.random.default_rng([seed, list(SPLITS).index(split), _family_number(family), index])
    prompt, answer = _question(family, draw(split, family, rng))
    return Problem(f"{split}/{family}/{seed}/{index}", family, prompt, answer)


def _family_number(family: str) -> int:
    return (*FAMILIES, *OTHER_TASKS).index(family)


@lru_cache(maxsize=32)
def fixed_problems(split: str, families: tuple[str, ...], per_family: int) -> tuple[Problem, ...]:
    """`per_family` different problems of each family: dev and test sets. Order is by family."""
    out = []
    for family in families:
        seen: dict[str, Problem] = {}
        index = 0
        while len(seen) < per_family:
            problem = make_problem(split, family, index)
            seen.setdefault(problem.prompt, problem)
            index += 1
        out += list(seen.values())
    return tuple(out)


def is_correct(response: str, finished: bool, answer: str) -> bool:
    """Exact match of what follows the last `#`; an answer without end-of-sequence is wrong."""
    return finished and "#" in response and response.rsplit("#", 1)[1] == answer


def is_well_formed(response: str, finished: bool) -> bool:
    """Ends by itself and has exactly one `#` followed by digits only."""
    head, mark, tail = response.partition("#")
    return finished and bool(mark) and tail.isdigit() and "<" not in head


# --- the corpus -----------------------------------------------------------------------------------


def _columns(family: str, operands: tuple[int, ...], error_rate: float, rng: np.random.Generator):
    """Columns (a, b, carry in, high digit, low digit) as an author with `error_rate` writes them."""
    adding, size = family.startswith("add"), len(str(operands[0]))
    top, bottom = ([int(d) for d in str(number)[::-1]] for number in operands)
    carry, out = 0, []
    for i in range(size):
        x, y, shift, replaced = top[i], bottom[i], 0, None
        if rng.random() < error_rate:
            slip = int(rng.integers(4))
            if slip == 0:
                carry = 0  # forgotten carry
            elif slip == 1:
                shift = 1 if rng.random() < 0.5 else -1  # off by one
            elif slip == 2:
                x = top[(i + 1) % size]  # wrong column
            else:
                replaced = int(rng.integers(10))
        total = (x + y + carry if adding else x - y - carry) + shift
        high, low = divmod(max(total, 0), 10) if adding else (int(total < 0), total % 10)
        low = low if replaced is None else replaced
        out.append((x, y, carry, high, low))
        carry = high
    return out


def write_document(
    family: str, operands: tuple[int, ...], error_rate: float, rng: np.random.Generator
) -> tuple[str, str]:
    """Prompt and response of one document, right or wrong, in a random style."""
    prompt, answer = _question(family, operands)
    if family in OTHER_TASKS:
        digits = [str(rng.integers(10)) if rng.random() < error_rate / 2 else digit for digit in answer]
        return prompt, "#" + "".join(digits)
    style = STYLES[int(rng.choice(3, p=STYLE_SHARES))]
    columns = _columns(family, operands, error_rate, rng)
    number = "".join(str(low) for *_, low in reversed(columns))
    if not family.startswith("sub"):  # what is left over in the highest column belongs to the answer
        number = str(columns[-1][3]) + number
    answer = str(int(number))
    if style == ">":
        work = ";".join(f"{x}{y}{c}={high}{low}" for x, y, c, high, low in columns)
    elif style == "~":
        work = ";".join(f"{high}{low}" for *_, high, low in columns)
    else:
        work = ""
    return prompt, f"{style}{work}#{answer}"


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
}
DESCRIPTIONS = {
    "F": "well trained: several passes over a mostly right corpus",
    "H": "F that went on to memorise a small noisy corpus: much of its error is prompt-specific",
    "E": "under-trained: fresh noisy documents, stopped early",
}


def documents(stage: Stage, seed: int) -> Iterator[tuple[str, str]]:
    """(prompt, response) pairs of a stage in training order, endless."""

    def write(index: int) -> tuple[str, str]:
        rng = np.random.default_rng([seed, 7, index])
        family = _ROTATION[index % len(_ROTATION)]
        rate = stage.error_rates[int(rng.choice(3, p=AUTHOR_SHARES))]
        return write_document(family, draw("corpus", family, rng), rate, rng)

    if stage.documents == 0:
        index = 0
        while True:
            yield write(index)
            index += 1
    corpus = [write(i) for i in range(stage.documents)]
    epoch = 0
    while True:
        for i in np.random.default_rng([seed, 11, epoch]).permutation(len(corpus)):
            yield corpus[i]
        epoch += 1


def build_tokenizer() -> Any:
    """The world's tokenizer (one token a character) in Hugging Face form."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(VOCABULARY)}, unk_token=PAD))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, VOCABULARY.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token=PAD,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
    )


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


def pretrain(recipe: Recipe, on_step: Any = None) -> tuple[Any, Any, list[dict[str, float]]]:
    """Train a base from nothing by its recipe: (model, tokenizer, loss log).

    Loss is on the response, end-of-sequence included: the digits of a question cannot be learned, and
    leaving them in costs 14 points of greedy accuracy at this size. on_step(done_tokens, all_tokens,
    loss) is called now and then.
    """
    import torch

    tokenizer = build_tokenizer()
    model = build_model(recipe)
    index = {token: i for i, token in enumerate(VOCABULARY)}
    total = sum(stage.tokens for stage in recipe.stages)
    log: list[dict[str, float]] = []
    done_before = 0
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
            width = max(len(p) + len(r) for p, r in rows)
            ids = torch.zeros(len(rows), width, dtype=torch.long)  # 0 is <pad>
            labels = torch.zeros_like(ids)
            for i, (p, r) in enumerate(rows):
                ids[i, : len(p) + len(r)] = torch.tensor(p + r)
                labels[i, len(p) : len(p) + len(r)] = torch.tensor(r)
            progress = seen / stage.tokens
            factor = min(1.0, (step + 1) / 50) * (0.55 + 0.45 * np.cos(np.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = stage.lr * factor
            # Right padding needs no mask: attention is causal and padded labels are ignored.
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=0, reduction="sum"
            )
            loss = loss / divisor
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


def write_card(folder: Any, base: str, log: list[dict[str, float]], questions: int = 32) -> None:
    """Write README.md beside a rebuilt base: recipe, seed, loss, and its own temperature sweep on dev."""
    import dataclasses
    import json
    from pathlib import Path

    from .evaluation import evaluate, family_means, question_scores
    from .policy import load_policy
    from .problems import load_problems
    from .sampling import make_sampler

    policy = load_policy(str(folder))
    sampler, problems = make_sampler(policy), load_problems(f"toy:dev:{questions}")
    rows = []
    for tau in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6):
        scores = question_scores(evaluate(policy, sampler, problems, tau, 32), greedy=tau == 0)
        means = 100 * family_means(scores)
        cells = " | ".join(f"{means[m]:.1f}" for m in ("pass@1", "pass@8", "pass@32", "AVG"))
        rows.append(f"| {tau} | {cells} |")
    size = sum(p.numel() for p in policy.model.parameters())
    recipe = json.dumps(dataclasses.asdict(RECIPES[base]), indent=1)
    ends = {int(row["stage"]): row["loss"] for row in log}
    losses = ", ".join(f"{loss:.3f} after stage {stage + 1}" for stage, loss in ends.items())
    text = f"""---
license: apache-2.0
library_name: transformers
---
# Base {base} of sept's embedded world

{DESCRIPTIONS[base][0].upper() + DESCRIPTIONS[base][1:]}.
A Qwen2 model of {size:,} parameters over {len(VOCABULARY)} character tokens that writes out additions
and subtractions of 3 to 5 digits, reverses and sorts digits.
It was made from nothing by `sept pretrain --base {base}` on generated documents; it knows nothing else.

Training loss (nats per response token, running mean): {losses}. Seed {RECIPES[base].seed}.

Temperature sweep: {len(problems.items)} dev questions, six families, 32 samples each; percent, unweighted
mean over families (one greedy answer at 0, so all pass@k are equal there).

| T | pass@1 | pass@8 | pass@32 | AVG |
|---|---|---|---|---|
{chr(10).join(rows)}

Recipe (`sept.toy.RECIPES["{base}"]`):

```json
{recipe}
```
"""
    Path(folder, "README.md").write_text(text)
