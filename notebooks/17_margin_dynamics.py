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
# **Question.** An ordinary run takes two steps a round and never converges. How do its margins grow, at which
# kind of token, and what do the other methods do to the same margins?
#
# **Answer.** SePT's margins grow round by round, by a small part of what the theorem allows each round; the
# last cell prints how small. Which decision sharpens most, and who sharpens the untrained model's own
# preferences rather than replacing them, is what the panels show.

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
