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
# # Table 3: general abilities, asked by lm-evaluation-harness
#
# <!--index
# group: tables
# asks: What changes in tasks that somebody else asks and grades?
# paper: Table 3
# presets: sept-qwen2.5-math-7b-dsr
# -->
# **Question.** What does SePT change in tasks that somebody else asks and grades?
#
# **Answer.** Choosing the right derivation of a sum gains <!--laptop/15_table_3_general:toy_choose_derivation, acc, SePT minus untrained/0-->+2.8 [<!--laptop/15_table_3_general:toy_choose_derivation, acc, SePT minus untrained/1-->1.2, <!--laptop/15_table_3_general:toy_choose_derivation, acc, SePT minus untrained/2-->4.5] points; choosing among
# reversals and sortings (<!--laptop/15_table_3_general:toy_choose_rev_sort, acc, SePT minus untrained/0-->+0.5 [<!--laptop/15_table_3_general:toy_choose_rev_sort, acc, SePT minus untrained/1-->-1.0, <!--laptop/15_table_3_general:toy_choose_rev_sort, acc, SePT minus untrained/2-->2.5]) and writing them (<!--laptop/15_table_3_general:toy_write_rev_sort, exact_match, SePT minus untrained/0-->+0.0 [<!--laptop/15_table_3_general:toy_write_rev_sort, exact_match, SePT minus untrained/1-->-3.5, <!--laptop/15_table_3_general:toy_write_rev_sort, exact_match, SePT minus untrained/2-->3.5]) do not change measurably.
#
# ![Bars of three small tasks before and after SePT, above: 92.7, 96.5 and 71.5 percent before, at most 2.8 points more after; below, the paper's five benchmarks before, after SePT and after GRPO, all within two points](../figures/laptop/figure_general.png)
#
# *Cost.* 3.4 core-minutes in profile laptop; at the paper's scale about 104 A800-hours (`sept plan`, 1 preset).
#
# On a real model these are IFEval, BBH, GPQA, MuSR and MMLU-Pro, as in the paper. The embedded model knows nothing but
# digits, so here the same machinery asks three small tasks of its own world, which are no general abilities:
# which of four derivations of a sum is the right one (next to what is trained, never trained itself), the same
# for reversing and sorting, and reversing and sorting outright (neither is trained on).

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
from pathlib import Path

from sept import experiments, figures, figures_general, general, profiles, published
from sept.policy import BASES
from sept.provenance import environment, write_text

scale = profiles.profile(profile)
run = scale.runs("sept", 1)[0]
tasks = ("toy",) if (BASES / scale.model).is_dir() else published.TABLE_3_TASKS
limit = {"smoke": 16, "gpu": 100}.get(profile)  # questions per task; None: all
provenance = {**environment(), "profile": profile, "config": scale.key(), "seeds": [run.seed]}
figures.use_style()

# %% [markdown]
# ## One run, before and after
#
# Both models see the same questions, with the harness's own prompts and metrics, greedily decoded where an answer is
# written. The paper names the five tasks but neither variants, shots nor metrics; the Open LLM Leaderboard's are taken.

# %%
experiments.compute([scale.score(run)], label="training")
rows = general.stored(run, tasks, limit)

# %%
shown = rows[rows["group"].isna()].drop(columns="group").set_index(["task", "metric"])
write_text(Path(out_dir) / "table_3_general.csv", rows.to_csv(index=False))
shown.round(1)

# %% [markdown]
# ## Measured beside published
#
# Brackets hold 95% intervals over questions, of one run. The gain in bold is paired: question by question, trained
# minus untrained. Parts of groups (the subjects of BBH) are in the CSV.

# %%
figures.save_figure(
    figures_general.figure_general, "figure_general", rows, out_dir, provenance, measured=scale.label()
)

# %%
headline = {
    f"{task}, {metric}, SePT minus untrained": [
        round(float(row[c]), 4) for c in ("delta", "delta_lo", "delta_hi")
    ]
    for (task, metric), row in shown.iterrows()
}
headline["limit"] = limit
experiments.record(out_dir, "15_table_3_general", headline)
headline
