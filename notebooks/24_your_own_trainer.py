# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own trainer
#
# <!--index
# group: beyond
# asks: Does it need this package's loop? SePT in TRL and verl, 40 lines each
# -->
# **Question.** Does SePT need this package's loop, or does it come out of TRL and verl as well?
#
# **Answer.** The method belongs to no framework: on the same tokens TRL's gradient is ours up to <!--laptop/24_your_own_trainer:gradient, SePT/0-->6.1e-6 of its size, and a base trained by TRL
# ends <!--laptop/24_your_own_trainer:SePT by TRL minus ours, AVG/0-->-1.7 [<!--laptop/24_your_own_trainer:SePT by TRL minus ours, AVG/1-->-4.0, <!--laptop/24_your_own_trainer:SePT by TRL minus ours, AVG/2-->0.6] points of AVG from one trained here.
#
# ![AVG, pass@1 and pass@32 by round for three seeds: this loop and TRL rise side by side, and TRL with its temperature set to 0.6 stays where it began](../figures/laptop/other_trainers.png)
#
# *Cost.* 15.5 core-minutes in profile laptop; nothing to run at the paper's scale.
#
# In both frameworks one setting turns SePT into its coupled control in silence: the sampling temperature also divides the
# logits of the loss. What is needed is in `docs/trainers`: `sept_trl.py` and `sept_verl.py`, each of at most 40 lines.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, their tables and the headline numbers go

# %%
import importlib.util
import sys
import time

import pandas as pd
import torch
from IPython.display import Code

from sept import experiments, figures, figures_training, profiles, runner
from sept.config import digest
from sept.evaluation import compare, family_means
from sept.policy import load_policy
from sept.problems import load_problems
from sept.provenance import environment, write_text

trainers = runner.notebooks_dir().parent / "docs" / "trainers"
sys.path.insert(0, str(trainers))
have_trl = importlib.util.find_spec("trl") is not None
if not have_trl:
    print("TRL is not installed, so its runs are left out: pip install -c constraints.txt '.[peers]'")
scale = profiles.profile(profile)
scale = scale if scale.model == "H" else profiles.profile("laptop")  # it is about trainers, not about size
provenance = {**environment(), "profile": profile, "model": "H", "TRL": have_trl}

# %% [markdown]
# ## In TRL
#
# ```python
# class SePTTrainer(GRPOTrainer):
#     def compute_loss(self, model, inputs, *args, **kwargs):
#         inputs = {**inputs, "advantages": torch.ones_like(inputs["advantages"])}
#         inputs.pop("old_per_token_logps", None)
#         return super().compute_loss(model, inputs, *args, **kwargs)
# ```
#
# GRPO's loss is $-A\,\pi_\theta/\pi_\text{old}$ for each token, with $A$ the reward less its group's mean. A constant
# reward gives $A = 0$ and no gradient at all; the one override sets $A = 1$. Without stored log-probs TRL divides by the
# detached $\pi_\theta$ itself, so the ratio is 1, is never clipped, and its gradient is that of $\log \pi_\theta$.
#
# **The trap.** `GRPOConfig(temperature=0.6)` draws at 0.6 *and* divides the logits of the loss by 0.6 (TRL 1.16:
# `add_fused_lm_head(..., temperature=self.temperature)`): that is $\tau_s = \tau_t$. So `temperature` is $\tau_t$,
# and $\tau_s$ goes into `generation_kwargs`, which changes the sampler alone.

# %%
Code((trainers / "sept_trl.py").read_text(), language="python")

# %% [markdown]
# ## The same tokens, the same gradient
#
# One real step of TRL's trainer is watched: the answers that it drew, and the gradient just before its optimizer uses
# it. Then this package's own step is taken on those answers. Distances are norms relative to our gradient's. TRL's
# default loss `dapo` is `token` here; its `grpo` is a mean over each answer, which is none of the paper's.
#
# TRL pads prompts on the left and leaves the positions to the model. Rotary positions forgive that to rounding; a model
# with absolute positions (GPT-2) gets another gradient where prompts differ in length.

# %%
common = {
    "report_to": "none",
    "disable_tqdm": True,
    "logging_strategy": "no",
    "dataloader_pin_memory": False,
}
common["max_completion_length"], train = scale.max_new_tokens, load_problems(scale.train)
variants = {
    "SePT": {},
    "SePT, 2 micro-batches": {"gradient_accumulation_steps": 2},
    "loss_type = grpo": {"loss_type": "grpo"},
    "temperature = 0.6": {"temperature": 0.6},
}
rows = []
for name, more in variants.items() if have_trl else ():
    from same_tokens import distance, our_gradient, trl_step
    from sept_trl import sept_trainer

    base = load_policy("H")
    prompts = [p.prompt for p in train.batch(0, 32, 0)]
    given = {**common, "max_grad_norm": 0, "save_strategy": "no", **more}
    rollouts, theirs = trl_step(
        sept_trainer(base.model, base.tokenizer, prompts, out_dir, answers=32, **given)
    )
    ours = {tau_t: our_gradient(load_policy("H"), rollouts, tau_t) for tau_t in (1.0, 0.6)}
    rows.append(
        {"TRL's step": name} | {f"from ours at tau_t = {t:g}": distance(g, theirs) for t, g in ours.items()}
    )
gradients = pd.DataFrame(rows)
gradients.style.format(precision=6)

