"""From a question to the text that a model sees: prompt templates, by name.

`plain` is the question as it stands. `chat` is the tokenizer's own chat template with the question as one
user turn, `chat_reasoning` the same with the paper's reasoning prompt behind the question. The others are
the paper's Figure 4, as text: `qwen_base_and_math`, `deepseek_math_instruct`, and `qwen_instruct`, whose
system message the paper only names, so it is `chat_reasoning` on that model's tokenizer.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from . import published
from .config import SeptError

TEMPLATES = (
    "plain",
    "chat",
    "chat_reasoning",
    "qwen_base_and_math",
    "qwen_instruct",
    "deepseek_math_instruct",
)


@cache
def _published(name: str) -> Any:
    return published.settings()["chat_templates"][name]["value"]


def published_template(name: str) -> str:
    """A template of Figure 4 as text, with {question}, {reasoning_prompt} and <bos> to be filled in."""
    parts = _published(name)
    if parts.get("format") == "chatml":
        system, user = parts["system"], parts["user"].replace(" + space + ", " ")
        system = system if system.startswith("{") else "{" + system + "}"  # named, but not printed
        turns = (("system", system), ("user", user))
        text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        return text + "<|im_start|>assistant\n"
    lines = ["<bos>"] * parts["bos"] + parts["parts"]
    return "\n".join("" if line == "blank line" else line for line in lines)


def render(template: str, question: str, tokenizer: Any) -> str:
    """The text to be tokenized, special tokens included (so the tokenizer must not add its own again).

    SeptError for an unknown template, or `chat` with a tokenizer that has none.
    """
    reasoning = _published("reasoning_prompt")
    if template == "plain":
        return question
    if template not in ("chat", "chat_reasoning", "qwen_instruct"):
        text = published_template(checked(template)).replace("{reasoning_prompt}", reasoning)
        return text.replace("<bos>", tokenizer.bos_token or "").replace("{question}", question)
    if not tokenizer.chat_template:
        raise SeptError(f"template {template!r}: this tokenizer has no chat template; choose plain")
    content = question if template == "chat" else f"{question} {reasoning}"
    turns = [{"role": "user", "content": content}]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of whoever published the tokenizer
        raise SeptError(
            f"template {template!r}: the tokenizer's own cannot be filled in ({error})"
        ) from None


def checked(template: str) -> str:
    """`template` if there is one of that name, else SeptError."""
    if template not in TEMPLATES:
        raise SeptError(f"template {template!r}: unknown, choose one of {', '.join(TEMPLATES)}")
    return template
