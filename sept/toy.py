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
from functools import lru_cache
from typing import Any

import numpy as np

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
Question = tuple[str, str, str, str]
"""id, family, prompt, answer."""
ROTATION = FAMILIES * 3 + OTHER_TASKS
"""Order of tasks in a corpus: three documents of each family for one of each other task."""


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


def make_problem(split: str, family: str, index: int, seed: int = 0) -> Question:
    """The `index`-th question of a family in a split; a pure function of its arguments."""
    numbers = list(SPLITS).index(split), (*FAMILIES, *OTHER_TASKS).index(family)
    rng = np.random.default_rng([seed, *numbers, index])
    prompt, answer = _question(family, draw(split, family, rng))
    return f"{split}/{family}/{seed}/{index}", family, prompt, answer


@lru_cache(maxsize=32)
def fixed_problems(split: str, families: tuple[str, ...], per_family: int) -> tuple[Question, ...]:
    """`per_family` different questions of each family: dev and test sets. Order is by family."""
    out = []
    for family in families:
        seen: dict[str, Question] = {}
        index = 0
        while len(seen) < per_family:
            problem = make_problem(split, family, index)
            seen.setdefault(problem[2], problem)
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


def kind(token: str) -> str:
    """What a response token decides: `style`, `digit`, `format` or `end`."""
    if token in STYLES:
        return "style"
    return "digit" if token.isdigit() else "end" if token == EOS else "format"


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


def choice_questions(families: tuple[str, ...], per_family: int, **_: Any) -> dict[str, Any]:
    """Test questions, families in turn, each with four complete responses and the right one's place.

    Sums are worked out column by column; the wrong responses are what the sloppiest of authors write. In the
    form that lm-evaluation-harness wants of a data set (`data/general`).
    """
    from datasets import Dataset

    documents = []
    for index in range(per_family):
        for family in families:
            rng = np.random.default_rng([index, *family.encode()])
            operands = draw("test", family, rng)
            responses: dict[str, str] = {}  # by their answer; the careful author's comes first
            while len(responses) < 4:
                prompt, response = write_document(family, operands, 0.3 if responses else 0.0, rng)
                if family in OTHER_TASKS or response.startswith(">"):
                    responses.setdefault(response.rsplit("#", 1)[1], response + EOS)
            order = rng.permutation(4)
            document: dict[str, Any] = {"prompt": prompt, "answer": next(iter(responses))}
            document["choices"] = [[*responses.values()][i] for i in order]
            documents.append({**document, "label": int(np.flatnonzero(order == 0)[0])})
    return {"test": Dataset.from_list(documents)}


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
    special = {"unk_token": PAD, "pad_token": PAD, "bos_token": BOS, "eos_token": EOS}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **special)
