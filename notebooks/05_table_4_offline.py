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
# # Table 4: does the sampler have to keep up?
#
# <!--index
# group: tables
# asks: Does the sampler have to keep up?
# paper: Tables 4, 10
# presets: sept-qwen2.5-math-7b-dsr, offline-qwen2.5-math-7b-dsr
# -->
# **Question.** SePT draws every round from the newest model. Is one frozen data set from the untrained
# model as good, if it is sampled at the same low temperature?
#
# **Answer.** No: SePT ends <!--laptop/05_table_4_offline:SePT minus Offline, AVG/0-->+11.7 [<!--laptop/05_table_4_offline:SePT minus Offline, AVG/1-->9.8, <!--laptop/05_table_4_offline:SePT minus Offline, AVG/2-->13.6] points of AVG above it, and the frozen set gains <!--laptop/05_table_4_offline:Offline minus best baseline, AVG/0-->+2.6 [<!--laptop/05_table_4_offline:Offline minus best baseline, AVG/1-->1.5, <!--laptop/05_table_4_offline:Offline minus best baseline, AVG/2-->3.7] over the best temperature.
#
# ![Share of right answers, entropy and length while training: SePT's curves keep moving for 120 rounds, those of both offline arms stay where they began](../figures/laptop/table_4_training.png)
#
# *Cost.* 22.0 core-minutes in profile laptop; at the paper's scale about 207 A800-hours (`sept plan`, 2 presets).
#
# Offline here is SePT in everything but the refresh: same rate, schedule, batches and number of answers. The
# authors' offline arm differs in more than that (another trainer, cosine decay, one step a round, cut answers
# closed with an end-of-sequence), so it is a row of its own; its rate is its best on the grid of
# `04_learning_rates`.
#
# The theory says what to expect: without a refresh, the target of every round is the same
# $q = \mathrm{softmax}(z_{\rm old}/\tau_s)$, so margins grow by $\tau_t/\tau_s$ *once*. With a refresh
# they grow every round.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
from IPython.display import HTML

from sept import experiments, figures, figures_training, profiles, tables
from sept.evaluation import best_temperature, compare, comparison_table, detail_table
from sept.provenance import environment

scale = profiles.profile(profile)
arms = ("offline", "offline-sft", "sept")
provenance = {**environment(), "profile": profile, "config": scale.key(), "seeds": list(scale.seeds)}
figures.use_style()

# %% [markdown]
# ## Two arms, one difference, and the authors' trainer
#
# The untrained model is shown at its best temperature and at temperature 1, where both arms are decoded.

# %%
runs = {arm: scale.runs(arm) for arm in arms}
finals = [scale.score(r) for arm in arms for r in runs[arm]]
experiments.compute([*scale.sweep().values(), *finals], label="table 4")
sweep = experiments.scored(scale.sweep())
scored = {arm: [experiments.scores(scale.score(r)) for r in runs[arm]] for arm in arms}

# %%
shown = {
    "accuracy": "right answers at tau_s (share)",
    "entropy": "entropy (nats)",
    "length": "length (tokens)",
}
curves = experiments.training_table([r for arm in arms for r in runs[arm]], shown)
figures.save_figure(figures_training.figure_training, "table_4_training", curves, out_dir, provenance)

# %% [markdown]
# The offline sampler never changes, so its answers stay as good and as long as the untrained model's at
# $\tau_s$; the entropy of the model that is trained on them falls at first and then stays.
#
# ## Table 4

# %%
best = best_temperature(sweep)
baselines = {f"Baseline (T = {best})": sweep[best], "Baseline (T = 1.0)": sweep[1.0]}
table = comparison_table(baselines, {experiments.ARM_NAMES[arm]: scored[arm] for arm in arms})
HTML(tables.save_table(4, table, out_dir, scale.label()))

# %% [markdown]
# ## Table 10: family by family

# %%
counted = {
    experiments.ARM_NAMES[arm]: [experiments.counts(scale.score(r)) for r in runs[arm]] for arm in arms
}
untrained = {f"Baseline (T = {best})": [experiments.counts(scale.sweep()[best])]}
HTML(tables.save_table(10, detail_table(untrained | counted), out_dir, scale.label()))

# %%
online = compare(scored["sept"], scored["offline"]).loc["AVG"]
gain = compare(scored["offline"], sweep[best]).loc["AVG"]
changes = {
    "SePT minus Offline": online,
    "SePT minus Offline (authors' trainer)": compare(scored["sept"], scored["offline-sft"]).loc["AVG"],
    "Offline minus baseline at 1": compare(scored["offline"], sweep[1.0]).loc["AVG"],
    "Offline minus best baseline": gain,
}
headline = {f"{k}, AVG": [round(float(v[c]), 4) for c in ("value", "lo", "hi")] for k, v in changes.items()}
headline["seeds"] = len(scale.seeds)
decided = {"online beats offline": online, "offline still gains": gain}
experiments.record(out_dir, "05_table_4_offline", headline, decided)
headline