# %% [markdown]
# ## The same training
#
# Both start from base **H** and draw two answers (the fewest that TRL allows) to each of 32 questions a round, the same
# questions in the same order, and take one step on them at the learning rate of every other notebook, without
# warm-up. The random numbers differ: here they belong to (seed, round, question, sample), in TRL to the process.

# %%
size = {"rounds": 2, "questions": 8} if profile == "smoke" else {"rounds": 60, "questions": 32}
runs = scale.runs("sept", 3, **size, mini_batch=size["questions"], G=2, warmup=0)
points = {run.seed: {p.at: p for p in scale.points(run, 5)} for run in runs}
arms = {"SePT by TRL": {}, "TRL, temperature = 0.6": {"temperature": 0.6}} if have_trl else {}
folders = {}
torch.set_num_threads(1)
for name, seed in [(name, run.seed) for name in arms for run in runs]:
    settings = {**size, **common, **arms[name], "seed": seed, "save_steps": max(1, size["rounds"] // 5)}
    folder = experiments.results_dir() / f"trl-{digest([settings, scale.train])[:16]}"
    folders[name, seed] = folder
    if not (folder / f"checkpoint-{size['rounds']}").is_dir():
        base, began = load_policy("H"), time.monotonic()
        drawn = [train.batch(r, size["questions"], seed) for r in range(settings.pop("rounds"))]
        prompts = [p.prompt for batch in drawn for p in batch]
        settings |= {
            "rounds": len(drawn),
            "answers": 2 * settings.pop("questions"),
            "save_only_model": True,
        }
        sept_trainer(base.model, base.tokenizer, prompts, folder, **settings).train()
        write_text(folder / "seconds", f"{time.monotonic() - began:.1f}")
experiments.note_cost(list(folders.values()))

# %%
curves, finals = (
    {("SePT", seed): at for seed, at in points.items()},
    {"SePT": [scale.score(r) for r in runs]},
)
for (name, seed), folder in folders.items():
    saved = {at: str(folder / f"checkpoint-{at}") for at in points[seed]}
    curves[name, seed] = {at: scale.score(path, 1.0, scale.curve) for at, path in saved.items()}
    finals.setdefault(name, []).append(scale.score(saved[size["rounds"]]))
untrained = scale.score("H")
wanted = [
    untrained,
    *(s for at in curves.values() for s in at.values()),
    *(s for f in finals.values() for s in f),
]
experiments.compute(wanted, label="trainers")

# %% [markdown]
# ## The figure
#
# This loop and TRL, solid and dashed, and what becomes of TRL's run if 0.6 is written where one would write it.

# %%
metrics = ("AVG", "pass@1", "pass@32")
table = [
    {"arm": name, "seed": seed, "round": at, "metric": f"{m} at T = 1 (%)", "value": 100 * means[m]}
    for (name, seed), scored in curves.items()
    for at, score in scored.items()
    for means in [family_means(experiments.scores(score))]
    for m in metrics
]
figures.save_figure(
    figures_training.figure_training, "other_trainers", pd.DataFrame(table), out_dir, provenance
)

# %% [markdown]
# ## In verl
#
# Three registries of verl 0.9.1 and a line of overrides: an advantage of 1 for every token, a policy loss of $-\log p$
# without ratio or clipping, and an agent loop that asks the engine for $\tau_s$. verl's `token-mean` is over a whole
# optimizer step, so it is `token` here. The old log-probs are computed all the same, a forward pass for nothing.
#
# **The same trap, better hidden.** `rollout.temperature=0.6` is put into every batch that the actor trains on
# (`trainer/ppo/v1/trainer_base.py`: `"temperature": self.config.actor_rollout_ref.rollout.temperature`), and the engine
# divides the logits by it before the log-probs (`workers/engine/fsdp/transformer_impl.py`:
# `_scale_logits_by_temperature`). A policy loss sees log-probs only, so it cannot undo this: the temperature must stay
# at $\tau_t = 1$ and be changed where the answers are asked for. verl's own `rollout.top_k=-1` is the whole softmax.
#
# **How far it was run, without a GPU.** On a CPU and gloo, with base **H**: verl's Hydra config with these overrides, all
# three registries through `VERL_USE_EXTERNAL_MODULES`, the advantages, and verl's FSDP2 engine with its actor loss, forward
# and backward; its gradient is ours to $10^{-5}$, in one micro-batch or four, and with the temperature at 0.6 it is that of
# $\tau_t = 0.6$ (`tests/test_other_trainers.py`, where verl is installed). Not run: Ray, vLLM or SGLang
# drawing the answers, the refresh of their weights, more than one process: verl's trainer wants a GPU for each.

# %%
Code((trainers / "sept_verl.py").read_text(), language="python")

# %%
scored = {name: [experiments.scores(s) for s in parts] for name, parts in finals.items()}
start = experiments.scores(untrained)
headline = {"TRL": have_trl, "seeds": len(runs), "questions": len(start), "rounds": size["rounds"]}
differences = {f"{name} minus untrained, AVG": compare(parts, start) for name, parts in scored.items()}
for name in arms:
    differences[f"{name} minus ours, AVG"] = compare(scored[name], scored["SePT"])
for name, difference in differences.items():
    headline[name] = [round(float(difference.loc["AVG", c]), 4) for c in ("value", "lo", "hi")]
for name, *both in gradients.itertuples(index=False):
    headline[f"gradient, {name}"] = [float(f"{d:.2g}") for d in both]
experiments.record(out_dir, "24_your_own_trainer", headline)
headline
