"""Prompt templates: the text, the tokens, and that a checkpoint carries the one it was trained with."""

import json
import sys

import pytest
from conftest import random_policy

from sept import cli
from sept.config import SeptError, notice, preset
from sept.loop import train
from sept.policy import fingerprint, load_policy, save_policy
from sept.problems import Problem, ProblemSet
from sept.prompts import TEMPLATES, render

CHAT = (
    "{{ bos_token }}{% for m in messages %} w10 {{ m['role'] }} {{ m['content'] }} <eos>{% endfor %}"
    "{% if add_generation_prompt %} w11{% endif %}"
)
REASON = r"Please reason step by step, and put your final answer within \boxed{}."
SMALL = {"rounds": 2, "questions": 4, "mini_batch": 2, "warmup": 0, "max_new_tokens": 12}


@pytest.fixture(autouse=True)
def _say_again():
    notice.cache_clear()


@pytest.fixture()
def chatty(tmp_path):
    """A local checkpoint whose tokenizer has a chat template."""
    policy = random_policy("llama", seed=2, tied=False)
    policy.tokenizer.chat_template = CHAT
    save_policy(policy, tmp_path / "chatty")
    return tmp_path / "chatty"


def test_the_text_of_each_template(chatty):
    tokenizer = load_policy(str(chatty)).tokenizer
    question = "Is {question} 1+1=<bos>?"
    assert {t: render(t, question, tokenizer) for t in TEMPLATES} == {
        "plain": question,
        "chat": f"<bos> w10 user {question} <eos> w11",
        "chat_reasoning": f"<bos> w10 user {question} {REASON} <eos> w11",
        "qwen_instruct": f"<bos> w10 user {question} {REASON} <eos> w11",
        "qwen_base_and_math": f"<|im_start|>system\n{REASON}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>"
        "\n<|im_start|>assistant\n",
        "deepseek_math_instruct": f"<bos>\n\n{REASON}\n\nUser: {question}\n\nAssistant:",
    }


def test_tokens_hold_one_beginning_whatever_the_template(chatty):
    for template in TEMPLATES:
        policy = load_policy(f"{chatty}:{template}")
        ids = policy.encode("w20 w21")
        assert ids.count(policy.tokenizer.bos_token_id) == (template != "qwen_base_and_math"), template
        assert policy.shown("w20 w21") == policy.tokenizer.decode(ids)
    chat = load_policy(str(chatty))
    turns = [{"role": "user", "content": "w20 w21"}]
    direct = chat.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert chat.template == "chat" and chat.encode("w20 w21") == direct


def test_which_template_a_model_gets(chatty, tmp_path, caplog):
    assert (
        load_policy("H").template == "plain"
        and "sept_template" not in load_policy("H").model.config.to_dict()
    )
    found = {t: fingerprint(load_policy(f"{chatty}:{t}")) for t in TEMPLATES}
    assert len(set(found.values())) == len(TEMPLATES), (
        "runs and scores of different prompts have different keys"
    )
    assert fingerprint(load_policy(str(chatty))) == found["chat"]
    for template in ("plain", "qwen_base_and_math"):
        save_policy(load_policy(f"{chatty}:{template}"), tmp_path / template)
        assert load_policy(str(tmp_path / template)).template == template
    assert not caplog.records
    assert load_policy(f"{tmp_path / 'plain'}:chat").template == "chat"
    assert [r.message.count("\n") for r in caplog.records] == [
        0
    ] and "trained with template plain" in caplog.text
    with pytest.raises(SeptError, match="'chatml': unknown, choose one of plain, chat"):
        load_policy("H:chatml")
    with pytest.raises(SeptError, match="no chat template"):
        load_policy("H:chat").encode("1+1:")
    edited = load_policy(str(chatty))
    edited.tokenizer.chat_template = CHAT.replace("w11", "w12")
    assert fingerprint(edited) != found["chat"], "an edited template is another model"


def test_a_template_that_cannot_be_filled_in_is_one_line(chatty):
    policy = load_policy(str(chatty))
    policy.tokenizer.chat_template = "{{ raise_exception('system turn wanted') }}"
    with pytest.raises(SeptError, match="system turn wanted"):
        policy.encode("w1")


def test_training_passes_its_template_on(chatty, tmp_path, monkeypatch, capsys, caplog):
    rows = [{"prompt": f"w{i} w{i + 1}", "answer": "w9"} for i in range(8)] + [
        {"prompt": "w1 " * 90, "answer": "w9", "id": "long"}
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def sept(*arguments):
        monkeypatch.setattr(sys, "argv", ["sept", *map(str, arguments)])
        cli.main()
        return capsys.readouterr().out

    sets = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    command = [
        "train",
        "--model",
        chatty,
        "--problems",
        tmp_path / "p.jsonl",
        "--out",
        tmp_path / "run",
        *sets,
    ]
    out = sept(*command, "--json", tmp_path / "t.json")
    shown = "<bos> w10 <pad> w0 w1 <eos> w11"
    assert repr(shown) in out and "template chat" in out
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (written["template"], written["prompt"], written["dropped"]) == ("chat", shown, 1)
    assert "1 of 9 prompts have more than 84 tokens and were dropped: long" in caplog.text
    final = tmp_path / "run" / "final"
    assert json.loads((tmp_path / "t.json").read_text())["prompt"] == shown

    what = ["--model", final, "--problems", tmp_path / "p.jsonl", "--n", 2, "--max-new-tokens", 12]
    sept("eval", *what, "--json", tmp_path / "e.json")
    scores = json.loads((tmp_path / "e.json").read_text())
    assert (scores["template"], scores["prompt"], scores["grader"]) == ("chat", shown, "file")
    assert (scores["questions"], scores["dropped"]) == (8, 1)
    assert "trained with" not in caplog.text
    out = sept("sweep", *what, "--temperatures", "0,1", "--template", "plain", "--grader", "math")
    assert "trained with template chat, not with plain" in caplog.text and "'<bos> w0 w1'" in out


def test_a_run_on_other_prompts_is_another_run(chatty, tmp_path):
    problems = ProblemSet("p", tuple(Problem(str(i), "f", f"w{i}", "w9") for i in range(4)))
    config = preset("sept", **SMALL)
    train(config, load_policy(str(chatty)), problems, tmp_path / "run")
    with pytest.raises(SeptError, match="another run"):
        train(config, load_policy(f"{chatty}:plain"), problems, tmp_path / "run", resume=True)
