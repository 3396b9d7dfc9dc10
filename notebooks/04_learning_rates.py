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
# # Learning rates: every arm gets the same care
#
# **Question.** Could another learning rate turn the comparison around?
#
# **Answer.** Every arm is trained at every rate of one grid and scored on the same dev questions with
# the same two tuning seeds, none of which is reported anywhere else. An arm is judged at its own best
# rate, marked in the table. Arms without a signal are a special case: tuning sends their rate to zero,
# where they are simply the untrained model. So they are shown at SePT's rate as well.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.experiments.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd

from sept import experiments, figures, figures_training
from sept.config import preset
from sept.evaluation import best_temperature, family_means
from sept.provenance import environment

scale = experiments.profile(profile)
arms = ("sept", "sept-annealed", "offline", "coupled", "coupled-tau_s", "inverted", "em-ft", "grpo")
provenance = {**environment(), "profile": profile, "seeds": list(scale.tuning_seeds)}
figures.use_style()

# %% [markdown]
# ## The grid
#
# Each point is one run of the full length, decoded at temperature 1 on dev questions.

# %%
runs = {(arm, lr): scale.runs(arm, seeds=scale.tuning_seeds, lr=lr) for arm in arms for lr in scale.rates}
base = {tau: scale.score(scale.model, tau, scale.dev) for tau in scale.temperatures}
tuning = [scale.score(r, 1.0, scale.dev) for group in runs.values() for r in group]
experiments.compute([*base.values(), *tuning], label="tuning")

# %%
rows = []
for (arm, lr), group in runs.items():
    for run in group:
        value = 100 * family_means(experiments.scores(scale.score(run, 1.0, scale.dev)))["AVG"]
        rows.append(
            {"arm": experiments.ARM_NAMES[arm], "preset": arm, "lr": lr, "seed": run.seed, "value": value}
        )
table = pd.DataFrame(rows)
sweep = {tau: experiments.scores(score) for tau, score in base.items()}
untrained = {
    "Baseline at 1": 100 * family_means(sweep[1.0])["AVG"],
    "Baseline at its best T": 100 * family_means(sweep[best_temperature(sweep)])["AVG"],
}
figures.save_figure(
    figures_training.figure_learning_rates,
    "learning_rates",
    table,
    out_dir,
    provenance,
    untrained=untrained,
)

# %% [markdown]
# Points are means over the tuning seeds, bars span them. Left: the arms whose samples are sharper than
# what is trained. Right: the others. The level lines are the untrained model.

# %%
means = table.groupby(["arm", "preset", "lr"], sort=False)["value"].mean().reset_index()
best = means.loc[means.groupby("preset", sort=False)["value"].idxmax()].rename(columns={"lr": "best lr"})
best["preset lr"] = [preset(arm).lr for arm in best["preset"]]
best.round(1).style.format({"best lr": "{:.0e}", "preset lr": "{:.0e}"}).hide(axis="index")

# %%
headline = {f"best lr {a}": float(b) for a, b in zip(best["preset"], best["best lr"], strict=True)}
headline |= {f"AVG {a}": round(float(v), 4) for a, v in zip(best["preset"], best["value"], strict=True)}
headline |= {name: round(float(v), 4) for name, v in untrained.items()}
experiments.record(out_dir, "04_learning_rates", headline)
headline
