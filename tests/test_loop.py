"""Algorithm 1: gradients, normalisations, staleness, resume, and every knob of the config."""

import json
import math
import threading
import time

import pytest
import torch
from conftest import random_policy

from sept import loop, objectives, steps
from sept.config import PRESETS, SeptError, from_dict, preset
from sept.loop import StaleSamplerError, TrainingError, train
from sept.policy import load_policy, make_batch, response_logits
from sept.problems import Problem, ProblemSet, load_problems
from sept.sampling import TransformersEngine, with_end
from sept.sampling_static import StaticEngine
from sept.schedules import tau_s_at

SMALL = {"rounds": 3, "warmup": 0, "questions": 8, "mini_batch": 4, "max_new_tokens": 12, "save_every": 1}


@pytest.fixture()
def policy():
    return random_policy(seed=1)


@pytest.fixture(scope="module")
def problems():
    return ProblemSet(
        "words", tuple(Problem(str(i), "words", f"w{i} w{i + 3} w{2 * i}", "w9") for i in range(24))
    )


@pytest.fixture()
def rollouts(policy, problems):
    engine = StaticEngine()
    engine.refresh(policy)
    prompts = [policy.encode(p.prompt) for p in problems.items]
    return engine.sample(prompts, [p.id for p in problems.items], 1, 1.0, 12, seed=0)


def rows_of(rollouts, rows):
    rows = list(rows)
    return [rollouts.prompts[i] for i in rows], rollouts.tokens[rows], rollouts.lengths[rows]


def gradient(policy):
    return torch.cat([p.grad.flatten() for p in policy.model.parameters()])


# --- exactness ------------------------------------------------------------------------------------------


def test_nll_and_gradient_equal_transformers_own_loss(policy, rollouts):
    """Same loss, same gradient as `model(labels=...)`: shift, mask and end-of-sequence all at once."""
    batch = make_batch(*rows_of(rollouts, range(8)))
    labels = torch.full_like(batch.ids, -100)
    for i in range(8):
        n = int(rollouts.lengths[i])
        start = len(rollouts.prompts[i])
        labels[i, start : start + n] = rollouts.tokens[i, :n]
    policy.model.zero_grad()
    theirs = policy.model(batch.ids, attention_mask=batch.attention, labels=labels).loss
    theirs.backward()
    their_gradient = gradient(policy)
    policy.model.zero_grad()
    losses = objectives.nll(response_logits(policy.model, batch), batch.tokens, 1.0)
    tokens = int(batch.mask.sum())
    ours = objectives.normalise(losses, batch.mask, "token", tokens, 8, 1)
    ours.backward()
    assert abs(ours.item() - theirs.item()) <= 1e-6 * max(1, abs(theirs.item()))
    scale = their_gradient.abs().max()
    assert ((gradient(policy) - their_gradient).abs().max() / scale).item() <= 1e-6
    assert rollouts.finished[:8].any(), "some answers must end, or nothing is said about their end"


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_padding_side_changes_nothing(kind, rollouts):
    policy = random_policy(kind, seed=1)
    parts = rows_of(rollouts, range(12))
    with torch.no_grad():
        outs = []
        for left in (False, True):
            batch = make_batch(*parts, left=left)
            outs.append(objectives.token_log_probs(response_logits(policy.model, batch), batch.tokens))
        assert len({len(p) + int(n) for p, n in zip(parts[0], parts[2], strict=True)}) > 3
        for i in range(12):
            one = make_batch([parts[0][i]], parts[1][i : i + 1], parts[2][i : i + 1])
            alone = objectives.token_log_probs(response_logits(policy.model, one), one.tokens)
            for out in outs:
                assert (out[i, : alone.shape[1]] - alone[0]).abs().max().item() <= 1e-5


