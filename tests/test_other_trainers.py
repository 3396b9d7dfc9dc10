"""SePT inside TRL and verl: on the same tokens their steps have this package's gradient.

verl asks for other versions than this package's, so its tests run where it is installed, in an environment
of its own: `pip install verl==0.9.1 pytest pytest-timeout -e .`, then this file with `-k verl`.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_policy
from scipy import stats

from sept.policy import BASES, load_policy
from sept.problems import load_problems
from sept.sampling import make_sampler

ROOT = Path(__file__).resolve().parent.parent
TRAINERS = ROOT / "docs" / "trainers"
sys.path.insert(0, str(TRAINERS))
pytestmark = pytest.mark.slow

from same_tokens import distance, our_gradient, trl_step  # noqa: E402

QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False}
LIMIT = 12


def test_each_is_at_most_forty_lines_and_the_notebook_shows_them():
    for name in ("sept_trl.py", "sept_verl.py"):
        assert len((TRAINERS / name).read_text().splitlines()) <= 40
    shown = re.search(
        r"# ```python\n(.*?)# ```", (ROOT / "notebooks" / "24_your_own_trainer.py").read_text(), re.S
    )
    core = [line[2:] for line in shown[1].splitlines()]
    own = [line.partition("  #")[0] for line in (TRAINERS / "sept_trl.py").read_text().splitlines()]
    assert len(core) == 5 and set(core) <= set(own)


def defective(rollouts, how):
    """The same rollouts with one of the usual mistakes in what is trained on."""
    if how == "end left out":
        return replace(rollouts, lengths=rollouts.lengths - rollouts.finished.long())
    if how == "shifted by one":
        return replace(rollouts, tokens=rollouts.tokens.roll(1, 1))
    last = torch.tensor([p[-1] for p in rollouts.prompts])  # a prompt token is in the loss
    tokens = torch.cat([last[:, None], rollouts.tokens], 1)
    prompts = [p[:-1] for p in rollouts.prompts]
    unknown, lengths = torch.zeros(tokens.shape), rollouts.lengths + 1
    return replace(rollouts, prompts=prompts, tokens=tokens, lengths=lengths, log_probs=unknown)


DEFECTS = ("end left out", "shifted by one", "prompt in the loss")


# ---------------------------------------------------------------------------------------------------- TRL


def trained(policy, prompts, **more):
    """A step of SePT in TRL on `policy`: (rollouts, gradient). `finished` is filled in."""
    pytest.importorskip("trl")
    from sept_trl import sept_trainer

    options = {
        **QUIET,
        "max_grad_norm": 0,
        "max_completion_length": LIMIT,
        "answers": 16,
        "rounds": 1,
        **more,
    }
    with tempfile.TemporaryDirectory() as out:
        rollouts, gradient = trl_step(sept_trainer(policy.model, policy.tokenizer, prompts, out, **options))
    ends = torch.tensor(policy.eos_ids)
    last = rollouts.tokens.gather(1, rollouts.lengths[:, None] - 1)
    return replace(rollouts, finished=torch.isin(last[:, 0], ends)), gradient


def words(count):
    """Prompts of 2 to 6 tokens for the random models."""
    return [" ".join(f"w{(7 * i + j) % 290}" for j in range(2 + i % 5)) for i in range(count)]


@pytest.mark.parametrize("kind", ["qwen2", "H"])
@pytest.mark.parametrize("parts", [1, 2])
def test_trl_has_our_gradient(kind, parts):
    made = partial(random_policy, seed=3) if kind == "qwen2" else partial(load_policy, "H")
    prompts = (
        words(32) if kind == "qwen2" else [p.prompt for p in load_problems("toy:train").batch(0, 32, 0)]
    )
    length = LIMIT if kind == "qwen2" else 56
    rollouts, theirs = trained(
        made(), prompts, gradient_accumulation_steps=parts, max_completion_length=length
    )
    assert len(rollouts) == 16 * parts and len(set(map(len, rollouts.prompts))) > 1
    assert rollouts.finished.any() and (rollouts.finished | (rollouts.lengths == length)).all()
    if kind == "H":  # the same questions, token by token
        asked = [made().encode(p) for p in prompts[: 8 * parts] for _ in range(2)]
        assert sorted(rollouts.prompts) == sorted(asked)
    assert distance(our_gradient(made(), rollouts), theirs) <= 1e-5
    assert distance(our_gradient(made(), rollouts, tau_t=0.6), theirs) > 0.1
    for how in DEFECTS:
        assert distance(our_gradient(made(), defective(rollouts, how)), theirs) > 0.01, how


def test_the_temperature_of_trl_is_that_of_the_loss_too():
    """The trap: with temperature = 0.6, TRL's step is that of tau_t = 0.6."""
    rollouts, theirs = trained(random_policy(seed=3), words(32), temperature=0.6)
    assert distance(our_gradient(random_policy(seed=3), rollouts, tau_t=0.6), theirs) <= 1e-5
    assert distance(our_gradient(random_policy(seed=3), rollouts), theirs) > 0.1


