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
# <!--index
# group: beyond
# asks: Could another learning rate turn the comparison around? Is it drift or signal?
# -->
# **Question.** Could another learning rate turn the comparison around?
#
# **Answer.** Not within a factor of three of SePT's best: at 3e-5 it still beats the best temperature by <!--laptop/04_learning_rates:SePT at 3e-05 minus best baseline, test AVG/0-->+7.6 [<!--laptop/04_learning_rates:SePT at 3e-05 minus best baseline, test AVG/1-->5.9, <!--laptop/04_learning_rates:SePT at 3e-05 minus best baseline, test AVG/2-->9.4]
# points, and there coupled temperatures change the untrained model by <!--laptop/04_learning_rates:Coupled at 3e-05 minus Baseline at 1, test AVG/0-->-0.6 [<!--laptop/04_learning_rates:Coupled at 3e-05 minus Baseline at 1, test AVG/1-->-1.9, <!--laptop/04_learning_rates:Coupled at 3e-05 minus Baseline at 1, test AVG/2-->0.7].
#
# ![AVG on dev questions against the learning rate: SePT rises to 75 at 1e-4 and is back at the baseline's 60 at 3e-4, annealed SePT falls to 25 there, both offline arms stay level, EM-FT and GRPO rise to 90 and more, coupled falls to 15](../figures/laptop/learning_rates.png)
#
# *Cost.* 59.9 core-minutes in profile laptop; nothing to run at the paper's scale.
#
# Every arm is trained at every rate of one grid and scored on the same dev questions with the same tuning
# seeds, none of which is reported anywhere else. The other notebooks run every arm at one rate, SePT's best;
# what arms with another best rate reach at theirs is measured here. Arms without a signal are a special
# case: tuning sends their rate to zero, where they are simply the untrained model. So they are shown at
# SePT's rate as well, and once more at a rate at which SePT already gains and noise does little: there drift
# and signal can be told apart.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
from pathlib import Path

import pandas as pd

from sept import experiments, figures, figures_training, profiles
from sept.evaluation import best_temperature, compare, family_means, summary_rows
from sept.provenance import environment, write_text

scale = profiles.profile(profile)
arms = ("sept", "sept-annealed", "offline", "offline-sft", "coupled", "em-ft", "grpo")
provenance = {**environment(), "profile": profile, "config": scale.key(), "seeds": list(scale.tuning_seeds)}
figures.use_style()

# %% [markdown]
# ## The grid
#
# Each point is one run of the full length, decoded at temperature 1 on dev questions.

# %%
runs = {(arm, lr): scale.runs(arm, seeds=scale.tuning_seeds, lr=lr) for arm in arms for lr in scale.rates}
base = scale.sweep(problems=scale.dev)
tuning = [scale.score(r, 1.0, scale.dev) for group in runs.values() for r in group]
experiments.compute([*base.values(), *tuning], label="tuning")

# %%
rows = []
for (arm, lr), group in runs.items():
    scores = [experiments.scores(scale.score(run, 1.0, scale.dev)) for run in group]
    rows += summary_rows(scores, arm=experiments.ARM_NAMES[arm], preset=arm, lr=lr)
table, dev = pd.DataFrame(rows).query("metric == 'AVG'"), experiments.scored(base)
untrained = {
    "Baseline at 1": 100 * family_means(dev[1.0])["AVG"],
    "Baseline at its best T": 100 * family_means(dev[best_temperature(dev)])["AVG"],
}
draw = figures_training.figure_learning_rates
figures.save_figure(draw, "learning_rates", table, out_dir, provenance, untrained=untrained)

# %% [markdown]
# Whiskers are 95% intervals over questions, and over tuning seeds where there are several. Left: the arms whose
# samples are sharper than what is trained. Right: the others. The level lines are the untrained model. Coupled
# has no signal to find, so all that a larger rate does to it is drift.

# %%
columns = ["arm", "preset", "lr", "value", "lo", "hi", "seeds"]
best = table.loc[table.groupby("preset", sort=False)["value"].idxmax(), columns]
best = best.rename(columns={"lr": "best lr"})
best["usual lr"] = [scale.runs(arm)[0].config().lr for arm in best["preset"]]
best.round(1).style.format({"best lr": "{:.0e}", "usual lr": "{:.0e}"}).hide(axis="index")

# %% [markdown]
# ## On test questions, with the reported seeds
#
# What do arms reach at their own best rate, where that is not their preset's? And what do SePT and Coupled
# do at the grid's second rate, below SePT's best?

# %%
small = scale.rates[len(scale.rates) // 2 - 1]
tested = {(arm, small): scale.runs(arm, lr=small) for arm in ("sept", "coupled")}
for arm, lr, usual in zip(best["preset"], best["best lr"], best["usual lr"], strict=True):
    if lr != usual and arm != "coupled":  # which would be best at no rate at all
        tested[arm, lr] = scale.runs(arm, 3, lr=lr)
annealed, constant = (best.set_index("preset").loc[a, "best lr"] for a in ("sept-annealed", "sept"))
pair = [scale.runs("sept-annealed", 3, lr=annealed), scale.runs("sept", 3, lr=constant)]
finals = [scale.score(r) for group in (*tested.values(), *pair) for r in group]
experiments.compute([*scale.sweep().values(), *finals], label="test")

# %%
sweep, rows, changes = experiments.scored(scale.sweep()), [], {}
references = {"Baseline at 1": sweep[1.0], "best baseline": sweep[best_temperature(sweep)]}
for (arm, lr), group in tested.items():
    scores = [experiments.scores(scale.score(r)) for r in group]
    for against, reference in references.items():
        change = changes[arm, lr, against] = compare(scores, reference).loc["AVG"]
        columns = change[["value", "lo", "hi", "seeds"]]
        rows.append({"arm": experiments.ARM_NAMES[arm], "lr": lr, "minus": against, **columns})
on_test = pd.DataFrame(rows)
write_text(Path(out_dir) / "learning_rates_test.csv", on_test.to_csv(index=False))
on_test.round(1).style.format({"lr": "{:.0e}"}).hide(axis="index")

# %%
headline = {f"best lr {a}": float(b) for a, b in zip(best["preset"], best["best lr"], strict=True)}
headline |= {f"AVG {a}": round(float(v), 4) for a, v in zip(best["preset"], best["value"], strict=True)}
headline |= {name: round(float(v), 4) for name, v in untrained.items()}
for (arm, lr, against), change in changes.items():
    key = f"{experiments.ARM_NAMES[arm]} at {lr:.0e} minus {against}, test AVG"
    headline[key] = [round(float(change[c]), 4) for c in ("value", "lo", "hi")]
slow = compare(*([experiments.scores(scale.score(r)) for r in group] for group in pair)).loc["pass@32"]
decided = {"annealing helps large k": slow}
if changes["sept", small, "best baseline"]["value"] >= 5:  # else drift is measured where nothing moves
    decided |= {"coupling gives no signal": changes["coupled", small, "Baseline at 1"]}
experiments.record(out_dir, "04_learning_rates", headline, decided)
headline