@pytest.mark.parametrize("how", ["token", "sequence-sum"])
def test_accumulation_gives_the_same_gradient(how, policy, rollouts):
    gradients = []
    for size in (8, 1):
        policy.model.zero_grad()
        total = int(rollouts.lengths[:8].sum())
        for i in range(0, 8, size):
            batch = make_batch(*rows_of(rollouts, range(i, i + size)))
            losses = objectives.nll(response_logits(policy.model, batch), batch.tokens, 1.0)
            objectives.normalise(losses, batch.mask, how, total, 8, 8 // size).backward()
        gradients.append(gradient(policy))
    scale = gradients[0].abs().max()
    assert ((gradients[0] - gradients[1]).abs().max() / scale).item() <= 1e-6


def test_microbatch_token_mean_does_depend_on_accumulation():
    losses, mask = torch.tensor([[1.0, 1.0], [4.0, 0.0]]), torch.tensor([[1, 1], [1, 0]]).bool()
    whole = objectives.normalise(losses, mask, "microbatch-token", 3, 2, 1)
    halves = sum(
        objectives.normalise(losses[i : i + 1], mask[i : i + 1], "microbatch-token", 3, 2, 2)
        for i in range(2)
    )
    assert whole.item() == pytest.approx(2.0) and float(halves) == pytest.approx(2.5)


def test_objectives_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]]))
    tokens = torch.tensor([[1, 0]])
    assert objectives.nll(logits, tokens, 1.0).tolist()[0] == pytest.approx(
        [math.log(4), math.log(1 / 0.8)]
    )
    # At temperature 1/2 probabilities are squared: 1/16 over 1/4 + 1/16 + 1/16.
    assert objectives.nll(logits, tokens, 0.5)[0, 0].item() == pytest.approx(math.log(6))
    h = objectives.entropy(logits)[0, 0].item()
    assert h == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    gains = objectives.group_advantages(torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1]), 4)
    assert gains[:4].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-4)
    assert gains[4:].abs().max() == 0
    old = objectives.token_log_probs(logits, tokens) - math.log(1.5)  # the ratio is 1.5 everywhere
    up = objectives.grpo(logits, tokens, 1.0, old, torch.tensor([2.0]), 0.2)
    assert up.tolist()[0] == pytest.approx([-2.4, -2.4])  # clipped at 1.2
    down = objectives.grpo(logits, tokens, 1.0, old - math.log(4), torch.tensor([-2.0]), 0.2)
    assert down.tolist()[0] == pytest.approx([6.0, 6.0])  # ratio 6 against the dual clip at 3


# --- the wiring of the loop ---------------------------------------------------------------------------


def recorded_gradients(monkeypatch):
    """AdamW.step replaced: keeps each step's gradient and leaves the weights alone."""
    seen = []

    def step(self, closure=None):
        seen.append(torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]]))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return seen


def draws_of_the_first_round(config, problems, seed=1):
    policy = random_policy(seed=seed)
    engine = StaticEngine()
    engine.refresh(policy)
    questions = problems.batch(0, config.questions, config.seed)
    prompts = [policy.encode(q.prompt) for q in questions]
    ids = [q.id for q in questions]
    drawn = engine.sample(prompts, ids, config.G, config.tau_s, config.max_new_tokens, config.seed, 0)
    return policy, questions, drawn


@pytest.mark.parametrize("micro_batch", [8, 3, 1])
@pytest.mark.parametrize("how", ["token", "sequence-sum"])
def test_the_loop_steps_on_transformers_own_gradient(how, micro_batch, problems, tmp_path, monkeypatch):
    """One step of train() itself, at tau_t = 0.7, against cross-entropy written out here."""
    fields = {**SMALL, "rounds": 1, "mini_batch": 8, "micro_batch": micro_batch, "tau_t": 0.7}
    fields |= {"tau_s": 1.3, "max_new_tokens": 24}
    config = preset("sept", **fields, grad_clip=0.0, loss_normalisation=how)
    policy, _, drawn = draws_of_the_first_round(config, problems)
    assert drawn.finished.any() and len(set(drawn.lengths.tolist())) > 2
    total = 0.0
    for i in range(8):  # one by one, unpadded
        n = int(drawn.lengths[i])
        ids = torch.cat([torch.tensor(drawn.prompts[i]), drawn.tokens[i, :n]])[None]
        logits = policy.model(ids).logits[0, -n - 1 : -1] / 0.7
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, -n:], reduction="sum")
    (total / (int(drawn.lengths.sum()) if how == "token" else 8)).backward()
    expected = gradient(policy)
    seen = recorded_gradients(monkeypatch)
    train(config, random_policy(seed=1), problems, tmp_path / "run")
    assert len(seen) == 1
    assert ((seen[0] - expected).abs().max() / expected.abs().max()).item() <= 2e-6


