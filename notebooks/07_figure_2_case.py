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
# # Figure 2: one question, two trajectories
#
# <!--index
# group: figures
# asks: What does SePT change in one answer, and in all?
# paper: Figures 2, 8, 9
# presets: sept-qwen2.5-math-7b-dsr
# -->
# **Question.** On a question that the base gets wrong and SePT gets right: did training only raise what the
# base preferred anyway, or does the trained model prefer a beginning that the base did not?
#
# **Answer.** It prefers what the base did not: over all questions like it, where the base prefers the wrong derivation, the margin of the right one
# grows by <!--laptop/07_figure_2_case:all questions, as in the case: margin where base prefers A/0-->+5.5 [<!--laptop/07_figure_2_case:all questions, as in the case: margin where base prefers A/1-->4.8, <!--laptop/07_figure_2_case:all questions, as in the case: margin where base prefers A/2-->6.1] nats (here $A$ is the base's text and $\hat A$ SePT's).
#
# ![Two trees of one question, base and SePT, with log-probs on the branches: the base's heavier branch is its wrong derivation, SePT's is the right one; below, the paper's two trees, in which the base already prefers the right text](../figures/laptop/figure_2.png)
#
# *Cost.* 1.8 core-minutes in profile laptop; at the paper's scale about 104 A800-hours (`sept plan`, 1 preset).
#
# The last cell prints three margins (right minus wrong log-prob) of one question before and after training, and
# the changes over all test questions, since one question is an anecdote. In the paper the base prefers the
# right text in all three places, and all margins grow. Two things are different here. The answer is read off
# the derivation, so after a *wrong* derivation both models prefer the wrong answer. And whether the base
# prefers the right derivation depends on the question; the last table therefore asks separately about the
# questions where it prefers the wrong one.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
from pathlib import Path

from sept import cases, experiments, figures, figures_cases, profiles
from sept.policy import load_policy
from sept.problems import load_problems
from sept.provenance import environment, write_text

scale = profiles.profile(profile)
provenance = {**environment(), "profile": profile, "config": scale.key(), "seeds": list(scale.seeds[:1])}
figures.use_style()

# %% [markdown]
# ## The two models
#
# The base, and SePT's first seed. Both answer every test question 16 times at temperature 1, with the same
# random numbers.

# %%
run = scale.runs("sept")[0]
experiments.compute([scale.score(run, 1.0, scale.dev)], label="figure 2")
trained = load_policy(str(experiments.run_folder(run) / "final"))
policies = {"base": load_policy(scale.model), "trained": trained}
problems = load_problems(scale.test)
drawn = {
    name: cases.draw_answers(policy, problems, 16, scale.max_new_tokens, engine=scale.engine)
    for name, policy in policies.items()
}

# %% [markdown]
# ## The case
#
# Chosen by a rule, not by hand; the column `rule` states it. $A\,B$ is the likeliest wrong answer that the base
# drew and $\hat A\,\hat B$ the likeliest right one that SePT drew, each cut before the `#` where the derivation ends and
# the answer begins (in the middle where there is no `#`). Every log-prob is a sum over tokens at temperature
# 1, end-of-sequence included. Both texts are picked for being likely where they were drawn, in the paper as here.

# %%
table = cases.find_case(policies, problems, drawn)
table[["model", "branch", "log_prob", "tokens", "text", "base_right", "trained_right", "n", "rule"]].round(
    3
)

# %%
figures.save_figure(figures_cases.figure_2, "figure_2", table, out_dir, provenance, measured=scale.label())

# %%
margins = cases.margins(table)
margins.round(3)

# %% [markdown]
# ## All questions
#
# Change of log-probs of prefixes, trained minus base, in nats, with a 95% bootstrap interval over the questions that have a
# wrong and a right answer with different prefixes. *As in the case* is favoured by how the texts are picked; *both from
# base* takes both texts from the base's own answers, so picking acts on both. The last two rows of each block split
# the questions by which prefix the base prefers at $\tau_s$. If SePT only amplified that preference on each
# question, the margin would fall where the base prefers $A$. (Nobody trained on these questions: what reaches them is what
# questions have in common.)

# %%
changes = cases.changes(policies, problems, drawn, run.config().tau_s)
write_text(Path(out_dir) / "figure_2_all.csv", changes.to_csv(index=False))
changes.round(3)

# %%
first = table.iloc[0]
headline = {
    "question": str(first["id"]),
    "rule": str(first["rule"]),
    "right of 16, base and SePT": [int(first["base_right"]), int(first["trained_right"])],
}
for row in margins.to_dict("records"):
    headline[f"{row['place']}: right minus wrong, base and SePT"] = [round(row[m], 4) for m in cases.MODELS]
    headline[f"{row['place']}: base prefers right, margin up"] = [bool(row["preferred"]), bool(row["up"])]
for row in changes.to_dict("records"):
    name = f"all questions, {row['texts']}: {row['quantity']}"
    headline[name] = [round(row[c], 4) for c in ("mean", "lo", "hi")]
experiments.record(out_dir, "07_figure_2_case", headline)
headline
