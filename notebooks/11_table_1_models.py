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
# # Figure 7 and Table 1: models of other character
#
# <!--index
# group: tables
# asks: On which models does it help?
# paper: Figure 7, Tables 1, 7
# presets: sweep-qwen2.5-math-7b, sweep-qwen2.5-7b, sweep-qwen2.5-7b-instruct, sweep-deepseek-math-7b, sweep-llama-3.1-8b, sept-qwen2.5-math-7b-dsr, sept-qwen2.5-7b-dsr, sept-qwen2.5-7b-instruct-dsr, sept-deepseek-math-7b-dsr, sept-llama-3.1-8b-dsr, grpo-qwen2.5-math-7b-dsr, grpo-qwen2.5-7b-dsr, grpo-qwen2.5-7b-instruct-dsr, grpo-deepseek-math-7b-dsr, grpo-llama-3.1-8b-dsr
# -->
# **Question.** On which models does SePT help, and can one see it coming in their temperature curves?
#
# **Answer.** On two of four: against its best temperature H changes by <!--laptop/11_table_1_models:SePT minus baseline on H, AVG/0-->+14.3 [<!--laptop/11_table_1_models:SePT minus baseline on H, AVG/1-->12.0, <!--laptop/11_table_1_models:SePT minus baseline on H, AVG/2-->16.6] points of AVG, I by <!--laptop/11_table_1_models:SePT minus baseline on I, AVG/0-->+14.7 [<!--laptop/11_table_1_models:SePT minus baseline on I, AVG/1-->9.6, <!--laptop/11_table_1_models:SePT minus baseline on I, AVG/2-->19.7],
# F by <!--laptop/11_table_1_models:SePT minus baseline on F, AVG/0-->-3.9 [<!--laptop/11_table_1_models:SePT minus baseline on F, AVG/1-->-9.7, <!--laptop/11_table_1_models:SePT minus baseline on F, AVG/2-->1.8] and E by <!--laptop/11_table_1_models:SePT minus baseline on E, AVG/0-->-32.6 [<!--laptop/11_table_1_models:SePT minus baseline on E, AVG/1-->-51.2, <!--laptop/11_table_1_models:SePT minus baseline on E, AVG/2-->-14.0].
#
# ![pass@1 and pass@32 against the decoding temperature, four embedded bases on the left, four published models on the right: everywhere pass@1 falls with temperature; pass@32 rises on H and I, is near its ceiling on F, and on E rises steeply and collapses again beyond 0.5](../figures/laptop/figure_7.png)
#
# *Cost.* 50.8 core-minutes in profile laptop; at the paper's scale about 2,155 A800-hours (`sept plan`, 15 presets).
#
# The embedded world has bases of different character: H memorised noise, I is H fine-tuned on a hundred right
# answers, as instruction tuning is done, F was well trained, E was stopped early. SePT need not gain on all of them.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd
from IPython.display import HTML

from sept import experiments, figures, figures_scores, profiles, tables
from sept.evaluation import (
    best_temperature,
    compare,
    comparison_table,
    detail_table,
    difference,
    summarise,
    sweep_table,
)
from sept.provenance import environment

scale = profiles.profile(profile)
models, arms = (scale.model, *scale.others), ("sept", "grpo")
provenance = {**environment(), "profile": profile, "config": scale.key(), "seeds": list(scale.seeds)}
figures.use_style()

# %% [markdown]
# ## Figure 7: the untrained models
#
# Above 0 the AVG of H and of I hardly cares about the temperature, like that of the published instruction-tuned
# models: pass@1 falls as pass@32 rises. F and E fall steeply. F has a good greedy answer, so a trained F that is as sure
# at 1 as the untrained one is at 0.2 gains a lot on decoding at 1, and nothing on its best temperature; E's favourite
# answers are often wrong.

# %%
experiments.compute([s for m in models for s in scale.sweep(m).values()], label="sweeps")
sweeps = {m: experiments.scored(scale.sweep(m)) for m in models}
names = {m: scale.label(m).partition(",")[0] for m in models}
table = pd.concat([sweep_table(sweep).assign(model=names[m]) for m, sweep in sweeps.items()])
figures.save_figure(figures_scores.figure_7, "figure_7", table, out_dir, provenance)

# %% [markdown]
# ## Table 1
#
# Every model is trained with the same settings, those of base H: nothing was tuned for the others.

# %%
counts = {scale.model: None}
runs = {(m, a): scale.runs(a, counts.get(m, 3), model=m) for m in models for a in arms}
experiments.compute([scale.score(r) for group in runs.values() for r in group], label="table 1")
scored = {key: [experiments.scores(scale.score(r)) for r in group] for key, group in runs.items()}
best = {m: best_temperature(sweep) for m, sweep in sweeps.items()}

# %%
parts = []
for m in models:
    named = {experiments.ARM_NAMES[a]: scored[m, a] for a in arms}
    part = comparison_table({f"Baseline (T = {best[m]})": sweeps[m][best[m]]}, named)
    parts.append(part.assign(model=names[m]))
HTML(tables.save_table(1, pd.concat(parts, ignore_index=True), out_dir))

# %% [markdown]
# ## Table 7: family by family

# %%
details = []
for m in models:
    counted = {f"Baseline (T = {best[m]})": [experiments.counts(scale.sweep(m)[best[m]])]}
    for a in arms:
        counted[experiments.ARM_NAMES[a]] = [experiments.counts(scale.score(r)) for r in runs[m, a]]
    details.append(detail_table(counted).assign(model=names[m]))
HTML(tables.save_table(7, pd.concat(details, ignore_index=True), out_dir))

# %%
gains = {m: compare(scored[m, "sept"], sweeps[m][best[m]]).loc["AVG"] for m in models}
headline = {
    f"SePT minus baseline on {m}, AVG": [round(float(d[c]), 4) for c in ("value", "lo", "hi")]
    for m, d in gains.items()
}
headline |= {f"best T of {m}": tau for m, tau in best.items()} | {"seeds": len(scale.seeds)}
tuned = scale.others[0]
apart = [
    difference(
        difference(a, sweeps[scale.model][best[scale.model]]), difference(b, sweeps[tuned][best[tuned]])
    )
    for a, b in zip(scored[scale.model, "sept"], scored[tuned, "sept"], strict=False)
]
decided = {"instruction-tuned gains less": summarise(apart).loc["AVG"]}
experiments.record(out_dir, "11_table_1_models", headline, decided)
headline
