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
# # A model helps itself
#
# <!--index
# group: start
# asks: Can a model get better from its own answers alone?
# presets: sept-qwen2.5-math-7b-dsr
# -->
# **Question.** Can a language model get better at reasoning from its own answers alone, with nobody
# telling it which of them are right?
#
# **Answer.** Here it can: trained for a minute on its own answers, base **H** is right in <!--laptop/00_quickstart:after SePT pass@1-->63.9% of its answers
# instead of <!--laptop/00_quickstart:untrained pass@1-->31.7%.
#
# ![Three curves over 120 rounds of SePT: the share of right answers rises from 0.3 to 0.7, entropy falls from 0.08 to 0.02 nats, answers grow from 26 to 34 tokens](../figures/laptop/quickstart_training.png)
#
# *Cost.* 1.4 core-minutes and 0.8 GB of memory in profile laptop; 1.6 core-minutes in profile quick; at the paper's scale about 104 A800-hours (`sept plan`, 1 preset).
#
# Base H is a small language model that learned to write out additions and subtractions, then memorised a
# thousand documents full of slips. SePT (Self-evolving Post-Training) is three lines, repeated (Algorithm 1
# of the paper):
#
# 1. draw one answer to each question from the current model at a low temperature $\tau_s$,
# 2. take a step of plain supervised fine-tuning on those answers at $\tau_t = 1$,
# 3. let the updated model draw the next round.
#
# No reward, no verifier, no reference model. Everything below is measured on the embedded model
# with constant $\tau_s = 0.6$.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd

from sept import experiments, figures, figures_training, profiles
from sept.grading import grade
from sept.policy import load_policy
from sept.problems import load_problems
from sept.provenance import environment
from sept.sampling import make_sampler

scale = profiles.profile(profile)
figures.use_style()
environment()

# %% [markdown]
# ## A question and some answers
#
# A derivation runs column by column from the right. `>290=11` says: digits 2 and 9, carry 0 in,
# so 1 is carried out and 1 is written. The answer stands behind `#`. The base model has seen
# authors who slip, and at temperature 1 it slips like them.

# %%
before = load_policy(scale.model)
problems = load_problems(scale.test)
problem = problems.items[len(problems.items) // 3]
prompt = before.encode(problem.prompt)
drawn = make_sampler(before).sample([prompt], [problem.id], 8, 1.0, scale.max_new_tokens, seed=1)
texts = [before.decode(drawn.tokens[i, : drawn.lengths[i]].tolist()) for i in range(8)]
print(f"{problem.prompt} the right answer is {problem.answer}")
for text, finished in zip(texts, drawn.finished.tolist(), strict=True):
    print("  right " if grade(text, finished, problem, problems.world) else "  wrong ", text)

# %% [markdown]
# ## Train it on itself
#
# This runs the loop of `sept/loop.py` (or finds the run in the results store). Each round draws 128
# fresh questions, none of them a test question. The model never learns which of its answers were
# right. *We* look at that, in the left panel.

# %%
run = scale.runs("sept")[0]
experiments.compute([scale.score(run), scale.score(scale.model)], label="quickstart")
shown = {
    "accuracy": "right answers at tau_s (share)",
    "entropy": "entropy (nats)",
    "length": "length (tokens)",
}
table = experiments.training_table([run], shown)
provenance = {**environment(), "profile": profile, "seeds": [run.seed], "config": run.config().key()}
figures.save_figure(figures_training.figure_training, "quickstart_training", table, out_dir, provenance)

# %% [markdown]
# Three things happen together. Answers get better. Entropy falls: an ideal round would multiply
# every logit margin by $\tau_t/\tau_s = 1.67$ (Theorem 1), and real rounds go that way. And the model
# comes to prefer writing every column down, its most frequent way to work from the start, which makes
# answers longer.

# %%
after = load_policy(str(experiments.run_folder(run) / "final"))
drawn = make_sampler(after).sample([prompt], [problem.id], 8, 1.0, scale.max_new_tokens, seed=1)
texts = [after.decode(drawn.tokens[i, : drawn.lengths[i]].tolist()) for i in range(8)]
print(f"{problem.prompt} the right answer is {problem.answer}")
for text, finished in zip(texts, drawn.finished.tolist(), strict=True):
    print("  right " if grade(text, finished, problem, problems.world) else "  wrong ", text)

# %% [markdown]
# ## Before and after, at the same temperature
#
# Scores on test questions, 32 answers each at temperature 1, with 95% intervals over the questions.
# A fairer rival is the untrained model at *its* best temperature: see `03_main_result`.

# %%
from sept.evaluation import summarise

pairs = {"untrained": scale.model, "after SePT": run}
summary = {name: summarise([experiments.scores(scale.score(m))]) for name, m in pairs.items()}
pd.concat(summary).round(1)

# %% [markdown]
# ## Try it
#
# `sept train --arm sept --model H --out my-run --set tau_s=1.4` samples *hotter* than it trains.
# What does Theorem 1 predict? `--arm offline` never refreshes the sampler. Does it still help?

# %%
headline = {
    f"{name} {metric}": round(float(summary[name].loc[metric, "value"]), 4)
    for name in pairs
    for metric in ("pass@1", "pass@32", "AVG")
}
experiments.record(out_dir, "00_quickstart", headline)
headline
