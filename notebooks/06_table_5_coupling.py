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
# # Table 5: do the two temperatures have to differ?
#
# <!--index
# group: tables
# asks: Do the two temperatures have to differ?
# paper: Tables 5, 11
# presets: sept-qwen2.5-math-7b-dsr, coupled-qwen2.5-math-7b-dsr
# -->
# **Question.** SePT samples at $\tau_s < \tau_t$. What if both are the same, or the wrong way round?
#
# **Answer.** Then nothing is gained: against the untrained model at 1, SePT changes AVG by <!--laptop/06_table_5_coupling:SePT minus baseline at 1, AVG/0-->+14.4 [<!--laptop/06_table_5_coupling:SePT minus baseline at 1, AVG/1-->12.1, <!--laptop/06_table_5_coupling:SePT minus baseline at 1, AVG/2-->16.6] points, coupled temperatures
# by <!--laptop/06_table_5_coupling:Coupled minus baseline at 1, AVG/0-->-11.5 [<!--laptop/06_table_5_coupling:Coupled minus baseline at 1, AVG/1-->-15.0, <!--laptop/06_table_5_coupling:Coupled minus baseline at 1, AVG/2-->-7.9], inverted ones by <!--laptop/06_table_5_coupling:Inverted minus baseline at 1, AVG/0-->-45.4 [<!--laptop/06_table_5_coupling:Inverted minus baseline at 1, AVG/1-->-51.6, <!--laptop/06_table_5_coupling:Inverted minus baseline at 1, AVG/2-->-39.1].
#
# ![Share of right answers and entropy while training: SePT rises and grows surer, three coupled arms drift down a little, the inverted arm loses nearly all right answers as its entropy climbs](../figures/laptop/table_5_training.png)
#
# *Cost.* 31.1 core-minutes in profile laptop; at the paper's scale about 207 A800-hours (`sept plan`, 2 presets).
#
# Equation 2 says that with $\tau_s = \tau_t$ the expected first step is zero, and Theorem 1 that with
# $\tau_s > \tau_t$ margins shrink. The tables show both on the embedded model, with every arm at SePT's own
# learning rate, where gradient noise alone makes a coupled run drift; `04_learning_rates` tells drift from
# signal. "Coupled" is shown in three readings: tied at 1, tied at 0.6, and tied to the annealed $\tau_s$, which
# is what the authors' switch does.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
from IPython.display import HTML

from sept import experiments, figures, figures_training, profiles, tables
from sept.evaluation import best_temperature, compare, comparison_table, detail_table
from sept.provenance import environment

scale = profiles.profile(profile)
arms = ("inverted", "coupled", "coupled-tau_s", "coupled-annealed", "sept")
provenance = {**environment(), "profile": profile, "config": scale.key(), "seeds": list(scale.seeds)}
figures.use_style()

# %% [markdown]
# ## No signal is not no change
#
# The *expected* gradient of a coupled arm is zero; the gradient of 128 sampled answers is not. At a
# learning rate that makes SePT learn, that noise moves the coupled models too: their entropy stays
# about where it was, their answers slowly get worse. `04_learning_rates` varies the rate.

# %%
runs = {arm: scale.runs(arm) for arm in arms}
finals = [scale.score(r) for arm in arms for r in runs[arm]]
experiments.compute([*scale.sweep().values(), *finals], label="table 5")
sweep = experiments.scored(scale.sweep())
scored = {arm: [experiments.scores(scale.score(r)) for r in runs[arm]] for arm in arms}

# %%
shown = {"accuracy": "right answers at tau_s (share)", "entropy": "entropy (nats)"}
curves = experiments.training_table([r for arm in arms for r in runs[arm]], shown)
figures.save_figure(figures_training.figure_training, "table_5_training", curves, out_dir, provenance)

# %% [markdown]
# ## Table 5

# %%
best = best_temperature(sweep)
baselines = {f"Baseline (T = {best})": sweep[best], "Baseline (T = 1.0)": sweep[1.0]}
table = comparison_table(baselines, {experiments.ARM_NAMES[arm]: scored[arm] for arm in arms})
HTML(tables.save_table(5, table, out_dir, scale.label()))

# %% [markdown]
# ## Table 11: family by family

# %%
counted = {
    experiments.ARM_NAMES[arm]: [experiments.counts(scale.score(r)) for r in runs[arm]] for arm in arms
}
untrained = {f"Baseline (T = {best})": [experiments.counts(scale.sweep()[best])]}
HTML(tables.save_table(11, detail_table(untrained | counted), out_dir, scale.label()))

# %%
headline = {"seeds": len(scale.seeds)}
for arm in arms:
    change = compare(scored[arm], sweep[1.0]).loc["AVG"]
    name = f"{experiments.ARM_NAMES[arm]} minus baseline at 1, AVG"
    headline[name] = [round(float(change[c]), 4) for c in ("value", "lo", "hi")]
decided = {
    "decoupling beats coupling": compare(scored["sept"], scored["coupled"]).loc["AVG"],
    "inversion hurts": compare(scored["inverted"], scored["coupled"]).loc["AVG"],
}
experiments.record(out_dir, "06_table_5_coupling", headline, decided)
headline
