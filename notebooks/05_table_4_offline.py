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
# **Question.** SePT draws every round from the newest model. Is one frozen data set from the untrained
# model as good, if it is sampled at the same low temperature?
#
# **Answer.** The last cell prints it as a paired difference. Offline here is SePT in everything but the
# refresh: same rate, schedule, batches and number of answers. (The authors' offline arm differs in
# more than that: another trainer, a hundred times the rate, a cosine schedule.)
#
# The theory says what to expect: without a refresh, the target of every round is the same
# $q = \mathrm{softmax}(z_{\rm old}/\tau_s)$, so margins grow by $\tau_t/\tau_s$ *once*. With a refresh
# they grow every round.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.experiments.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
from IPython.display import HTML

from sept import experiments, figures, figures_training, tables
from sept.evaluation import best_temperature, comparison_table, difference, summarise
from sept.provenance import environment

scale = experiments.profile(profile)
arms = ("offline", "sept")
provenance = {**environment(), "profile": profile, "seeds": list(scale.seeds)}
figures.use_style()

# %% [markdown]
# ## Two arms, one difference
#
# The untrained model is shown at its best temperature and at temperature 1, where both arms are decoded.

# %%
runs = {arm: scale.runs(arm) for arm in arms}
base = {tau: scale.score(scale.model, tau) for tau in scale.temperatures}
experiments.compute([*base.values(), *(scale.score(r) for arm in arms for r in runs[arm])], label="table 4")
sweep = {tau: experiments.scores(score) for tau, score in base.items()}
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

# %%
pairs = [difference(a, b) for a, b in zip(scored["sept"], scored["offline"], strict=True)]
online = summarise(pairs).loc["AVG"]
over_one = summarise([difference(s, sweep[1.0]) for s in scored["offline"]]).loc["AVG"]
over_best = summarise([difference(s, sweep[best]) for s in scored["offline"]]).loc["AVG"]
headline = {
    "SePT minus Offline, AVG": [round(float(online[c]), 4) for c in ("value", "lo", "hi")],
    "Offline minus baseline at 1, AVG": [round(float(over_one[c]), 4) for c in ("value", "lo", "hi")],
    "Offline minus best baseline, AVG": [round(float(over_best[c]), 4) for c in ("value", "lo", "hi")],
    "seeds": len(scale.seeds),
}
experiments.record(out_dir, "05_table_4_offline", headline)
headline
