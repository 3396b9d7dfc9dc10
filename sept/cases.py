"""One question under two models: log-probs of a wrong and a right answer, each cut in two (Figure 2).

A and B are prefix and suffix of an answer that the base drew and got wrong, A^ and B^ those of one that
the trained model drew and got right. Scores are sums over tokens at temperature 1, in nats.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from .config import SeptError
from .grading import grade, last_boxed
from .objectives import token_log_probs
from .policy import Policy, make_batch, response_logits
from .problems import Problem, ProblemSet, check_lengths
from .sampling import make_sampler

MODELS = ("base", "trained")
BRANCHES = ("A", "A^", "B|A", "B^|A", "B|A^", "B^|A^")
STRICT = "base fails, trained solves; largest gain in right answers, the first of equals"
WEAK = "no question that base fails and trained solves: largest gain in right answers, the first of equals"
Ids = Sequence[int]
Parts = tuple[Ids, Ids, Ids, Ids]
"""A, B, A^, B^."""


@torch.no_grad()
def log_probs(
    policy: Policy, contexts: Sequence[Ids], texts: Sequence[Ids], tau: float = 1.0
) -> np.ndarray:
    """[N] float64, nats: log p of texts[i] behind contexts[i] (prompt, or prompt and prefix), token ids.

    Log-softmax in fp32, sums in fp64. An empty text has log p = 0. SeptError on an empty or too long context.
    """
    for context, text in zip(contexts, texts, strict=True):
        if not context or len(context) + len(text) > policy.context:
            what = "is empty" if not context else f"and its text exceed {policy.context} tokens"
            raise SeptError(
                f"log-probs: a context of {len(context)} tokens {what}; shorten or drop the problem"
            )
    out, device = np.zeros(len(texts)), next(policy.model.parameters()).device
    by_length = np.argsort([len(c) + len(t) for c, t in zip(contexts, texts, strict=True)])
    order = [i for i in by_length if texts[i]]
    for k in range(0, len(order), 64):  # neighbours of a length: little padding
        rows = order[k : k + 64]
        lengths = torch.tensor([len(texts[i]) for i in rows])
        tokens = pad_sequence([torch.tensor(texts[i]) for i in rows], batch_first=True)
        batch = make_batch([contexts[i] for i in rows], tokens, lengths, policy.pad_id, device=device)
        scores = token_log_probs(response_logits(policy.model, batch, policy.vocab), batch.tokens, tau)
        out[rows] = (scores.double() * batch.mask).sum(1).cpu().numpy()
    return out


@dataclass(frozen=True)
class Answer:
    """A drawn answer."""

    ids: tuple[int, ...]
    """Its tokens up to and including end-of-sequence."""
    given: str
    """The final answer that it gives, for counting which one is the most frequent."""
    right: bool
    log_prob: float
    """Under the model that drew it, nats."""


Drawn = Mapping[str, list[list[Answer]]]
"""Answers by model name (MODELS), problem and draw."""


def draw_answers(
    policy: Policy,
    problems: ProblemSet,
    n: int = 16,
    max_new_tokens: int = 56,
    seed: int = 0,
    engine: str = "auto",
) -> list[list[Answer]]:
    """n answers to every problem at temperature 1, in the order of the problems and of the draws."""
    prompts, ids = [policy.encode(p.prompt) for p in problems.items], [p.id for p in problems.items]
    check_lengths(prompts, ids, policy.context - max_new_tokens)
    drawn = make_sampler(policy, engine, training=False).sample(prompts, ids, n, 1.0, max_new_tokens, seed)
    sums, finished = drawn.log_probs.double().sum(1).tolist(), drawn.finished.tolist()
    out: list[list[Answer]] = [[] for _ in ids]
    for row, length in enumerate(drawn.lengths.tolist()):
        tokens = tuple(drawn.tokens[row, :length].tolist())
        text = policy.decode(tokens)
        given = last_boxed(text) or re.split(r"[#\n]", text.strip())[-1].strip()
        right = grade(text, finished[row], problems.items[row // n], problems.world)
        out[row // n].append(Answer(tokens, given, right, sums[row]))
    return out


def split(policy: Policy, ids: Ids, cut: str) -> tuple[Ids, Ids]:
    """Prefix and suffix; the suffix begins with the token that holds the beginning of the first `cut`.

    A text that lacks `cut` or begins with it is split in the middle, the odd token going to the suffix.
    """
    place = policy.decode(ids).find(cut)
    k = bisect_right(range(len(ids)), place, key=lambda k: len(policy.decode(ids[:k]))) - 1
    k = k if place > 0 and k > 0 else len(ids) // 2
    return ids[:k], ids[k:]


def _pair(policy: Policy, wrong: list[Answer], right: list[Answer], cut: str) -> Parts | None:
    """A, B, A^, B^ of the likeliest wrong answer, then the likeliest right one, whose prefixes differ."""
    wrong, right = (
        sorted((a for a in answers if a.right == good and len(a.ids) > 1), key=lambda a: -a.log_prob)
        for answers, good in ((wrong, False), (right, True))
    )
    for one, other in product(wrong, right):
        parts = (*split(policy, one.ids, cut), *split(policy, other.ids, cut))
        if parts[0] != parts[2]:
            return parts
    return None


def _solves(answers: list[Answer]) -> bool:
    """Whether the most frequent answer is right; the first drawn of equals."""
    return Counter((a.given, a.right) for a in answers).most_common(1)[0][0][1]


def find_case(
    policies: Mapping[str, Policy], problems: ProblemSet, drawn: Drawn, cut: str = "#"
) -> pd.DataFrame:
    """One row per model and branch of the case chosen by the rule in column `rule`.

    policies and drawn (`draw_answers`) by name. Columns: model, branch, log_prob (nats), tokens, text;
    and, the same in every row, id, prompt, answer, base_right, trained_right, n, cut, rule. SeptError if no
    question has a wrong answer of the base and a right one of the trained model.
    """
    best: tuple[tuple[bool, int], Problem, list[int], Parts] | None = None
    for problem, before, after in zip(problems.items, drawn["base"], drawn["trained"], strict=True):
        counts = [sum(a.right for a in answers) for answers in (before, after)]
        rank = (not _solves(before) and _solves(after), counts[1] - counts[0])
        if (best is None or rank > best[0]) and (parts := _pair(policies["base"], before, after, cut)):
            best = rank, problem, counts, parts
    if best is None:
        raise SeptError("case: base never wrong or trained model never right; draw more answers")
    (strict, _), problem, counts, (a, b, a2, b2) = best
    prompt = tuple(policies["base"].encode(problem.prompt))
    contexts = [prompt, prompt, *2 * [(*prompt, *a)], *2 * [(*prompt, *a2)]]
    texts = [a, a2, b, b2, b, b2]
    shared = {"branch": BRANCHES, "tokens": [len(text) for text in texts]}
    # End-of-sequence is shown: it is part of the suffix.
    shared |= {"text": [policies["base"].tokenizer.decode(list(text)) for text in texts]}
    scores = {m: log_probs(policies[m], contexts, texts) for m in MODELS}
    table = pd.concat([pd.DataFrame({"model": m, **shared, "log_prob": scores[m]}) for m in MODELS])
    return table.reset_index(drop=True).assign(
        **{"id": problem.id, "prompt": problem.prompt, "answer": problem.answer, "cut": cut},
        **{"base_right": counts[0], "trained_right": counts[1], "n": len(drawn["base"][0])},
        rule=STRICT if strict else WEAK,
    )


def margins(table: pd.DataFrame) -> pd.DataFrame:
    """Right minus wrong log-probs of a `find_case` table, nats, for the prefix and each pair of suffixes.

    Columns: place, base, trained, preferred (the base's is above 0), up (the trained model's is larger).
    """
    score = table.pivot(index="branch", columns="model", values="log_prob").loc[[*BRANCHES]]
    gaps = {m: score[m].to_numpy()[1::2] - score[m].to_numpy()[::2] for m in MODELS}
    out = pd.DataFrame({"place": ["prefix", "suffix after A", "suffix after A^"], **gaps})
    return out.assign(preferred=out["base"] > 0, up=out["trained"] > out["base"])


def changes(
    policies: Mapping[str, Policy], problems: ProblemSet, drawn: Drawn, tau_s: float, cut: str = "#"
) -> pd.DataFrame:
    """Trained minus base log p of prefixes (nats) over all questions: texts, quantity, questions, mean, lo, hi.

    Of each question the likeliest wrong and right answer: drawn as in the case, where each is picked for a
    high score under the model that drew it, which favours the finding, or both by one model. lo, hi: 95%
    bootstrap over questions. margin: log p(A^) - log p(A), also split by which the base prefers at tau_s.
    """
    rows, rng, base = [], np.random.default_rng(0), policies["base"]
    sources = (("as in the case", *MODELS), *((f"both from {m}", m, m) for m in MODELS))
    for texts, one, other in sources:
        pairs = [_pair(base, w, r, cut) for w, r in zip(drawn[one], drawn[other], strict=True)]
        prompts = [base.encode(p.prompt) for p, pair in zip(problems.items, pairs, strict=True) if pair]
        sides = [[pair[k] for pair in pairs if pair] for k in (0, 2)]
        wrong, right = (
            log_probs(policies["trained"], prompts, side) - log_probs(base, prompts, side) for side in sides
        )
        before = [log_probs(base, prompts, side, tau_s) for side in sides]
        prefers, every = before[1] > before[0], np.full(len(prompts), True)
        for quantity, values, which in (
            ("log p(A)", wrong, every),
            ("log p(A^)", right, every),
            ("share with log p(A^) up", right > 0, every),
            ("margin", right - wrong, every),
            ("margin where base prefers A^", right - wrong, prefers),
            ("margin where base prefers A", right - wrong, ~prefers),
        ):
            if n := int(which.sum()):
                means = values[which][rng.integers(0, n, (2000, n))].mean(1)
                rows.append((texts, quantity, n, values[which].mean(), *np.quantile(means, (0.025, 0.975))))
    return pd.DataFrame(rows, columns=["texts", "quantity", "questions", "mean", "lo", "hi"])
