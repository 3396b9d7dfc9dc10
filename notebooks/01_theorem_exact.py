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
# # The theorem, exactly
#
# <!--index
# group: theory
# asks: What does one ideal round do to every logit margin, and what breaks it?
# paper: Theorem 1
# -->
# **Question.** Sample answers at temperature $\tau_s$, do plain supervised fine-tuning on them at
# temperature $\tau_t$: what does the model become?
#
# **Answer.** One ideal round multiplies *every* logit margin at every prefix that can be visited by the same number,
# $z'_i - z'_j = \frac{\tau_t}{\tau_s}\,(z_i - z_j)$, here to <!--laptop/01_theorem_exact:largest_distance_from_theorem_1-->3.6e-15 of a nat
# over <!--laptop/01_theorem_exact:pairs_per_temperature-->465 pairs of tokens at each temperature.
#
# ![Margins after the round against margins before: the points of four sampling temperatures lie on four straight lines of slope 3.33, 1.67, 1 and 0.71; beside it their distances from the lines, all below 1e-14](../figures/laptop/theorem_margins.png)
#
# *Cost.* 0.2 core-minutes and 0.6 GB of memory in profile laptop; nothing to run at the paper's scale.
#
# Sampling colder than training ($\tau_s < \tau_t$) sharpens, sampling hotter flattens, and equal temperatures
# do nothing at all. This notebook checks that on a policy small enough to write down all of its answers, so
# nothing is estimated unless we say so. It also shows what breaks it: truncated sampling, and dividing the
# loss by lengths. At the end there are exercises.

# %% tags=["parameters"]
profile = (
    "quick"  # str: "smoke" shrinks the tree and the samples; the statements are exact in every profile
)
out_dir = "figures/quick"  # str: where figures, their tables and the headline numbers go
seed = 0  # int: seed of the policy's logits and of the finite samples

# %%
import pandas as pd

from sept import figures_theory, statements, tabular
from sept.experiments import record
from sept.figures import save_figure
from sept.provenance import environment
from sept.schedules import tau_s_at

n_tokens, horizon, repetitions = (5, 2, 500) if profile == "smoke" else (6, 3, 2000)
tree = tabular.build_tree(n_tokens, horizon)
logits = tabular.random_logits(tree, seed, spread=1.0)
provenance = {**environment(), "profile": profile, "seed": seed, "policy": "tabular softmax"}
print(f"{tree.parent.size} prefixes, {tree.length.size} complete answers, {n_tokens} tokens")

# %% [markdown]
# ## Two views of one round
#
# The round's loss is a sum over whole answers $o$ drawn from the frozen old policy (equation 1):
# $$L(\theta) = -\mathbb{E}_{o\sim\pi_{\rm old}(\cdot;\tau_s)}
# \sum_t \log \pi_\theta(o_t \mid o_{<t};\tau_t).$$
# **Proposition 1** regroups it by prefix $s$. With the occupancy $d(s)$, the chance that a draw *at
# $\tau_s$* visits $s$, and the sharpened teacher $q = \mathrm{softmax}(z/\tau_s)$,
# $$L(\theta) = \sum_s d(s)\,
# \big[H(q_s) + \mathrm{KL}\big(q_s \,\|\, \pi_\theta(\cdot\mid s;\tau_t)\big)\big].$$
# So a round is distillation from the model's own cold copy. **Equation 2** is its first gradient,
# $$\nabla_{z_s} L\,\big|_{\theta_{\rm old}} = \frac{d(s)}{\tau_t}
# \big[\mathrm{softmax}(z_s/\tau_t) - \mathrm{softmax}(z_s/\tau_s)\big],$$
# which vanishes when $\tau_s = \tau_t$: coupled temperatures leave nothing but noise to learn from.
# Setting the KL to zero gives **Theorem 1**, the formula at the top.
#
# The table below computes the two sides of each statement by different routes and reports the
# largest difference. Rows marked *at least* are controls: a premise is broken on purpose, and the
# deviation must be visible. The optimiser is given the sampled tokens' weights, never the answer.

# %%
report = pd.DataFrame(statements.exact_report(seed, n_tokens, horizon))
assert report["holds"].all(), report.loc[~report["holds"], "statement"].tolist()
report.style.format({"residual": "{:.1e}", "tolerance": "{:.0e}"}).hide(axis="index")

