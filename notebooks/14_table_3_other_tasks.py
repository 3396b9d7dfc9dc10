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
# # Table 3: what was never trained on
#
# <!--index
# group: tables
# asks: What becomes of what was never trained on?
# paper: Table 3
# presets: sept-qwen2.5-math-7b-dsr, grpo-qwen2.5-math-7b-dsr
# -->
# **Question.** Does SePT on one kind of question spoil what the model could do besides?
#
# **Answer.** No loss is seen: reversing and sorting digits change by <!--laptop/14_table_3_other_tasks:SePT minus baseline at 1, untrained tasks/0-->+2.4 [<!--laptop/14_table_3_other_tasks:SePT minus baseline at 1, untrained tasks/1-->-0.3, <!--laptop/14_table_3_other_tasks:SePT minus baseline at 1, untrained tasks/2-->5.1] points against decoding at 1, and by <!--laptop/14_table_3_other_tasks:SePT at 1 minus baseline greedy, untrained tasks/0-->+0.4 [<!--laptop/14_table_3_other_tasks:SePT at 1 minus baseline greedy, untrained tasks/1-->-3.2, <!--laptop/14_table_3_other_tasks:SePT at 1 minus baseline greedy, untrained tasks/2-->4.1] against greedy decoding.
#
# | on tasks never trained on, against the untrained model at 1 | points |
# |---|---|
# | SePT | <!--laptop/14_table_3_other_tasks:SePT minus baseline at 1, untrained tasks/0-->+2.4 [<!--laptop/14_table_3_other_tasks:SePT minus baseline at 1, untrained tasks/1-->-0.3, <!--laptop/14_table_3_other_tasks:SePT minus baseline at 1, untrained tasks/2-->5.1] |
# | SePT (annealed) | <!--laptop/14_table_3_other_tasks:SePT (annealed) minus baseline at 1, untrained tasks/0-->+0.9 [<!--laptop/14_table_3_other_tasks:SePT (annealed) minus baseline at 1, untrained tasks/1-->-1.8, <!--laptop/14_table_3_other_tasks:SePT (annealed) minus baseline at 1, untrained tasks/2-->3.6] |
# | GRPO | <!--laptop/14_table_3_other_tasks:GRPO minus baseline at 1, untrained tasks/0-->+3.9 [<!--laptop/14_table_3_other_tasks:GRPO minus baseline at 1, untrained tasks/1-->1.4, <!--laptop/14_table_3_other_tasks:GRPO minus baseline at 1, untrained tasks/2-->6.7] |
#
# *Cost.* 26.9 core-minutes in profile laptop; at the paper's scale about 362 A800-hours (`sept plan`, 2 presets).
#
# The base learned to reverse and to sort digits in pre-training; no arm ever trains on that. Differences are paired,
# question by question.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd
from IPython.display import HTML

from sept import experiments, profiles, tables
from sept.evaluation import compare, comparison_table
from sept.problems import load_problems

scale = profiles.profile(profile)
arms = ("sept", "sept-annealed", "grpo")
families = load_problems(scale.other_tasks).families

# %% [markdown]
# ## The two tasks
#
# Right answers in percent, 32 draws a question: pass@1. Everything is decoded at temperature 1, like the paper's
# trained models; greedy decoding of the untrained model is shown beside it, because a sharper model is
# also a more careful copyist.

# %%
runs = {arm: scale.runs(arm) for arm in arms}
base = {tau: scale.score(scale.model, tau, scale.other_tasks) for tau in (1.0, 0.0)}
finals = {arm: [scale.score(r, 1.0, scale.other_tasks) for r in runs[arm]] for arm in arms}
experiments.compute([*base.values(), *(s for group in finals.values() for s in group)], label="table 3")

# %%
untrained = experiments.scored(base)
scored = {arm: [experiments.scores(s) for s in group] for arm, group in finals.items()}
baselines = {"Baseline (T = 1.0)": untrained[1.0], "Baseline (greedy)": untrained[0.0]}

# %%
parts = []
for task, keep in {**{f: [f] for f in families}, "mean": families}.items():
    chosen = {
        name: [s[s["family"].isin(keep)].reset_index(drop=True) for s in group]
        for name, group in {**{k: [v] for k, v in baselines.items()}, **scored}.items()
    }
    named = {experiments.ARM_NAMES[a]: chosen[a] for a in arms}
    part = comparison_table({k: chosen[k][0] for k in baselines}, named)
    parts.append(part[part["metric"] == "pass@1"].assign(metric=task))
HTML(tables.save_table(3, pd.concat(parts, ignore_index=True), out_dir, scale.label()))

# %%
careful = compare(scored["sept"], untrained[0.0]).loc["pass@1"]
changes = {arm: compare(scored[arm], untrained[1.0]).loc["pass@1"] for arm in arms}
headline = {
    f"{experiments.ARM_NAMES[arm]} minus baseline at 1, untrained tasks": [
        round(float(d[c]), 4) for c in ("value", "lo", "hi")
    ]
    for arm, d in changes.items()
}
headline["SePT at 1 minus baseline greedy, untrained tasks"] = [
    round(float(careful[c]), 4) for c in ("value", "lo", "hi")
]
decided = {"general abilities are kept": changes["sept"]}
experiments.record(out_dir, "14_table_3_other_tasks", headline, decided)
headline
