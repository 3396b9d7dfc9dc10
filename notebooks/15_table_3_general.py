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
# **Question.** What does SePT change in tasks that somebody else asks and grades?
#
# **Answer.** On a real model these are IFEval, BBH, GPQA, MuSR and MMLU-Pro, as in the paper. The embedded model knows
# nothing but digits, so here the same machinery asks three small tasks of its own world, which are no general abilities:
# which of four derivations of a sum is the right one (next to what is trained, never trained itself), the same
# for reversing and sorting, and reversing and sorting outright (neither is trained on). The last cell gives what changed.

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
