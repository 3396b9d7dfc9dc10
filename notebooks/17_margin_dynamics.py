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
# # Margins while it trains
#
# <!--index
# group: theory
# asks: What do the methods do to the same margins while they train?
# presets: sept-qwen2.5-math-7b-dsr, em-ft-qwen2.5-math-7b-dsr, grpo-qwen2.5-math-7b-dsr, offline-qwen2.5-math-7b-dsr, coupled-qwen2.5-math-7b-dsr
# -->
# **Question.** An ordinary run takes two steps a round and never converges. How do its margins grow, at which
# kind of token, and what do the other methods do to the same margins?
#
# **Answer.** They grow to <!--laptop/17_margin_dynamics:SePT slope-->1.32 times the untrained model's under SePT, <!--laptop/17_margin_dynamics:GRPO slope-->1.34 under GRPO and <!--laptop/17_margin_dynamics:EM-FT slope-->1.61 under EM-FT, and a round of SePT
# attains <!--laptop/17_margin_dynamics:share of a round attained-->0.0085 of what a converged round would.
#
# ![Six panels of the slope on the untrained model's margins over 120 rounds: for all prefixes EM-FT rises to 1.6, GRPO and SePT to 1.3, offline to 1.1, coupled stays below 1; R2 stays above 0.998; the choice of style grows most](../figures/laptop/margin_dynamics.png)
#
# *Cost.* 33.0 core-minutes in profile laptop; at the paper's scale about 673 A800-hours (`sept plan`, 5 presets).
#
# Which decision sharpens most, and who sharpens the untrained model's own preferences rather than replacing them,
# is what the panels show. At the end there are exercises.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
from sept import experiments, figures, figures_training, profiles
from sept.provenance import environment

scale = profiles.profile(profile)
arms = ("sept", "em-ft", "grpo", "offline", "coupled")
runs = {arm: scale.runs(arm, 3) for arm in arms}
provenance = {**environment(), "profile": profile, "config": scale.key(), "seeds": list(scale.seeds[:3])}
figures.use_style()

# %% [markdown]
# ## The same prefixes for every arm
#
# Each run measures itself every ten rounds at prefixes that the untrained model wrote at temperature 1 (64
# answers to the run's first questions; all arms of a seed share them). `slope` is $\sum \mathrm{Cov}/\sum
# \mathrm{Var}$ of its logits on the untrained model's, weighted by the untrained model's probabilities: 1 means
# margins as they were, 2 twice as large, and a low $R^2$ that they were replaced rather than scaled.

# %%
experiments.compute([scale.points(r, 1)[0] for group in runs.values() for r in group], label="margins")
shown = {
    "slope": "all prefixes",
    "slope r2": "$R^2$ with the old margins",
    "slope style": "choice of style",
    "slope digit": "digits",
    "slope format": "format",
    "slope end": "end of the answer",
}
everything = [r for group in runs.values() for r in group]
have = {c: n for c, n in shown.items() if c in experiments.rounds_table(everything[0])}
curves = experiments.training_table(everything, have).dropna(subset=["value"])
figures.save_figure(figures_training.figure_training, "margin_dynamics", curves, out_dir, provenance)

# %% [markdown]
# The choice of style comes first in every answer, so it is visited most; whoever sharpens it turns a mixture of
# ways to work into one. Digits are mostly certain already, and carry little spread.
#
# ## How much of a round's promise is kept
#
# The theorem promises a factor $\tau_t/\tau_s$ per *converged* round. Two optimizer steps attain a share of it,
# $(\text{slope of the round} - 1)/(\tau_t/\tau_s - 1)$.

# %%
attained = {}
for run in runs["sept"]:
    rows = experiments.rounds_table(run).dropna(subset=["slope round"])
    rows = rows[rows["lr"] > 0]
    attained[run.seed] = float(((rows["slope round"] - 1) / (rows["tau_t"] / rows["tau_s"] - 1)).mean())
attained

# %%
last = curves[curves["round"] == curves["round"].max()].groupby(["arm", "metric"])["value"].mean().unstack()
last[[n for n in have.values()]].style.format(precision=2)

# %%
headline = {f"{arm} slope": round(float(v), 4) for arm, v in last["all prefixes"].items()}
headline |= {f"{arm} R2": round(float(v), 4) for arm, v in last["$R^2$ with the old margins"].items()}
headline["share of a round attained"] = round(sum(attained.values()) / len(attained), 4)
experiments.record(out_dir, "17_margin_dynamics", headline)
headline

# %% [markdown]
# ## Exercises
#
# **1.** A round attains a share $s$ of its promise: it multiplies margins by $1 + s\,(\tau_t/\tau_s - 1)$. With $\tau_s = 0.6$ and
# the $s$ printed above, how large would the slope be after 120 such rounds, and how many rounds would it take to
# reach one converged round, 1.667?
#
# <details><summary>Answer</summary>
#
# With $s$ = <!--laptop/17_margin_dynamics:share of a round attained-->0.0085 a round multiplies by <!--exercise:one round-->1.0057, so 120 make <!--exercise:120 rounds-->1.97, and one converged round takes <!--exercise:rounds for one-->91 of them.
#
# </details>
#
# **2.** The measured slope is smaller than that. Name a reason why slopes of rounds do not multiply to the slope of the
# whole run.
#
# <details><summary>Answer</summary>
#
# The measured one is <!--laptop/17_margin_dynamics:SePT slope-->1.3173. Each round's slope is weighted by what *that round's* sampler draws at prefixes that *it* visits; the
# slope of the run is weighted by the untrained model's probabilities at prefixes that the untrained model wrote, among
# them many that SePT no longer visits. And regressions multiply only where the residuals of one round do not covary
# with the margins of the next. This notebook does not say how much each reason counts.
#
# </details>
#
# **3.** If EM-FT and SePT only scaled the untrained model's margins, at which temperatures would the untrained model have
# to be decoded to look like them?
#
# <details><summary>Answer</summary>
#
# At one over their slopes: <!--exercise:EM-FT temperature-->0.62 and <!--exercise:SePT temperature-->0.76. If that were all, decoding could replace training; `02b_figure_6_trained` shows
# that it cannot, so what training gains lies in where the slopes differ between kinds of tokens.
#
# </details>
