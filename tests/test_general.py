"""General tasks: lm-evaluation-harness's numbers against our own, pairing, and mistakes in one line."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_policy
from test_cli import complaint, run  # noqa: F401

from sept import general, published, toy
from sept.config import SeptError
from sept.evaluation import difference, summarise
from sept.policy import load_policy, make_batch, response_logits, save_policy
from sept.sampling_static import StaticEngine

lm_eval = pytest.importorskip("lm_eval")

QUESTIONS = 24
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
doc_to_text: "{{prompt}}"
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ANSWER = """
task: answer
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
doc_to_text: "{{prompt}}"
output_type: generate_until
doc_to_target: "{{greedy}}"
generation_kwargs: {until: [], do_sample: false, max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""


def log_likelihood(policy, context, text):
    """Own: sum of the log-probs of text's tokens behind the context's, over the tokens that exist."""
    ids, more = (policy.tokenizer(t)["input_ids"] for t in (context, text))
    more = [i for i in more if i != policy.tokenizer.bos_token_id]
    batch = make_batch([ids], torch.tensor([more]), torch.tensor([len(more)]))
    with torch.no_grad():
        logits = response_logits(policy.model, batch, policy.vocab)
    return float(logits.double().log_softmax(-1)[0].gather(1, batch.tokens[0][:, None]).sum())


def greedy(policy, prompt, limit):
    engine = StaticEngine()
    engine.refresh(policy)
    ids = policy.tokenizer(prompt)["input_ids"]
    drawn = engine.sample([ids], ["q"], 1, 0.0, limit, seed=0)
    return policy.decode(drawn.tokens[0, : int(drawn.lengths[0])].tolist())


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two models of one padded vocabulary, their folder, and a folder of two tasks about the first."""
    root = tmp_path_factory.mktemp("pair")
    base, other = (random_policy("llama", rows=340, seed=seed) for seed in (0, 0))
    with torch.no_grad():
        for weight in other.model.model.layers.parameters():
            weight.add_(0.6 * weight.std() * torch.randn(weight.shape, generator=torch.manual_seed(1)))
    for name, policy in (("base", base), ("trained", other)):
        policy.model.generation_config.eos_token_id = [2]
        save_policy(policy, root / name)
    base = load_policy(str(root / "base"))
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(QUESTIONS):
        words = [f"w{i}" for i in rng.integers(0, 300, 14)]
        choices = [" ".join(words[i : i + 2 + i % 3]) for i in (4, 6, 8, 10)]
        found = greedy(base, " ".join(words[:4]), 12)
        rows.append({"prompt": " ".join(words[:4]), "choices": choices, "greedy": found})
        rows[-1]["label"] = int(rng.integers(4))
    (root / "tasks").mkdir()
    (root / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in (("choice", CHOICE), ("answer", ANSWER)):
        (root / "tasks" / f"{name}.yaml").write_text(text.replace("DATA", str(root / "data.jsonl")))
    return root, rows


def test_a_real_run_gives_our_own_numbers(run, pair, monkeypatch):  # noqa: F811
    root, rows = pair
    code, out, err = run(
        *("general", "--model", root / "base", "--trained", root / "trained", "--tasks", root / "tasks"),
        *("--batch", 5, "--table", root / "t.csv", "--json", root / "t.json"),
    )
    assert code == 0, err
    table = pd.read_csv(root / "t.csv").set_index(["task", "metric"])
    policies = [load_policy(str(root / name)) for name in ("base", "trained")]
    right = []
    for policy in policies:
        values = [[log_likelihood(policy, r["prompt"], c) for c in r["choices"]] for r in rows]
        right.append([float(np.argmax(v) == r["label"]) for v, r in zip(values, rows, strict=True)])
        answered = [greedy(policy, r["prompt"], 12) == r["greedy"] for r in rows]
        column = ("base", "trained")[len(right) - 1]
        assert table.loc[("choice", "acc"), column] == pytest.approx(100 * np.mean(right[-1]))
        assert table.loc[("answer", "exact_match"), column] == pytest.approx(100 * np.mean(answered))
    assert (
        table.loc[("answer", "exact_match"), "base"]
        == 100
        > table.loc[("answer", "exact_match"), "trained"]
    )
    own = [pd.DataFrame({"id": range(QUESTIONS), "family": "", "pass@1": r}) for r in right]
    expected = summarise([difference(own[1], own[0])]).loc["pass@1"]
    row = table.loc[("choice", "acc")]
    found = [row[c] for c in ("delta", "delta_lo", "delta_hi")]
    assert found == pytest.approx([expected[c] for c in ("value", "lo", "hi")])
    assert row["paired"] and row["questions"] == QUESTIONS and right[0] != right[1]
    written = json.loads((root / "t.json").read_text())
    assert written["cut"] == [0, 0] and "lm-eval" in written["provenance"]["versions"]
    assert "choice" in out and "acc_norm" in out and len(out.splitlines()) == 5


@pytest.mark.parametrize("name", ["base", "H"])
def test_log_likelihoods_are_the_policys(pair, name):
    """Choice by choice, padded vocabulary and end-of-sequence included."""
    root, rows = pair
    tasks = [str(root / "tasks" / "choice.yaml")] if name == "base" else ["toy"]
    model = str(root / "base") if name == "base" else "H"
    results = general.ask(f"{model}:plain", tasks, 6, 7)
    policy = load_policy(model)
    samples = results["samples"]["choice" if name == "base" else "toy_choose_derivation"]
    assert len(samples) == 6
    for sample in samples:
        for (context, text), ((value, _),) in zip(sample["arguments"], sample["resps"], strict=True):
            text = text if name == "H" else text.strip()
            assert value == pytest.approx(log_likelihood(policy, context, text), abs=1e-4)
    if name == "H":
        for sample in results["samples"]["toy_write_rev_sort"]:
            assert sample["resps"] == [[greedy(policy, sample["doc"]["prompt"], 56)]]


def test_it_computes_in_the_policys_precision(pair):
    """bfloat16 products of float32 weights, as on a GPU; probabilities in float32 all the same."""
    root, rows = pair
    policy = load_policy(str(root / "base"))
    exact = [log_likelihood(policy, r["prompt"], r["choices"][0]) for r in rows]
    policy.compute = torch.bfloat16
    model = general.harness_model(policy, 1)
    tasks = [
        (None, *(policy.tokenizer(t)["input_ids"] for t in (r["prompt"], r["choices"][0]))) for r in rows
    ]
    found = [value for value, _ in model._loglikelihood_tokens(tasks, disable_tqdm=True)]
    with policy.autocast():
        lower = [log_likelihood(policy, r["prompt"], r["choices"][0]) for r in rows]
    assert found == pytest.approx(lower, abs=1e-3)
    assert np.abs(np.subtract(found, exact)).max() > 0.01


def test_padding_is_never_written(pair, tmp_path):
    """A padded row that the model likes best is neither counted nor generated."""
    root, _ = pair
    policy = random_policy("llama", rows=340, tied=False)
    with torch.no_grad():
        head = policy.model.get_output_embeddings().weight
        head[320:] = 40 * head[3:23]
    policy.model.generation_config.eos_token_id = [2]
    save_policy(policy, tmp_path / "m")
    policy = load_policy(str(tmp_path / "m"))
    results = general.ask(f"{tmp_path / 'm'}:plain", [str(root / "tasks")], 8, 8)
    for sample in results["samples"]["answer"]:
        assert sample["resps"] == [[greedy(policy, sample["doc"]["prompt"], 12)]]
    for sample in results["samples"]["choice"]:
        (context, text), ((value, _),) = sample["arguments"][0], sample["resps"][0]
        assert value == pytest.approx(log_likelihood(policy, context, text.strip()), abs=1e-4)


LEADERBOARD = {
    "leaderboard_bbh_navigate": ("bbh_mc/navigate.yaml", {"input": "w1 w2 w3", "target": "Yes"}),
    "leaderboard_gpqa_main": (
        "gpqa/gpqa_main_zeroshot.yaml",
        {"Question": "w4 w5", "Correct Answer": "w6"}
        | {f"Incorrect Answer {i}": f"w{6 + i}" for i in (1, 2, 3)},
    ),
    "leaderboard_musr_team_allocation": (
        "musr/musr_team_allocation.yaml",
        {"narrative": "w1 w2", "question": "w3", "choices": "['w4', 'w5']", "answer_choice": "w5"},
    ),
    "leaderboard_mmlu_pro": (
        "mmlu_pro/mmlu_pro.yaml",
        {"question": "w1 w2", "options": ["w3", "w4", "w5"], "answer": "B", "answer_index": 1},
    ),
    "leaderboard_ifeval": (
        "ifeval/ifeval.yaml",
        {"key": 1, "prompt": "w1 w2", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    ),
}


@pytest.mark.slow
def test_the_five_of_table_3_as_the_harness_defines_them(pair, tmp_path, monkeypatch):
    """Their own definitions on invented rows in their schema: shots, shuffles, metrics and groups run."""
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("langdetect")
    monkeypatch.setattr(nltk, "download", lambda *_: None)  # its sentence splitter is not asked for here
    defined = Path(lm_eval.__file__).parent / "tasks" / "leaderboard"
    for name, (file, row) in LEADERBOARD.items():
        data = tmp_path / f"{name}.jsonl"
        data.write_text("\n".join([json.dumps(row)] * 6))
        splits = ("train", "test", "validation", "team_allocation")
        files = ", ".join(f"{split}: {data}" for split in splits)
        text = f"include: {defined / file}\ntask: {name}\ndataset_path: json\ndataset_name: null\n"
        text += f"dataset_kwargs: {{data_files: {{{files}}}}}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    for name in ("base", "trained"):
        policy = load_policy(str(pair[0] / name))
        policy.model.config.max_position_embeddings = 2048
        save_policy(policy, tmp_path / name)
    models = str(tmp_path / "base"), str(tmp_path / "trained")
    result = general.compare(*models, [str(tmp_path)], limit=4)
    rows = pd.DataFrame(result["rows"]).set_index(["task", "metric"])
    assert set(rows.index.get_level_values(0)) == set(LEADERBOARD)
    assert (rows["questions"] == 4).all()
    flat = rows.loc[
        ("leaderboard_ifeval", "inst_level_strict_acc")
    ]  # a mean over instructions, not questions
    assert flat["base"] == rows.loc[("leaderboard_ifeval", "prompt_level_strict_acc"), "base"]
    assert not flat["paired"] and np.isnan(flat["delta_lo"])
    assert rows.drop(flat.name).drop(("leaderboard_ifeval", "inst_level_loose_acc"))["paired"].all()
    assert (
        result["n-shot"]["leaderboard_mmlu_pro"] == 5 and result["n-shot"]["leaderboard_bbh_navigate"] == 3
    )
    assert set(published.TABLE_3_TASKS) >= {"leaderboard_ifeval", "leaderboard_mmlu_pro"}


def test_the_names_of_table_3_are_known_to_the_harness_and_slips_are_told(run, tmp_path):  # noqa: F811
    assert set(published.TABLE_3_TASKS) <= set(general._manager((), True).all_tasks)
    for tasks, words in (
        ("leaderboard_musrr", ["did you mean leaderboard_musr"]),
        ("leaderboard_mmlu_pro", ["leaderboard_mmlu_pro", "network"]),
    ):
        code, _, err = run("general", "--trained", "F", "--tasks", tasks)
        assert code == 2 and all(word in complaint(err) for word in words), err


def test_mistakes_get_one_line(run, pair, tmp_path, monkeypatch):  # noqa: F811
    root, _ = pair
    (tmp_path / "broken.yaml").write_text("task: x\noutput_type: generate_until\n")
    (tmp_path / "empty").mkdir()
    long = ANSWER.replace("DATA", str(root / "data.jsonl")).replace("12}", "96}")
    (tmp_path / "long.yaml").write_text(long)
    both = ["--model", root / "base", "--trained", root / "trained", "--tasks"]
    for arguments, words in (
        (["--trained", root / "base", "--tasks", "toy"], ["vocabularies differ (24 and 320"]),
        (["--trained", "nowhere", "--tasks", "toy"], ["nowhere"]),
        ([*both, tmp_path / "broken.yaml"], ["broken.yaml", "cannot be loaded"]),
        ([*both, tmp_path / "empty"], ["empty", "no task file nor folder"]),
        ([*both, tmp_path / "long.yaml"], ["96 tokens", "exceed"]),
        ([*both, root / "tasks", "--template", "qwen_instruct"], ["plain or"]),
        ([*both, root / "tasks", "--template", "chat"], ["chat template"]),
        ([*both, root / "tasks", "--limit", 0], ["--limit 0"]),
        ([*both, root / "tasks", "--dtype", "float8"], ["float8"]),
    ):
        code, _, err = run("general", *arguments)
        assert code == 2 and all(word in complaint(err) for word in words), err
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    code, _, err = run("general", "--trained", "F", "--tasks", "toy")
    assert code == 2 and "pip install" in complaint(err)


def test_long_prompts_are_counted(pair, tmp_path):
    root, rows = pair
    longer = [{**r, "prompt": " ".join([r["prompt"]] * (30 if i == 0 else 1))} for i, r in enumerate(rows)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, longer)))
    for name, text in (("choice", CHOICE), ("answer", ANSWER)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("DATA", str(tmp_path / "data.jsonl")))
    results = general.ask(f"{root / 'base'}:plain", [str(tmp_path)], 3, 2)
    assert results["cut"] == 4 + 1  # four choices and one answer


def _results(values, samples, parts=None):
    """What `ask` returns, as far as `rows_of` reads it. values, samples: by task, then metric."""
    described = {}
    for task, metrics in values.items():
        described[task] = {"alias": task, "sample_len": 4}
        for metric, (value, error) in metrics.items():
            described[task] |= {f"{metric},none": value, f"{metric}_stderr,none": error}
    logged = {
        task: [
            {"doc_id": i, "doc_hash": f"{task}{i}", "filter": "none", "metrics": ["acc"], "acc": v}
            for i, v in enumerate(own)
        ]
        for task, own in samples.items()
    }
    return {"results": described, "samples": logged, "group_subtasks": parts or {}}


def test_groups_by_size_or_not_and_other_metrics():
    parts = {"all": ["a", "b"]}

    def result(a, b, group):
        values = {
            "all": {"acc": (group, 0.1)},
            "a": {"acc": (np.mean(a), 0.1)},
            "b": {"acc": (np.mean(b), 0.1)},
        }
        return _results(values, {"a": a, "b": b}, parts)

    a, b, c, d = [1, 0, 1, 1], [0.0], [1, 1, 1, 1], [1.0]
    for mean, expected in (
        (lambda x, y: np.mean([*x, *y]), 0.4),
        (lambda x, y: (np.mean(x) + np.mean(y)) / 2, 0.625),
    ):
        rows = {r["task"]: r for r in general.rows_of(result(a, b, mean(a, b)), result(c, d, mean(c, d)))}
        assert rows["all"]["delta"] == pytest.approx(100 * expected) and rows["all"]["paired"]
        assert rows["a"]["group"] == rows["b"]["group"] == "all" and rows["all"]["group"] == ""
        assert rows["all"]["questions"] == 5 and rows["b"]["delta_lo"] == 100
    one, two = (_results({"t": {"ppl": (v, 3.0), "odd": (0.5, "N/A")}}, {"t": []}) for v in (20.0, 24.0))
    ppl, odd = general.rows_of(one, two)
    assert not ppl["paired"] and ppl["delta"] == 4 and ppl["questions"] == 4
    assert ppl["delta_hi"] == pytest.approx(4 + 1.96 * 18**0.5, abs=1e-5)
    assert odd["base"] == 50 and np.isnan(odd["base_lo"]) and odd["metric"] == "odd"


def test_other_questions_are_not_paired():
    one, two = (_results({"t": {"acc": (0.5, 0.1)}}, {"t": [0, 1]}) for _ in range(2))
    two["samples"]["t"][0]["doc_hash"] = "another"
    with pytest.raises(SeptError, match="different questions"):
        list(general.rows_of(one, two))


def test_choice_questions():
    documents = toy.choice_questions(("add3", "sub5", "rev"), 20)["test"]
    assert documents[:2] == toy.choice_questions(("add3", "sub5", "rev"), 1)["test"][:2]
    assert len({d["prompt"] for d in documents}) > 55 and {d["label"] for d in documents} == {0, 1, 2, 3}
    for i, document in enumerate(documents):
        family = ("add3", "sub5", "rev")[i % 3]
        numbers = [int(n) for n in document["prompt"].strip("r:").replace("-", "+").split("+")]
        reversed_ = document["prompt"][4:0:-1]
        true = {"add3": sum(numbers), "sub5": numbers[0] - numbers[-1], "rev": reversed_}[family]
        assert document["answer"] == str(true)
        operands = tuple(int(c) for c in document["prompt"][1:5]) if family == "rev" else tuple(numbers)
        assert toy.split_of(family, operands) == "test"
        right = [
            c.removesuffix(toy.EOS).rsplit("#", 1)[1] == document["answer"] for c in document["choices"]
        ]
        assert sum(right) == 1 and right[document["label"]]
        assert all(toy.is_well_formed(c.removesuffix(toy.EOS), True) for c in document["choices"])