# %% [markdown]
# ## Every margin grows by exactly $\tau_t/\tau_s$
#
# Each point is one pair of tokens at one prefix, before and after a fitted round with $\tau_t = 1$.
# The lines are not fits, they are the theorem. All points sit on them to rounding error, rare
# tokens and rare prefixes included.
#
# Two things the picture does not say. A *single gradient step* obeys no such law: it moves margins
# by Equation 2, unevenly, and it may even shrink the margin between two unlikely tokens while the
# likeliest pulls away (the "one step" rows above). And a vanishing gradient does not mean arrival:
# at $\tau_s = 0.1$ the gradient is at rounding level while tail margins are still far too small.

# %%
margin_table = pd.DataFrame(statements.margin_rows(tree, logits, (0.3, 0.6, 1.0, 1.4)))
save_figure(figures_theory.figure_margins, "theorem_margins", margin_table, out_dir, provenance)

# %% [markdown]
# ## Rounds multiply
#
# Refreshing the sampler applies the theorem again to its own result. After $R$ rounds margins have
# grown by $\prod_r \tau_t^{(r)}/\tau_s^{(r)}$. With $\tau_s$ held at 0.6 growth is exponential and
# never ends; annealing $\tau_s$ to 1 makes the product converge, so the schedule sets the final
# sharpness. These are *ideal* rounds, each trained to its optimum; real rounds take a step or two.

# %%
rounds = 6
schedules = {
    "SePT, constant": [(0.6, 1.0)] * rounds,
    "SePT, annealed": [(tau_s_at(r / rounds, 0.6, 1.0, "linear"), 1.0) for r in range(rounds)],
    "coupled": [(1.0, 1.0)] * rounds,
    "inverted": [(1.4, 1.0)] * rounds,
}
round_table = pd.DataFrame(statements.round_rows(tree, logits, schedules))
save_figure(figures_theory.figure_rounds, "theorem_rounds", round_table, out_dir, provenance)

# %% [markdown]
# ## With finitely many samples
#
# A round sees $N$ draws at a prefix, not $q$. The best fit is then
# $z' = \tau_t \log(\text{counts})$, and a margin is off by about
# $\tau_t\sqrt{(1/q_i + 1/q_j)/N}$: rare tokens are learned badly. The divergence from the teacher
# falls like $(A-1)/(2N)$ for $A$ tokens. Points summarise 2,000 repetitions (500 in the smoke
# profile), so they are known to a few percent, less than their size.

# %%
teacher = tabular.token_probs(logits[0], 0.6)
sizes = [2**k for k in range(11, 18)]
sample_table = pd.DataFrame(statements.finite_sample_rows(teacher, sizes, 1.0, repetitions, seed))
save_figure(figures_theory.figure_finite_sample, "theorem_finite_sample", sample_table, out_dir, provenance)

# %% [markdown]
# ## The loss must be a sum
#
# Code often averages over tokens instead. If the $b$ answers that share a denominator have lengths
# $\ell_1,\dots,\ell_b$, a token of an answer of length $\ell$ counts, in expectation,
# $$b\;\mathbb{E}\Big[\frac{1}{\ell + L_2 + \dots + L_b}\Big],$$
# so tokens that lead to *short* answers count more, and the teacher is bent towards ending early.
# Coupled temperatures then no longer give a zero expected gradient. Only $b$ matters, not how many
# micro-batches are accumulated: $b = 1$ is the mean per answer, $b = 4$ the micro-batch of the
# authors' released code, $b = 64$ one full mini-batch. The bend falls like $1/b$. Answers here have
# one to three tokens, so the sizes are this toy's own.

# %%
bend_table = pd.DataFrame(statements.normalisation_rows(tree, logits, 0.6, 1.0, (4, 32, 64)))
shown = bend_table[(bend_table["reduction"] != "token") | ~(bend_table["batch"] < 64)]
shown = shown[(shown["reduction"] != "microbatch-token") | (shown["batch"] < 64)]
save_figure(figures_theory.figure_normalisations, "theorem_normalisations", shown, out_dir, provenance)

