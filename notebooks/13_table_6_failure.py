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
# # Table 6: a model that does not help itself
#
# <!--index
# group: tables
# asks: Which model does not help itself?
# paper: Tables 6, 12
# presets: sweep-llama-3.1-8b, sept-llama-3.1-8b-dsr, sept-llama-3.1-8b-otm, grpo-llama-3.1-8b-dsr, grpo-llama-3.1-8b-otm
# -->
# **Question.** The paper's Llama loses by SePT. Is there a base like that here, and does the question set save it?
#
# **Answer.** Base E, and it does not: SePT changes it by <!--laptop/13_table_6_failure:SePT (all families) minus baseline on E, AVG/0-->-32.6 [<!--laptop/13_table_6_failure:SePT (all families) minus baseline on E, AVG/1-->-51.2, <!--laptop/13_table_6_failure:SePT (all families) minus baseline on E, AVG/2-->-14.0] points of AVG,
# and <!--laptop/13_table_6_failure:SePT (additions) minus baseline on E, AVG/0-->-26.2 [<!--laptop/13_table_6_failure:SePT (additions) minus baseline on E, AVG/1-->-36.2, <!--laptop/13_table_6_failure:SePT (additions) minus baseline on E, AVG/2-->-16.1] with the other set.
#
# | against the best temperature of E, AVG | SePT | GRPO |
# |---|---|---|
# | trained on all families | <!--laptop/13_table_6_failure:SePT (all families) minus baseline on E, AVG/0-->-32.6 [<!--laptop/13_table_6_failure:SePT (all families) minus baseline on E, AVG/1-->-51.2, <!--laptop/13_table_6_failure:SePT (all families) minus baseline on E, AVG/2-->-14.0] | <!--laptop/13_table_6_failure:GRPO (all families) minus baseline on E, AVG/0-->-12.2 [<!--laptop/13_table_6_failure:GRPO (all families) minus baseline on E, AVG/1-->-13.7, <!--laptop/13_table_6_failure:GRPO (all families) minus baseline on E, AVG/2-->-10.7] |
# | trained on additions | <!--laptop/13_table_6_failure:SePT (additions) minus baseline on E, AVG/0-->-26.2 [<!--laptop/13_table_6_failure:SePT (additions) minus baseline on E, AVG/1-->-36.2, <!--laptop/13_table_6_failure:SePT (additions) minus baseline on E, AVG/2-->-16.1] | <!--laptop/13_table_6_failure:GRPO (additions) minus baseline on E, AVG/0-->-12.7 [<!--laptop/13_table_6_failure:GRPO (additions) minus baseline on E, AVG/1-->-14.5, <!--laptop/13_table_6_failure:GRPO (additions) minus baseline on E, AVG/2-->-10.8] |
#
# *Cost.* 13.2 core-minutes in profile laptop; at the paper's scale about 860 A800-hours (`sept plan`, 5 presets).
#
# Base E was stopped early: its favourite answers are often wrong, and its best scores come from asking it often.
# Sharpening can lock those favourites in. GRPO, which is told what is right, loses on it too at this rate, by less.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd
from IPython.display import HTML

from sept import experiments, profiles, tables
from sept.evaluation import best_temperature, compare, comparison_table, detail_table

scale = profiles.profile(profile)
models, arms = (scale.others[-1],), ("grpo", "sept")
names = {m: scale.label(m).partition(",")[0] for m in models}
sets = {scale.train: "all families", scale.other_train: "additions"}  # as the embedded world names them

# %% [markdown]
# ## The weak base, with both question sets
#
# Settings are those of base H; no rate was tuned for this base.

# %%
runs = {(m, a, s): scale.runs(a, 3, model=m, train=s) for m in models for a in arms for s in sets}
finals = [scale.score(r) for group in runs.values() for r in group]
experiments.compute([*finals, *(s for m in models for s in scale.sweep(m).values())], label="table 6")

# %%
sweeps = {m: experiments.scored(scale.sweep(m)) for m in models}
best = {m: best_temperature(sweep) for m, sweep in sweeps.items()}
scored = {key: [experiments.scores(scale.score(r)) for r in group] for key, group in runs.items()}

# %%
parts = []
for m in models:
    named = {f"{experiments.ARM_NAMES[a]} ({sets[s]})": scored[m, a, s] for a in arms for s in sets}
    rows = [comparison_table({f"Baseline (T = {best[m]})": sweeps[m][best[m]]}, named)]
    for a in arms:
        whole, part = (scored[m, a, s] for s in sets)
        apart = f"{experiments.ARM_NAMES[a]} ({' minus '.join(sets.values())})"
        rows.append(compare(whole, part).reset_index().assign(method=apart))
    parts.append(pd.concat(rows).assign(model=names[m]))
HTML(tables.save_table(6, pd.concat(parts, ignore_index=True), out_dir))

# %% [markdown]
# Rows with a *minus* are paired differences of the two question sets, with their interval.
#
# ## Table 12: family by family

# %%
details = []
for m in models:
    counted = {f"Baseline (T = {best[m]})": [experiments.counts(scale.sweep(m)[best[m]])]}
    for a in arms:
        for s in sets:
            drawn = [experiments.counts(scale.score(r)) for r in runs[m, a, s]]
            counted[f"{experiments.ARM_NAMES[a]} ({sets[s]})"] = drawn
    details.append(detail_table(counted).assign(model=names[m]))
HTML(tables.save_table(12, pd.concat(details, ignore_index=True), out_dir))

# %%
weak = models[0]
gains = {
    (a, s): compare(scored[weak, a, s], sweeps[weak][best[weak]]).loc["AVG"] for a in arms for s in sets
}
headline = {
    f"{experiments.ARM_NAMES[a]} ({sets[s]}) minus baseline on {weak}, AVG": [
        round(float(d[c]), 4) for c in ("value", "lo", "hi")
    ]
    for (a, s), d in gains.items()
}
decided = {"a weak base fails": gains["sept", scale.train]}
experiments.record(out_dir, "13_table_6_failure", headline, decided)
headline