@pytest.mark.parametrize("arm", ["sept", "grpo", "em-ft"])
def test_threads_that_take_micro_batches_change_no_bit(arm, problems, tmp_path, monkeypatch):
    """Parts finish in any order and are added up in theirs."""
    config = preset(arm, **{**SMALL, "rounds": 2, "mu": 2, "micro_batch": 1})
    real, names, found = steps.MicroBatches.gradient, set(), {}

    def late(self, weights, shares, gap, rows):
        names.add(threading.current_thread().name[-1])  # its number in the pool
        time.sleep(0.02 * (sum(rows) % 3))  # the first is seldom the first to be done
        return real(self, weights, shares, gap, rows)

    monkeypatch.setattr(steps.MicroBatches, "gradient", late)
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            policy = random_policy(seed=1)
            rows = train(config, policy, problems, tmp_path / str(threads))
            assert torch.get_num_threads() == threads
            found[threads] = rows, [p.detach().clone() for p in policy.model.parameters()]
            assert len(names) == (4 if threads > 1 else 0)
        names.clear()
        train(config, random_policy("gpt2"), problems, tmp_path / "gpt2")
        assert not names
    finally:
        torch.set_num_threads(before)
    assert found[1][0] == found[4][0]
    assert all(torch.equal(a, b) for a, b in zip(found[1][1], found[4][1], strict=True))


def test_the_loop_hands_grpo_each_answers_own_advantage(problems, tmp_path, monkeypatch):
    config = preset("grpo", **{**SMALL, "rounds": 1, "G": 4, "micro_batch": 3})

    def fake_grade(text, finished, problem, world):
        return (len(text) + int(problem.id)) % 3 == 0

    policy, questions, drawn = draws_of_the_first_round(config, problems)
    texts = [policy.decode(t[:n].tolist()) for t, n in zip(drawn.tokens, drawn.lengths, strict=True)]
    rewards = torch.tensor(
        [[float(fake_grade(texts[4 * q + s], True, questions[q], "")) for s in range(4)] for q in range(8)]
    )
    assert 0 < rewards.std(1).count_nonzero() and rewards.mean() not in (0, 1)
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    seen, old = [], []
    real = objectives.grpo

    def spy(logits, tokens, tau_t, old_log_probs, advantage, clip):
        seen.append(advantage)
        old.append(old_log_probs)
        return real(logits, tokens, tau_t, old_log_probs, advantage, clip)

    monkeypatch.setattr(objectives, "grpo", spy)
    monkeypatch.setattr(
        loop,
        "grade_all",
        lambda *columns: list(map(fake_grade, *columns[:3], len(columns[0]) * [columns[3]])),
    )
    train(config, random_policy(seed=1), problems, tmp_path / "run")
    # Rows are trained in order of length: an answer is told by the log-probs that it was drawn with.
    given = [row for part in old for row in part]
    width = drawn.log_probs.shape[1]
    given = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in given])
    rows = (given[:, None] == drawn.log_probs[None]).all(-1)
    assert torch.equal(rows.sum(1), torch.ones(32)) and torch.equal(rows.sum(0), torch.ones(32))
    assert torch.allclose(torch.cat(seen), expected.flatten()[rows.int().argmax(1)], atol=1e-6)


def test_clipping_and_warmup_reach_the_optimizer(problems, tmp_path, monkeypatch):
    config = preset("sept", **{**SMALL, "warmup": 2, "lr": 1e-3})
    snapshots = []
    policy = random_policy(seed=1)
    train(
        config,
        policy,
        problems,
        tmp_path / "warm",
        on_round=lambda _: snapshots.append(policy.model.lm_head.weight.detach().clone()),
    )
    assert torch.equal(snapshots[0], random_policy(seed=1).model.lm_head.weight), "round 0 changes nothing"
    assert not torch.equal(snapshots[0], snapshots[1])
    seen = recorded_gradients(monkeypatch)
    train(preset("sept", **SMALL, grad_clip=1e-3), random_policy(seed=1), problems, tmp_path / "clip")
    assert all(abs(g.norm().item() - 1e-3) < 1e-5 for g in seen)


def test_dropout_is_off_in_training(problems, tmp_path):
    """GPT-2's config has dropout 0.1: with it on, sampler and policy could not agree."""
    for checkpointing in (False, True):
        policy = random_policy("gpt2", seed=1)
        assert policy.model.config.resid_pdrop > 0
        config = preset("sept", **SMALL, lr=1e-3, gradient_checkpointing=checkpointing)
        rows = train(config, policy, problems, tmp_path / str(checkpointing))
        assert all(row["sampler_gap"] < 1e-4 for row in rows)


