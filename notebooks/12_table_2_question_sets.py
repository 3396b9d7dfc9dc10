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
# # Table 2: does it matter what is asked?
#
# <!--index
# group: tables
# asks: Does it matter what is asked?
# paper: Tables 2, 8
# presets: sept-qwen2.5-math-7b-dsr, sept-qwen2.5-math-7b-otm, grpo-qwen2.5-math-7b-dsr, grpo-qwen2.5-math-7b-otm, sept-deepseek-math-7b-dsr, sept-deepseek-math-7b-otm, grpo-deepseek-math-7b-dsr, grpo-deepseek-math-7b-otm
# -->
# **Question.** Two question sets of different composition: does training depend on the choice?
#
# **Answer.** GRPO's does, SePT's may: GRPO on H loses <!--laptop/12_table_2_question_sets:GRPO on H, all families minus additions, AVG/0-->6.8 [<!--laptop/12_table_2_question_sets:GRPO on H, all families minus additions, AVG/1-->4.0, <!--laptop/12_table_2_question_sets:GRPO on H, all families minus additions, AVG/2-->9.6] points of AVG if only additions are asked, SePT <!--laptop/12_table_2_question_sets:SePT on H, all families minus additions, AVG/0-->2.1 [<!--laptop/12_table_2_question_sets:SePT on H, all families minus additions, AVG/1-->-2.4, <!--laptop/12_table_2_question_sets:SePT on H, all families minus additions, AVG/2-->6.6]; the difference of the two is not decided.
#
# | lost by asking additions only, AVG | SePT | GRPO |
# |---|---|---|
# | base H | <!--laptop/12_table_2_question_sets:SePT on H, all families minus additions, AVG/0-->+2.1 [<!--laptop/12_table_2_question_sets:SePT on H, all families minus additions, AVG/1-->-2.4, <!--laptop/12_table_2_question_sets:SePT on H, all families minus additions, AVG/2-->6.6] | <!--laptop/12_table_2_question_sets:GRPO on H, all families minus additions, AVG/0-->+6.8 [<!--laptop/12_table_2_question_sets:GRPO on H, all families minus additions, AVG/1-->4.0, <!--laptop/12_table_2_question_sets:GRPO on H, all families minus additions, AVG/2-->9.6] |
# | base I | <!--laptop/12_table_2_question_sets:SePT on I, all families minus additions, AVG/0-->+4.8 [<!--laptop/12_table_2_question_sets:SePT on I, all families minus additions, AVG/1-->-4.0, <!--laptop/12_table_2_question_sets:SePT on I, all families minus additions, AVG/2-->13.6] | <!--laptop/12_table_2_question_sets:GRPO on I, all families minus additions, AVG/0-->+6.8 [<!--laptop/12_table_2_question_sets:GRPO on I, all families minus additions, AVG/1-->4.6, <!--laptop/12_table_2_question_sets:GRPO on I, all families minus additions, AVG/2-->8.9] |
#
# *Cost.* 43.8 core-minutes in profile laptop; at the paper's scale about 1,594 A800-hours (`sept plan`, 8 presets).
#
# Less for SePT than for GRPO, says the paper. Here one set has all six families, the other additions only, so that half
# of what is scored was never asked in training; the last cell compares how much each arm loses by that.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd
from IPython.display import HTML

from sept import experiments, profiles, tables
from sept.evaluation import best_temperature, compare, comparison_table, dependence, detail_table

scale = profiles.profile(profile)
models, arms = (scale.model, scale.others[0]), ("grpo", "sept")
names = {m: scale.label(m).partition(",")[0] for m in models}
sets = {scale.train: "all families", scale.other_train: "additions"}  # as the embedded world names them

# %% [markdown]
# ## Two sets, two arms, two models
#
# The second set is narrower than the paper's second set, on purpose: an effect that is there should be seen.

# %%
runs = {(m, a, s): scale.runs(a, 3, model=m, train=s) for m in models for a in arms for s in sets}
finals = [scale.score(r) for group in runs.values() for r in group]
experiments.compute([*finals, *(s for m in models for s in scale.sweep(m).values())], label="table 2")

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
HTML(tables.save_table(2, pd.concat(parts, ignore_index=True), out_dir))

# %% [markdown]
# Rows with a *minus* are paired differences of the two question sets, with their interval.
#
# ## Table 8: family by family

# %%
details = []
for m in models:
    counted = {f"Baseline (T = {best[m]})": [experiments.counts(scale.sweep(m)[best[m]])]}
    for a in arms:
        for s in sets:
            drawn = [experiments.counts(scale.score(r)) for r in runs[m, a, s]]
            counted[f"{experiments.ARM_NAMES[a]} ({sets[s]})"] = drawn
    details.append(detail_table(counted).assign(model=names[m]))
HTML(tables.save_table(8, pd.concat(details, ignore_index=True), out_dir))

# %%
lost = {(m, a): compare(*(scored[m, a, s] for s in sets)) for m in models for a in arms}
headline = {
    f"{experiments.ARM_NAMES[a]} on {m}, all families minus additions, AVG": [
        round(float(d.loc["AVG", c]), 4) for c in ("value", "lo", "hi")
    ]
    for (m, a), d in lost.items()
}
size = {a: dependence(*(scored[scale.model, a, s] for s in sets)) for a in arms}
decided = {"question set matters less": compare(size["grpo"], size["sept"]).loc["AVG"]}
experiments.record(out_dir, "12_table_2_question_sets", headline, decided)
headline