# %% [markdown]
# ## What to remember
#
# Ideal SePT is temperature scaling written into the weights: after rounds with
# $\prod_r \tau_t^{(r)}/\tau_s^{(r)} = c$, decoding the new model at temperature 1 is decoding the
# *old* one at temperature $1/c$. What it needs: sampling from the full softmax (top-k and top-p
# send the removed tokens' margins to infinity and leave unreached prefixes as they were), the sum
# over tokens as loss, and enough draws. Whatever a real model gains *beyond* the old one decoded
# at its best temperature has to come from what a table lacks: parameters shared between prefixes,
# and rounds that stop short of their optimum.

# %%
last_round = round_table.groupby("schedule", sort=False)["growth"].last()
by_loss = bend_table.set_index(["reduction", "batch"])["max_bend"]
headline = {
    "statements": len(report),
    "statements_that_hold": int(report["holds"].sum()),
    "pairs_per_temperature": len(margin_table) // margin_table["tau_s"].nunique(),
    "largest_distance_from_theorem_1": float(margin_table["residual"].abs().max()),
    "growth_after_6_rounds_constant": float(last_round["SePT, constant"]),
    "growth_after_6_rounds_annealed": float(last_round["SePT, annealed"]),
    "worst_finite_sample_ratio": float(sample_table["worst_ratio"].max()),
    "bend_sequence_mean_nats": float(by_loss["sequence-mean"].iloc[0]),
    "bend_microbatch_4_nats": float(by_loss["microbatch-token", 4.0]),
}
residual = [headline["largest_distance_from_theorem_1"]] * 3
record(out_dir, "01_theorem_exact", headline, {"margins grow by tau_t / tau_s": residual})
pd.Series(headline, dtype=object).to_frame("value")

# %% [markdown]
# ## Exercises
#
# **1.** At one prefix the logits are $z = (2, 1, 0)$. What does an ideal round at $\tau_s = 0.5$, $\tau_t = 1$ make of the
# probability of the first token, decoded at 1?
#
# <details><summary>Answer</summary>
#
# Before, it is $e^2/(e^2+e+1)$ = <!--exercise:first token before-->0.665. All margins double, so the new logits are $(4, 2, 0)$ up to a
# constant, and it becomes $e^4/(e^4+e^2+1)$ = <!--exercise:first token after-->0.867, just as if the old model were decoded at 0.5.
#
# </details>
#
# **2.** How many ideal rounds at $\tau_s = 0.8$ sharpen at least as much as one at 0.5? And how large can the total
# factor become if round $r = 0, 1, \dots, R-1$ is drawn at $\tau_s = 0.6 + 0.4\, r/R$, for $R = 6$?
#
# <details><summary>Answer</summary>
#
# $1.25^n \ge 2$ needs $n \ge \ln 2/\ln 1.25$ = <!--exercise:rounds needed-->3.11, so <!--exercise:rounds-->4 rounds. The annealed product is
# $\prod_r 1/(0.6 + 0.4\,r/6)$ = <!--exercise:annealed product-->5.27. (This notebook's schedule holds $\tau_s = 1$ in its last third, as the
# paper's does, so it stops at <!--laptop/01_theorem_exact:growth_after_6_rounds_annealed-->3.31.)
#
# </details>
#
# **3.** Again $z = (2, 1, 0)$ and $\tau_s = 0.5$, but the sampler keeps the two likeliest tokens only. What is the new
# probability of the first token, and what became of the margin to the third?
#
# <details><summary>Answer</summary>
#
# Draws come from $q$ without its tail: $e^4/(e^4+e^2)$ = <!--exercise:first token, truncated-->0.881. The third token is never drawn, so no finite logit
# is optimal: its margin grows without bound. That is no sharpening by $\tau_t/\tau_s$ but a loss of support.
#
# </details>
#
# **4.** The full softmax at $\tau_s = 0.5$, but a round has only $N = 100$ draws at this prefix. How likely is it that the
# third token is never drawn, so that the round treats it as in exercise 3? How many draws make that less likely
# than 1%?
#
# <details><summary>Answer</summary>
#
# $q_3 = 1/(e^4+e^2+1)$ = <!--exercise:q3-->0.0159, and $(1-q_3)^{100}$ = <!--exercise:never drawn-->0.20. For 1% one needs $N \ge \ln 0.01/\ln(1-q_3)$, which is <!--exercise:draws needed-->288 draws.
#
# </details>
