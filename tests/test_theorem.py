"""The theorem on language models: the round, its three levels, and the checkpoints people will bring."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import random_policy

from sept import cli, free_logits, objectives, theorem
from sept.config import SeptError, preset
from sept.loop import train
from sept.policy import load_policy, make_batch, response_logits, save_policy
from sept.problems import Problem, ProblemSet
from sept.sampling import make_sampler


@pytest.fixture
def questions():
    return ProblemSet("words", tuple(Problem(str(i), "w", f"w{i} w{i + 9}", "-") for i in range(4)))


def drawn(policy, questions, tau, n=64, limit=6):
    return theorem.draw(policy, make_sampler(policy), questions, tau, limit, 0, n)


def test_merged_answers_have_the_gradient_of_all_of_them(questions):
    policy = random_policy(vocab=40)
    rollouts = drawn(policy, questions, 0.3, n=400)
    parts = list(theorem.merged(rollouts, rows=16))
    assert sum(int(counts.sum()) for _, counts in parts) == len(rollouts) == 400
    assert sum(len(rows) for rows, _ in parts) < 300, "there is something to merge"

    def gradient(batches):
        policy.model.zero_grad()
        for rows, counts in batches:
            batch = make_batch(
                [rollouts.prompts[i] for i in rows], rollouts.tokens[rows], rollouts.lengths[rows]
            )
            losses = objectives.nll(response_logits(policy.model, batch), batch.tokens, 1.0)
            (losses * batch.mask * counts[:, None]).sum().backward()
        return torch.cat([p.grad.flatten() for p in policy.model.parameters()])

    plain = gradient([(list(range(400)), torch.ones(400))])
    assert torch.allclose(gradient(parts), plain, rtol=1e-4, atol=1e-4 * plain.abs().max())


def test_a_step_of_the_round_is_a_step_of_the_loop(questions, tmp_path):
    """Same draws, same objective, same optimizer: sequence-sum, no clipping, and the same weights after it."""
    ours, theirs = random_policy(vocab=40), random_policy(vocab=40)
    config = preset(
        "sept",
        loss_normalisation="sequence-sum",
        tau_s=0.7,
        G=8,
        questions=4,
        mini_batch=4,
        rounds=1,
        lr=1e-3,
    )
    fields = {"max_new_tokens": 6, "warmup": 0, "beta2": 0.99, "weight_decay": 0.0, "grad_clip": 0.0}
    config = type(config)(**{**vars(config), **fields})
    train(config, theirs, questions, tmp_path / "run")
    theorem.train_round(ours, None, make_sampler(ours), questions, 0.7, 1.0, 1, 32, 1e-3, config.seed, 6)
    for (name, a), b in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5), name  # Adam's first step is a sign: rounding may show
        moved = (a - random_policy(vocab=40).model.state_dict()[name]).abs().max()
        assert moved > 5e-4


def test_soft_targets_are_the_expectation_of_sampled_ones(questions):
    """Proposition 1: over many draws the two gradients agree, and the soft one is less noisy."""
    grads = {"sampled": [], "soft": []}
    for seed in range(12):
        for targets in grads:
            policy = random_policy(vocab=40)
            teacher = copy.deepcopy(policy.model) if targets == "soft" else None
            captured = []
            policy.model.get_output_embeddings().weight.register_hook(
                lambda g, c=captured: c.append(g.clone())
            )
            theorem.train_round(
                policy, teacher, make_sampler(policy), questions, 0.7, 1.0, 1, 256, 0.0, seed, 6
            )
            grads[targets].append(sum(captured).flatten())
    mean = {k: torch.stack(v).mean(0) for k, v in grads.items()}
    noise = {k: torch.stack(v).std(0).norm().item() for k, v in grads.items()}
    assert noise["soft"] < 0.6 * noise["sampled"]
    off = (mean["soft"] - mean["sampled"]).norm().item()
    assert off < 2.5 * noise["sampled"] / 12**0.5
    assert mean["soft"].norm() > 2 * noise["soft"] / 12**0.5, "there is a gradient to agree about"


@pytest.mark.parametrize("rows", [40, 64])
def test_the_sampler_knows_what_the_teacher_would_say(rows, questions, monkeypatch):
    """Soft targets from the logits that answers were drawn from: the same round as with a second pass."""
    asked, results = [], []
    real = theorem.response_logits
    monkeypatch.setattr(theorem, "response_logits", lambda m, *a: asked.append(m) or real(m, *a))
    for kept in (2**26, 0):
        monkeypatch.setattr(theorem, "KEPT", kept)
        policy = random_policy(vocab=40, rows=rows)
        policy.vocab = 40 if rows > 40 else None
        teacher, asked[:] = copy.deepcopy(policy.model), []
        sampler = make_sampler(policy)
        theorem.train_round(policy, teacher, sampler, questions, 0.7, 1.0, 3, 256, 1e-3, 0, 6)
        assert any(model is teacher for model in asked) == (kept == 0)
        table, _ = theorem.compare(teacher, policy, drawn(policy, questions, 0.7), 0.7, 1.0, order=False)
        results.append(theorem.headline(table)["slope"])
    assert results[0] == pytest.approx(results[1], rel=1e-5) and abs(results[0] - 1) > 1e-3


@pytest.mark.parametrize("targets", ["sampled", "soft"])
def test_the_head_alone_reaches_the_theorem(targets, questions):
    """Scaling the head by tau_t / tau_s is the exact optimum, so its margins follow everywhere."""
    policy = random_policy(vocab=40)
    policy.model.get_output_embeddings().weight.data.mul_(0.3)
    embedding = policy.model.get_input_embeddings().weight.clone()
    report = theorem.check(
        policy, questions, None, 0.7, level="head", steps=120, samples=256, lr=0.03, measured=512,
        max_new_tokens=6, targets=targets,
    )  # fmt: skip
    assert report["target"] == pytest.approx(1 / 0.7)
    assert report["slope"] == pytest.approx(1 / 0.7, rel=0.06)
    assert report["trajectory"][0]["slope"] < report["slope"] - 0.05
    assert torch.equal(policy.model.get_input_embeddings().weight, embedding), "only the head is trained"
    low, high = report["slope_interval"]
    assert low < report["slope"] < high and report["r2"] > 0.9 and report["prefixes"] > 500


def test_logit_level_floors():
    policy = load_policy("H")
    trained, other = theorem.question_sets(policy, None, 0)
    report = theorem.check(policy, trained, other, 0.6, level="logits", measured=256)
    floors = {(f["dtype"], f["route"]): f for f in report["floors"]}
    for route in ("closed form", "fitted"):
        assert abs(floors["float64", route]["slope_error"]) < 1e-6
        assert floors["float64", route]["residual"] < 1e-6
        assert abs(floors["float32", route]["slope_error"]) < 1e-5
        assert 1e-5 < floors["bfloat16", route]["residual"] < 0.1
    assert floors["bfloat16", "closed form"]["residual"] > 3 * floors["float16", "closed form"]["residual"]


def test_a_perturbed_start_must_come_back(questions):
    policy = random_policy(vocab=40)
    report = theorem.check(
        policy, questions, None, 1.0, level="head", steps=150, samples=512, lr=0.02, measured=512,
        max_new_tokens=6, targets="soft",
    )  # fmt: skip
    assert report["start"]["kl"] > 20 * report["kl"], "it starts away from where it must end"
    assert report["slope"] == pytest.approx(1, abs=0.03)


def test_a_small_step_changes_margins_as_the_derivative_says():
    policy = load_policy("H")
    trained, _ = theorem.question_sets(policy, None, 0)
    rollouts = drawn(policy, ProblemSet("few", trained.items[:8], world="toy"), 0.6, n=8, limit=56)
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    large, small = free_logits.first_order(policy, rollouts, 0.6, 1.0, (1e-2, 1e-4))
    assert small["error"] < 0.01 < large["error"]
    assert 0.5 < small["alignment"] <= 1, "the step goes where Equation 2 points"
    (coupled,) = free_logits.first_order(policy, rollouts, 1.4, 1.0, (1e-4,))
    assert 0.5 < coupled["alignment"] <= 1 and coupled["error"] < 0.01
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())


def test_other_questions_are_never_mixed_in():
    policy = load_policy("H")
    trained, other = theorem.question_sets(policy, None, 0)
    assert len(trained.items) == len(other.items) == 64
    assert not {p.prompt for p in trained.items} & {p.prompt for p in other.items}
    assert not {p.id for p in trained.items} & {p.id for p in other.items}


def test_question_sets_of_other_models(tmp_path, questions):
    policy = random_policy()
    alone, none = theorem.question_sets(policy, None, 0)
    assert none is None and policy.encode(alone.items[0].prompt) == [policy.tokenizer.bos_token_id]
    path = tmp_path / "prompts.txt"
    path.write_text("w1 w2\n\nw3\nw4\n")
    trained, other = theorem.question_sets(policy, str(path), 0)
    assert [p.prompt for p in trained.items] == ["w1 w2", "w3"] and [p.prompt for p in other.items] == [
        "w4"
    ]


def test_padded_vocabulary_and_tied_embeddings(questions):
    """Embedding rows beyond the tokenizer stand for nothing; they must not move any number."""
    plain = random_policy(vocab=40)
    rollouts = drawn(plain, questions, 0.7)
    expected, _ = theorem.compare(plain.model, plain, rollouts, 0.7, 1.0)
    padded = random_policy(vocab=40)
    padded.model.resize_token_embeddings(64, mean_resizing=False)
    padded.vocab = 40
    with torch.no_grad():
        padded.model.get_input_embeddings().weight[40:] = 7.0
    got, _ = theorem.compare(padded.model, padded, rollouts, 0.7, 1.0)
    assert np.allclose(got[["var", "cov", "kl"]], expected[["var", "cov", "kl"]], atol=1e-5)


def test_left_padding_changes_nothing(questions):
    policy = random_policy(vocab=40)
    rollouts = drawn(policy, questions, 0.7)
    long = [i for i in range(len(rollouts))]
    a = make_batch([rollouts.prompts[i] for i in long], rollouts.tokens, rollouts.lengths)
    b = make_batch([[1, *rollouts.prompts[i]] for i in long], rollouts.tokens, rollouts.lengths, left=True)
    c = make_batch([[1, *rollouts.prompts[i]] for i in long], rollouts.tokens, rollouts.lengths)
    with torch.no_grad():
        left, right, other = (response_logits(policy.model, x)[x.mask] for x in (b, c, a))
    assert torch.allclose(left, right, atol=1e-4) and not torch.allclose(left, other, atol=1e-2)


# --- the command


def run(capsys, *arguments):
    try:
        code = cli.app(["theorem", *map(str, arguments)], standalone_mode=False)
    except SeptError as error:
        return 2, str(error)
    return code or 0, capsys.readouterr().out


def test_the_command_writes_its_numbers(tmp_path, capsys):
    out, table = tmp_path / "t.json", tmp_path / "t.csv"
    options = ["--steps", 3, "--samples", 64, "--json", out, "--table", table]
    code, shown = run(capsys, "--model", "H", "--tau-s", 0.6, *options)
    assert code == 0 and "visited" in shown and "theorem: 1.6667" in shown
    report = json.loads(out.read_text())
    for key in (
        "target", "slope", "slope_interval", "r2", "order_agreement", "kl", "prefixes", "trajectory",
        "provenance", "other", "slope_quantiles", "settings",
    ):  # fmt: skip
        assert key in report, key
    assert [row["step"] for row in report["trajectory"]] == [2, 3]
    lines = table.read_text().splitlines()
    assert len(lines) == 1 + report["prefixes"] + report["other"]["prefixes"]


def test_two_checkpoints_can_be_compared(tmp_path, capsys, questions):
    policy = load_policy("H")
    policy.model.model.norm.weight.data.mul_(1.5)  # every margin times 1.5
    save_policy(policy, tmp_path / "new")
    prompts = tmp_path / "p.txt"
    prompts.write_text("123+456:\n987-654:\n")
    code, shown = run(
        capsys, "--model", "H", "--trained", tmp_path / "new", "--prompts", prompts,
        "--tau-s", 0.8, "--json", tmp_path / "x.json",
    )  # fmt: skip
    assert code == 0
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["slope"] == pytest.approx(1.5, abs=1e-4) and report["r2"] == pytest.approx(1, abs=1e-4)
    assert report["order_agreement"] == pytest.approx(1)


def test_bad_input(tmp_path, capsys):
    good, short = "H", tmp_path / "short"
    save_policy(random_policy(vocab=44), short)
    broken = random_policy(vocab=40)
    broken.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    save_policy(broken, tmp_path / "nan")
    (tmp_path / "p.txt").write_text("1" * 99 + ":")
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, message in (
        (["--model", good, "--exact"], "either --model"),
        ([], "either --model"),
        (["--model", good, "--tau-s", 0], "tau_s = 0.0: out of range"),
        (["--model", good, "--tau-s", "nan"], "out of range"),
        (["--model", good, "--tau-t", 100], "tau_t = 100.0: out of range"),
        (["--model", good, "--level", "logit"], "choose one of logits, head, full"),
        (["--model", tmp_path / "nan"], "up_proj.weight' has values that are not finite"),
        (["--model", good, "--trained", short], "different vocabularies"),
        (["--model", good, "--prompts", tmp_path / "p.txt"], "only 80 fit"),
        (["--model", good, "--prompts", tmp_path / "empty.txt"], "the set is empty"),
        (["--model", good, "--prompts", tmp_path / "none.txt"], "cannot be read"),
        (["--model", good, "--max-new-tokens", 128], "no room for a prompt"),
        (["--model", good, "--steps", 0], "steps = 0"),
    ):
        code, said = run(capsys, *arguments)
        assert code == 2 and message in said and "\n" not in said, (arguments, said)