def test_a_small_learning_rate_does_not_hide_a_stale_sampler(tmp_path):
    """On base H at lr 1e-6 a missed refresh moves log-probs by 1e-4: under a fixed limit of 1e-3."""
    policy = load_policy("H")
    engine = LyingEngine()
    engine.refresh(policy)
    config = preset("sept", rounds=6, warmup=0, questions=32, mini_batch=8, lr=1e-6)
    with pytest.raises(StaleSamplerError):
        train(config, policy, load_problems("toy:train"), tmp_path / "run", sampler=engine)


# --- the loop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", sorted(PRESETS))
def test_every_arm_runs_and_changes_every_parameter(arm, problems, tmp_path):
    policy = random_policy(seed=1)
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    small = dict(SMALL, G=2) if arm == "grpo" else SMALL
    if arm == "grpo":  # rewards must differ inside a group for GRPO to move at all
        problems = ProblemSet(
            "any", tuple(Problem(p.id, "w", p.prompt, "w12") for p in problems.items), world="file"
        )
        loop_grade = loop.grade_all
        loop.grade_all = lambda texts, *_: [len(text) % 2 == 0 for text in texts]
    try:
        rows = train(preset(arm, **small, lr=1e-3), policy, problems, tmp_path / "run")
    finally:
        if arm == "grpo":
            loop.grade_all = loop_grade
    assert len(rows) == 3 and policy.version == 6
    for key, value in policy.model.state_dict().items():
        assert not torch.equal(value, before[key]), f"{key} did not change"
    for name in ("loss", "nll", "entropy", "sampler_gap", "grad_norm", "length", "accuracy"):
        assert math.isfinite(rows[-1][name])
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_sampler_gap_is_the_difference_of_log_probs(policy, problems, tmp_path):
    rows = train(preset("sept", **SMALL, lr=1e-3), policy, problems, tmp_path / "run")
    assert all(row["sampler_gap"] < 1e-4 for row in rows)
    offline = train(preset("offline", **SMALL, lr=1e-3), random_policy(seed=1), problems, tmp_path / "off")
    assert offline[0]["sampler_gap"] < 1e-4 < offline[2]["sampler_gap"]


class ForgetfulEngine(StaticEngine):
    """A sampler whose refresh does nothing after the first."""

    def refresh(self, policy):
        if self.version < 0:
            super().refresh(policy)


class LyingEngine(ForgetfulEngine):
    """A sampler that says it was refreshed but keeps its old packed weights."""

    def refresh(self, policy):
        super().refresh(policy)
        self.version = policy.version


@pytest.mark.parametrize("kind", [ForgetfulEngine, LyingEngine])
def test_a_stale_sampler_stops_the_run(kind, policy, problems, tmp_path):
    engine = kind()
    engine.refresh(policy)
    with pytest.raises(StaleSamplerError, match="round 1"):
        train(preset("sept", **SMALL, lr=1e-3), policy, problems, tmp_path / "run", sampler=engine)


def test_refresh_every_two_uses_each_version_twice(policy, problems, tmp_path):
    class Watching(TransformersEngine):
        seen = []

        def sample(self, *a, **k):
            self.seen.append(self.version)
            return super().sample(*a, **k)

    engine = Watching()
    engine.refresh(policy)
    config = preset("sept", **{**SMALL, "rounds": 5, "refresh_every": 2, "margins_every": 0})
    train(config, policy, problems, tmp_path / "run", sampler=engine)
    assert engine.seen == [0, 0, 4, 4, 8]


def test_offline_draws_one_fixed_answer_per_question(policy, problems, tmp_path):
    """A question met again in a later epoch brings the same answer: a frozen data set."""

    class Watching(StaticEngine):
        drawn = {}
        again = 0

        def sample(self, prompts, keys, *a, **k):
            out = super().sample(prompts, keys, *a, **k)
            for i, key in enumerate(keys):
                row = out.tokens[i].tolist()
                self.again += key in self.drawn
                assert self.drawn.setdefault(key, row) == row
            return out

    engine = Watching()
    engine.refresh(policy)
    config = preset("offline", **{**SMALL, "rounds": 6, "lr": 1e-3, "margins_every": 0})
    train(config, policy, problems, tmp_path / "run", sampler=engine)
    assert engine.again == 24


