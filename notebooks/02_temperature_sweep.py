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
# # Temperature: what can be had without training
#
# <!--index
# group: figures
# asks: What can be had by temperature alone?
# paper: Figure 1a
# presets: sweep-qwen2.5-math-7b
# -->
# **Question.** SePT makes a model sharper. Why not simply decode the untrained model at a lower
# temperature?
#
# **Answer.** That is the baseline to beat, and no single temperature is good at everything: pass@1 is best at <!--laptop/02_temperature_sweep:best T for pass@1-->0
# (greedy), pass@32 at <!--laptop/02_temperature_sweep:best T for pass@32-->1.3, their mean with pass@8 at <!--laptop/02_temperature_sweep:best T for AVG-->0.9.
#
# ![Above, measured: pass@1 of the untrained model falls with the decoding temperature and pass@32 rises, family by family; below, published: pass@32 rises at first, and both collapse beyond 1.2](../figures/laptop/figure_1a.png)
#
# *Cost.* 3.2 core-minutes in profile laptop; 1.7 core-minutes in profile quick; at the paper's scale about 21 A800-hours (`sept plan`, 1 preset).
#
# The paper shows this in Figure 1a. It is measured here on the embedded model and drawn above the
# published curves, which are tinted. What training does to the curve is in `02b_figure_6_trained`.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd

from sept import experiments, figures, figures_scores, profiles
from sept.evaluation import best_temperature, peak_shift, sweep_table
from sept.provenance import environment

scale = profiles.profile(profile)
provenance = {**environment(), "profile": profile, "config": scale.key(), "seeds": list(scale.seeds)}
measured = scale.label()
figures.use_style()

# %% [markdown]
# ## Figure 1a: the untrained model
#
# For each temperature, $n$ = 32 answers to every test question; pass@$k$ is the chance that at
# least one of $k$ answers is right, estimated without bias from the 32. At 0 there is one greedy
# answer, so all pass@$k$ are equal there (the paper leaves pass@32 out at 0). The band around the
# mean is a 95% bootstrap interval over questions.

# %%
experiments.compute(scale.sweep().values(), label="base")
sweep = experiments.scored(scale.sweep())
table = sweep_table(sweep)
figures.save_figure(figures_scores.figure_1a, "figure_1a", table, out_dir, provenance, measured=measured)

# %% [markdown]
# Cold decoding picks the model's favourite answer again and again: good if the favourite is right,
# hopeless if it is not, however often one asks. Heat buys variety and pays with slips in every
# column. So pass@1 falls with temperature while pass@32 rises, above as below. What differs is the far
# end: below, everything collapses beyond 1.2, the small arithmetic model still writes derivations.

# %%
best = {m: best_temperature(sweep, m) for m in ("pass@1", "pass@8", "pass@32", "AVG")}
pd.Series(best, name="best temperature")

# %% [markdown]
# ## The claim
#
# How far apart are the two best temperatures? The interval resamples the questions and looks for the
# best temperatures again each time.

# %%
shift = peak_shift(sweep, "pass@1", "pass@32")
headline = {f"best T for {m}": tau for m, tau in best.items()}
experiments.record(out_dir, "02_temperature_sweep", headline, {"cold pass@1, warm pass@32": shift})
headline