def test_without_the_override_a_constant_reward_has_no_gradient():
    trl = pytest.importorskip("trl")
    from sept_trl import SePTTrainer

    own = SePTTrainer.compute_loss
    try:
        SePTTrainer.compute_loss = trl.GRPOTrainer.compute_loss
        _, theirs = trained(random_policy(seed=3), words(32))
    finally:
        SePTTrainer.compute_loss = own
    assert theirs.abs().max() == 0


def test_trl_draws_from_the_whole_softmax_at_tau_s():
    """Chi-square of first tokens, on a model whose own generation config would truncate."""
    policy = random_policy(seed=3)
    policy.model.generation_config.top_k, policy.model.generation_config.top_p = 50, 0.8
    prompts, seen = ["w1 w2 w3"] * 1024, []
    for seed in range(2):
        rollouts, _ = trained(policy, prompts, answers=2048, max_completion_length=1, seed=seed)
        seen.append(rollouts.tokens[:, 0])
    with torch.no_grad():
        z = random_policy(seed=3).model(torch.tensor([rollouts.prompts[0]])).logits[0, -1].double()
    counts = np.bincount(torch.cat(seen), minlength=len(z))

    def chance(tau):
        expected = torch.softmax(z / tau, 0).numpy() * counts.sum()
        order = np.argsort(-expected)
        bins = np.minimum(np.cumsum(expected[order]) // 40, expected.sum() // 40 - 1)  # 40 draws each
        e, n = (np.bincount(bins.astype(int), x[order]) for x in (expected, counts))
        return stats.chisquare(n[e > 0], e[e > 0] * n[e > 0].sum() / e[e > 0].sum()).pvalue

    assert chance(0.6) > 1e-3
    assert chance(0.66) < 1e-6 and chance(1.0) < 1e-6
    assert counts[torch.argsort(z, descending=True)[50:].numpy()].sum() > 50, "behind the 50 likeliest"


@pytest.mark.parametrize("parts", [1, 2])
def test_sft_in_trl_has_our_gradient_on_given_tokens(parts):
    """What SFTTrainer divides by is the number of response tokens of the whole step, accumulated or not."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import TrainerCallback

    policy = random_policy(seed=3)
    prompts = [policy.encode(p) for p in words(16)]
    drawn = make_sampler(policy).sample(prompts, [str(i) for i in range(16)], 1, 0.6, LIMIT, 0)
    answers = [t[:n].tolist() for t, n in zip(drawn.tokens, drawn.lengths, strict=True)]
    rows = [
        {"input_ids": p + a, "labels": [-100] * len(p) + a} for p, a in zip(prompts, answers, strict=True)
    ]
    kept = []

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            kept.append(torch.cat([p.grad.flatten() for p in model.parameters()]))

    with tempfile.TemporaryDirectory() as out:
        config = trl.SFTConfig(
            output_dir=out, max_steps=1, per_device_train_batch_size=16 // parts, max_grad_norm=0, bf16=False,
            gradient_accumulation_steps=parts, gradient_checkpointing=False, **QUIET,
        )  # fmt: skip
        trl.SFTTrainer(
            policy.model,
            config,
            train_dataset=Dataset.from_list(rows),
            processing_class=policy.tokenizer,
            callbacks=[Keep()],
        ).train()
    assert drawn.finished.any()
    assert distance(our_gradient(random_policy(seed=3), drawn), kept[0]) <= 1e-5
    for how in DEFECTS:
        assert distance(our_gradient(random_policy(seed=3), defective(drawn, how)), kept[0]) > 0.01, how


# --------------------------------------------------------------------------------------------------- verl


def on_cpu():
    """verl knows GPUs only: a CPU, through its own registry of platforms and with gloo."""
    from verl.plugin.platform import platform_manager
    from verl.plugin.platform.platform_base import PlatformBase

    known = {
        "device_name": "cpu",
        "vendor_name": "cpu",
        "device_module": torch.cpu,
        "current_device": lambda self: "cpu",
        "communication_backend_name": lambda self: "gloo",
        "is_available": lambda self: True,
    }
    rest = {name: lambda self, *_, **__: None for name in PlatformBase.__abstractmethods__ - set(known)}
    platform_manager.set_platform(type("CPU", (PlatformBase,), known | rest)())


@pytest.fixture(scope="module")
def verl():
    """verl's own config with the overrides of `sept_verl.py`, and its FSDP2 engine with base H on one CPU."""
    pytest.importorskip("verl")
    on_cpu()
    import sept_verl
    from hydra import compose, initialize_config_module
    from verl.trainer.config import CheckpointConfig
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    needed = [
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.rollout.name=vllm",
    ]
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=[*sept_verl.OVERRIDES, *needed])
    with tempfile.TemporaryDirectory() as out:
        torch.distributed.init_process_group("gloo", init_method=f"file://{out}/meet", rank=0, world_size=1)
        plain = dict.fromkeys(("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32")
        engine = FSDPEngineWithLMHead(
            HFModelConfig(
                path=str(BASES / "H"),
                use_remove_padding=False,
                enable_gradient_checkpointing=False,
                override_config={"attn_implementation": "sdpa"},
            ),
            FSDPEngineConfig(strategy="fsdp2", use_torch_compile=False, mixed_precision=plain),
            FSDPOptimizerConfig(lr=1e-4, clip_grad=1e9, total_training_steps=1),
            CheckpointConfig(),
        )
        engine.initialize()
        actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
        yield config, actor, engine
        torch.distributed.destroy_process_group()


def verl_batch(rollouts, temperature, micro_batch):
    """Rollouts as verl's trainer hands them to its actor: prompts padded on the left, answers on the right."""
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import left_right_2_no_padding

    rows, width = len(rollouts), max(map(len, rollouts.prompts))
    prompts, seen = torch.zeros(2, rows, width, dtype=torch.long)
    for i, prompt in enumerate(rollouts.prompts):
        prompts[i, width - len(prompt) :] = torch.tensor(prompt)
        seen[i, width - len(prompt) :] = 1
    limit = int(rollouts.lengths.max())
    mask = (torch.arange(limit) < rollouts.lengths[:, None]).long()
    answers, attention = rollouts.tokens[:, :limit] * mask, torch.cat([seen, mask], 1)
    advantages, _ = get_adv_estimator_fn("sept")(
        token_level_rewards=torch.zeros(rows, limit), response_mask=mask
    )
    data = {
        "prompts": prompts,
        "responses": answers,
        "input_ids": torch.cat([prompts, answers], 1),
        "attention_mask": attention,
        "position_ids": (attention.cumsum(1) - 1).clamp_min(0),
        "response_mask": mask,
        "old_log_probs": torch.zeros(rows, limit),
        "advantages": advantages,
    }
    batch = left_right_2_no_padding(tu.get_tensordict(data))
    tu.assign_non_tensor(
        batch,
        temperature=temperature,
        micro_batch_size_per_gpu=micro_batch,
        global_batch_size=rows,
        use_dynamic_bsz=False,
        use_remove_padding=False,
        use_fused_kernels=False,
        calculate_entropy=False,
    )
    return batch


def verl_gradient(verl, rollouts, temperature, micro_batch=16):
    """Gradient of verl's actor loss (`ppo_loss` with the registered policy loss), through its engine."""
    from verl.workers.utils.losses import ppo_loss

    _, actor, engine = verl
    with engine.train_mode():
        engine.optimizer_zero_grad()
        batch = verl_batch(rollouts, temperature, micro_batch)
        engine.forward_backward_batch(batch, partial(ppo_loss, config=actor))
        parts = [p.grad for p in engine.module.parameters()]
        return torch.cat(
            [(g.full_tensor() if hasattr(g, "full_tensor") else g).flatten() for g in parts]
        ).clone()


@pytest.fixture(scope="module")
def drawn():
    policy = load_policy("H")
    questions = load_problems("toy:train").batch(0, 32, 0)
    prompts = [policy.encode(q.prompt) for q in questions]
    return make_sampler(policy).sample(prompts, [q.id for q in questions], 1, 0.6, 56, 0)


@pytest.mark.parametrize("micro_batch", [32, 8])
def test_verl_has_our_gradient(verl, drawn, micro_batch):
    config = verl[0]
    theirs = verl_gradient(verl, drawn, config.actor_rollout_ref.rollout.temperature, micro_batch)
    assert distance(our_gradient(load_policy("H"), drawn), theirs) <= 1e-5
    for how in DEFECTS:
        assert distance(our_gradient(load_policy("H"), defective(drawn, how)), theirs) > 0.01, how


def test_the_temperature_of_verl_is_that_of_the_loss_too(verl, drawn):
    """The trap: `rollout.temperature=0.6` reaches the actor (verl 0.9.1: trainer/ppo/v1/trainer_base.py)."""
    theirs = verl_gradient(verl, drawn, 0.6)
    assert distance(our_gradient(load_policy("H"), drawn, tau_t=0.6), theirs) <= 1e-5
    assert distance(our_gradient(load_policy("H"), drawn), theirs) > 0.1


def test_verl_takes_what_the_file_registers(verl):
    import sept_verl
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn

    config = verl[0]
    rollout = config.actor_rollout_ref.rollout
    assert get_adv_estimator_fn(config.algorithm.adv_estimator) is sept_verl.every_answer_alike
    assert get_policy_loss_fn(config.actor_rollout_ref.actor.policy_loss.loss_mode) is sept_verl.minus_log_p
    loop = _agent_loop_registry[rollout.agent.default_agent_loop]["_target_"]
    assert loop == "sept_verl.DrawAtTauS"
    assert (rollout.temperature, rollout.top_k, rollout.top_p, rollout.n) == (1.0, -1, 1.0, 1)
    # What the server is asked for: tau_s, and else what it would have been asked for.
    asked = []

    async def watched(self, sampling_params, **kwargs):
        asked.append(sampling_params)

    own, SingleTurnAgentLoop.run = SingleTurnAgentLoop.run, watched
    try:
        agent = object.__new__(sept_verl.DrawAtTauS)
        agent.rollout_config = rollout
        asyncio.run(agent.run({"temperature": rollout.temperature, "top_k": -1}, raw_prompt=[]))
    finally:
        SingleTurnAgentLoop.run = own
    assert asked == [{"temperature": 0.6, "top_k": -1}]


def test_every_process_of_verl_knows_them(verl):
    """Started as the file says: workers import what VERL_USE_EXTERNAL_MODULES names with verl itself."""
    code = (
        "import verl; from verl.trainer.ppo import core_algos as c; c.get_policy_loss_fn('sept'); "
        "c.get_adv_estimator_fn('sept'); from sept_verl import *; print(*OVERRIDES)"
    )
    known = {**os.environ, "VERL_USE_EXTERNAL_MODULES": "sept_verl", "PYTHONPATH": str(TRAINERS)}
    done = subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "algorithm.adv_estimator=sept" in done.stdout.split()
