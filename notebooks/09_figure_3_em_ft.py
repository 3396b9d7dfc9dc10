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
# # Figure 3: is it just lower entropy?
#
# <!--index
# group: figures
# asks: Is it just lower entropy?
# paper: Figure 3, Table 9
# presets: sept-qwen2.5-math-7b-dsr, em-ft-qwen2.5-math-7b-dsr, sept-deepseek-math-7b-dsr, em-ft-deepseek-math-7b-dsr
# -->
# **Question.** SePT makes a model surer of itself. Does minimising its entropy directly (EM-FT) do as well?
#
# **Answer.** Here it does better, against the paper: SePT minus EM-FT is <!--laptop/09_figure_3_em_ft:SePT minus EM-FT on H, AVG/0-->-11.8 [<!--laptop/09_figure_3_em_ft:SePT minus EM-FT on H, AVG/1-->-16.6, <!--laptop/09_figure_3_em_ft:SePT minus EM-FT on H, AVG/2-->-7.0] points of AVG on base H
# and <!--laptop/09_figure_3_em_ft:SePT minus EM-FT on I, AVG/0-->-9.5 [<!--laptop/09_figure_3_em_ft:SePT minus EM-FT on I, AVG/1-->-13.1, <!--laptop/09_figure_3_em_ft:SePT minus EM-FT on I, AVG/2-->-5.8] on base I.
#
# ![AVG of the untrained model, EM-FT and SePT with intervals: on both embedded bases EM-FT ends above SePT and both above the untrained model; in the paper's two panels SePT ends above EM-FT](../figures/laptop/figure_3.png)
#
# *Cost.* 21.4 core-minutes in profile laptop; at the paper's scale about 456 A800-hours (`sept plan`, 4 presets).
#
# In the paper SePT beats EM-FT on two models. Both arms see the same questions, draw as many answers, take as many
# steps at the same rate; EM-FT at its own best rate is in `04_learning_rates`.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd
from IPython.display import HTML

from sept import experiments, figures, figures_training, profiles, tables
from sept.evaluation import best_temperature, compare, comparison_table, detail_table
from sept.provenance import environment

scale = profiles.profile(profile)
models, arms = (scale.model, scale.others[0]), ("em-ft", "sept")
provenance = {**environment(), "profile": profile, "config": scale.key(), "seeds": list(scale.seeds[:3])}
figures.use_style()

# %% [markdown]
# ## Two models, three ways to be surer
#
# The baseline is surer by a lower decoding temperature, its best one on these questions. EM-FT draws at
# temperature 1 and pushes down the entropy of every next-token distribution on the way; SePT fits its own
# answers at $\tau_s$.

# %%
runs = {(m, a): scale.runs(a, 3, model=m) for m in models for a in arms}
finals = [scale.score(r) for group in runs.values() for r in group]
experiments.compute([*finals, *(s for m in models for s in scale.sweep(m).values())], label="figure 3")
sweeps = {m: experiments.scored(scale.sweep(m)) for m in models}
best = {m: best_temperature(sweep) for m, sweep in sweeps.items()}
scored = {key: [experiments.scores(scale.score(r)) for r in group] for key, group in runs.items()}

# %%
parts = []
for m in models:
    named = {experiments.ARM_NAMES[a]: scored[m, a] for a in arms}
    part = comparison_table({f"Baseline (T = {best[m]})": sweeps[m][best[m]]}, named)
    parts.append(part[part["metric"] == "AVG"].assign(model=scale.label(m).partition(",")[0]))
table = pd.concat(parts, ignore_index=True)
figures.save_figure(figures_training.figure_3, "figure_3", table, out_dir, provenance)

# %%
shown = {
    "accuracy": "right answers when drawn (share)",
    "entropy": "entropy (nats)",
    "length": "length (tokens)",
}
curves = experiments.training_table([r for a in arms for r in runs[scale.model, a]], shown)
figures.save_figure(figures_training.figure_training, "figure_3_training", curves, out_dir, provenance)

# %% [markdown]
# Entropy falls in both arms, further in EM-FT. In this world most errors are slips of a model that knows
# better, so surer is better almost everywhere; nothing punishes a model for being sure of one style. Whether
# that carries over to mathematics in words is what the published panel answers: it does not.
#
# ## Table 9: family by family

# %%
details = []
for m in models:
    counted = {f"Baseline (T = {best[m]})": [experiments.counts(scale.sweep(m)[best[m]])]}
    for a in arms:
        counted[experiments.ARM_NAMES[a]] = [experiments.counts(scale.score(r)) for r in runs[m, a]]
    details.append(detail_table(counted).assign(model=scale.label(m).partition(",")[0]))
HTML(tables.save_table(9, pd.concat(details, ignore_index=True), out_dir))

# %%
apart = {m: compare(scored[m, "sept"], scored[m, "em-ft"]).loc["AVG"] for m in models}
headline = {
    f"SePT minus EM-FT on {m}, AVG": [round(float(d[c]), 4) for c in ("value", "lo", "hi")]
    for m, d in apart.items()
}
headline["seeds"] = len(runs[scale.model, "sept"])
experiments.record(out_dir, "09_figure_3_em_ft", headline, {"SePT beats EM-FT": apart[scale.model]})
headline