@pytest.mark.parametrize("arm", ["sept", "offline", "sept-annealed"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_resume_equals_uninterrupted(arm, lora_rank, problems, tmp_path):
    config = preset(arm, **{**SMALL, "rounds": 5}, lr=1e-3, lora_rank=lora_rank)
    whole = random_policy(seed=1)
    rows = train(config, whole, problems, tmp_path / "whole")

    def stop(row):
        if row["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="resume"):
        train(config, random_policy(seed=1), problems, tmp_path / "cut", on_round=stop)
    resumed = random_policy(seed=1)
    again = train(config, resumed, problems, tmp_path / "cut", resume=True)
    assert [r["loss"] for r in again] == [r["loss"] for r in rows]
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not list((tmp_path / "cut").glob("checkpoint-*"))


def test_a_finished_run_is_not_run_again(policy, problems, tmp_path):
    config = preset("sept", **SMALL)
    rows = train(config, policy, problems, tmp_path / "run")
    again = train(
        config, random_policy(seed=1), problems, tmp_path / "run", resume=True, on_round=lambda _: 1 / 0
    )
    assert rows == again


def test_nan_stops_with_round_batch_and_checkpoint(policy, problems, tmp_path):
    def poison(row):
        if row["round"] == 1:
            with torch.no_grad():
                policy.model.model.norm.weight[0] = float("nan")

    with pytest.raises(TrainingError, match=r"round 2, batch 0: .*checkpoint-2") as error:
        train(
            preset("sept", **SMALL, lr=1e-12),
            policy,
            problems,
            tmp_path / "run",
            sampler=_Deaf(random_policy(seed=1)),
            on_round=poison,
        )
    assert "\n" not in str(error.value)


class _Deaf(StaticEngine):
    """Keeps drawing from healthy weights, so that the NaN reaches the loss and not the draw."""

    def __init__(self, policy):
        super().__init__()
        super().refresh(policy)

    def refresh(self, policy):
        self.version = policy.version


def test_folder_of_another_run_is_refused(policy, problems, tmp_path):
    train(preset("sept", **SMALL), policy, problems, tmp_path / "run")
    for config in (preset("sept", **SMALL, lr=1e-3), preset("sept", **SMALL, seed=1)):
        with pytest.raises(SeptError, match="another run"):
            train(config, random_policy(seed=1), problems, tmp_path / "run", resume=True)
    with pytest.raises(SeptError, match="--resume"):
        train(preset("sept", **SMALL), random_policy(seed=1), problems, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("dear")
    with pytest.raises(SeptError, match="not empty"):
        train(preset("sept", **SMALL), random_policy(seed=1), problems, tmp_path / "other")
    assert (tmp_path / "other" / "thesis.tex").read_text() == "dear"


def test_gradient_checkpointing_changes_nothing(problems, tmp_path):
    losses = []
    for on in (False, True):
        config = preset("sept", **SMALL, gradient_checkpointing=on, lr=1e-3)
        rows = train(config, random_policy(seed=1), problems, tmp_path / str(on))
        losses.append([r["loss"] for r in rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_mu_and_clipping_and_warmup(problems, tmp_path):
    rows = train(
        preset("sept", **{**SMALL, "warmup": 2}, mu=2, grad_clip=1e-9),
        policy := random_policy(seed=1),
        problems,
        tmp_path / "run",
    )
    assert [r["lr"] for r in rows] == pytest.approx([0, 5e-5, 1e-4])
    assert policy.version == 12, "mu = 2 passes over 2 mini-batches in 3 rounds"


# --- config and schedule --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"tau_s": 0}, {"tau_s": -1.0}, {"tau_s": float("nan")}, {"tau_t": 0.0}, {"tau_t": float("inf")},
        {"G": 0}, {"G": 1.5}, {"rounds": 0}, {"refresh_every": 0}, {"lr": 0}, {"objective": "dpo"},
        {"loss_normalisation": "mean"}, {"questions": 10, "mini_batch": 4}, {"objective": "grpo"},
        {"beta1": 1.0}, {"weight_decay": -1}, {"anneal_share": 0}, {"temperature": 1.0},
        {"seed": True}, {"tau_s": "0.6"},
    ],
)  # fmt: skip
def test_bad_fields_are_named_in_one_line(fields):
    with pytest.raises(SeptError) as error:
        from_dict(fields)
    name = next(iter(fields))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_unknown_arm_lists_the_known():
    with pytest.raises(SeptError, match="em-ft"):
        preset("sft")


def test_config_key_and_json_round_trip():
    config = preset("grpo", seed=3)
    assert from_dict(json.loads(config.to_json())) == config
    assert config.key() != preset("grpo", seed=4).key()
    assert config.key() == preset("grpo", seed=3, save_every=7).key(), "bookkeeping changes no numbers"


def test_schedules_follow_the_paper():
    """B.1: tau + (u / 2)(1 - tau) for u < 2 epochs of 3, then 1."""
    steps, start = 300, 0.6
    for step in range(3 * steps):
        u = step / steps
        paper = start + (u / 2) * (1 - start) if u < 2 else 1.0
        assert tau_s_at(step / (3 * steps), start, 1.0, "linear") == pytest.approx(paper)
    assert tau_s_at(0.5, 0.6, 1.0, "constant") == 0.6
    cosine = [tau_s_at(r / 90, 0.6, 1.0, "cosine") for r in range(90)]
    assert cosine[0] == 0.6 and cosine[30] == pytest.approx(0.8) and set(cosine[60:]) == {1.0}
    assert cosine == sorted(cosine)


# --- the authors' offline trainer --------------------------------------------------------------------


def test_cut_answers_are_closed_for_training_only(rollouts, policy):
    closed = with_end(rollouts, policy.eos_ids[0])
    assert 0 < int((~rollouts.finished).sum()) < len(rollouts), "both kinds are there"
    for i in range(len(rollouts)):
        n, more = int(rollouts.lengths[i]), int(closed.lengths[i]) - int(rollouts.lengths[i])
        assert more == int(not rollouts.finished[i])
        assert closed.tokens[i, :n].tolist() == rollouts.tokens[i, :n].tolist()
        if more:
            assert closed.tokens[i, n] == policy.eos_ids[0] and closed.log_probs[i, n].isnan()
    assert torch.equal(closed.log_probs[:, :-1].nan_to_num(), rollouts.log_probs), "nobody drew that token"


def test_append_eos_reaches_the_loss_but_not_the_canary(policy, problems, tmp_path):
    rows = {}
    for append in (False, True):
        config = preset(
            "offline-sft", **{**SMALL, "mini_batch": 8, "append_eos": append, "max_new_tokens": 3}
        )
        fresh = random_policy(seed=1)
        rows[append] = train(config, fresh, problems, tmp_path / str(append))[0]
    assert rows[True]["finished"] == rows[False]["finished"] < 1, "metrics describe what was drawn"
    assert rows[True]["loss"] != rows[False]["loss"]
    assert rows[True]["sampler_gap"] < 1e-5
    with pytest.raises(SeptError, match="append_eos"):
        preset("grpo", append_eos=True)


def test_cosine_decay(policy, problems, tmp_path):
    config = preset("sept", **{**SMALL, "rounds": 4, "warmup": 2, "lr_schedule": "cosine", "lr": 1e-3})
    rates = [row["lr"] for row in train(config, policy, problems, tmp_path / "run")]
    waves = [(1 + math.cos(math.pi * r / 4)) / 2 for r in range(4)]
    warm = [0.0, 0.5, 1.0, 1.0]
    assert rates == pytest.approx([1e-3 * w * v for w, v in zip(waves, warm, strict=True)])


def test_margins_are_recorded_on_the_way_and_change_nothing(problems, tmp_path):
    config = preset("sept", **{**SMALL, "rounds": 5, "margins_every": 2, "lr": 1e-3})
    rows = train(config, random_policy(seed=1), problems, tmp_path / "with")
    assert [row["round"] for row in rows if "slope" in row] == [1, 3, 4]
    assert rows[1]["slope"] != 1 and rows[1]["slope round"] != rows[1]["slope"]
    off = preset("sept", **{**SMALL, "rounds": 5, "margins_every": 0, "lr": 1e-3})
    assert off.key() == config.key(), "a measurement is not another run"
    plain = train(off, random_policy(seed=1), problems, tmp_path / "without")
    assert plain == [{k: v for k, v in row.items() if not k.startswith("slope")} for row in rows]
