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
# # Figure 5: more answers per question
#
# <!--index
# group: figures
# asks: Do more answers per question help?
# paper: Figure 5
# presets: sept-qwen2.5-math-7b-dsr, sept-g4-qwen2.5-math-7b-dsr, sept-g8-qwen2.5-math-7b-dsr
# -->
# **Question.** SePT draws one answer per question. Does it learn faster with four or eight?
#
# **Answer.** With eight, yes: over the first half of training pass@1 is <!--laptop/10_figure_5_rollouts:G = 8 minus G = 1, first half, pass@1/0-->+4.4 [<!--laptop/10_figure_5_rollouts:G = 8 minus G = 1, first half, pass@1/1-->1.4, <!--laptop/10_figure_5_rollouts:G = 8 minus G = 1, first half, pass@1/2-->7.5] points higher than with one; with four nothing is decided: <!--laptop/10_figure_5_rollouts:G = 4 minus G = 1, first half, pass@1/0-->+3.1 [<!--laptop/10_figure_5_rollouts:G = 4 minus G = 1, first half, pass@1/1-->-0.5, <!--laptop/10_figure_5_rollouts:G = 4 minus G = 1, first half, pass@1/2-->6.7].
#
# ![pass@1 and pass@32 over training rounds for one, four and eight answers per question: above, measured, all rise and eight rises fastest; below, published, the same order at the start and one level at the end](../figures/laptop/figure_5.png)
#
# *Cost.* 28.3 core-minutes in profile laptop; at the paper's scale about 532 A800-hours (`sept plan`, 3 presets).
#
# A round with $G = 8$ draws and trains on eight times the tokens of a round with $G = 1$, in as many optimizer
# steps: the target of Theorem 1 is the same, only the noise around it is smaller.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
from dataclasses import replace

import pandas as pd

from sept import experiments, figures, figures_training, profiles
from sept.evaluation import best_temperature, compare, family_means
from sept.provenance import environment

scale = profiles.profile(profile)
provenance = {**environment(), "profile": profile, "config": scale.key(), "seeds": list(scale.seeds[:3])}
metrics = ["pass@1", "pass@32"]
figures.use_style()

# %% [markdown]
# ## Curves measured while training
#
# Every tenth of the way the model answers the same questions, 32 times each at temperature 1. The runs with
# $G = 1$ are those of `03_main_result`; the learning rate is constant, so their first half is a whole run.

# %%
many = {"rounds": scale.rounds_many} if scale.rounds_many else {}
runs = {f"G = {G}": scale.runs("sept", 3, G=G, **many) for G in (4, 8)}
points = {arm: [scale.points(run) for run in group] for arm, group in runs.items()}
at = [point.at for point in points["G = 8"][0]]  # the same rounds for every G
ones = scale.runs("sept", 3)
points = {"G = 1": [[replace(scale.points(run)[0], at=r) for r in at] for run in ones]} | points
last = at[-1]
start = scale.score(scale.model, 1.0, scale.curve)
wanted = [p for group in points.values() for run in group for p in run]
experiments.compute([start, *wanted, *scale.sweep().values()], label="figure 5")

# %%
rows = []
for arm, group in points.items():
    for run in group:
        for at, score in ((0, start), *((p.at, p) for p in run)):
            means = 100 * family_means(experiments.scores(score))
            rows += [
                {"arm": arm, "seed": run[0].model.seed, "round": at, "metric": m, "value": means[m]}
                for m in metrics
            ]
table = pd.DataFrame(rows)

# %% [markdown]
# The level line is the untrained model at its best temperature, on the same questions.

# %%
sweep = experiments.scored(scale.sweep())
asked = set(experiments.scores(start)["id"])
level = sweep[best_temperature(sweep)].query("id in @asked")
baseline = {m: float(100 * family_means(level)[m]) for m in metrics}
draw, measured = figures_training.figure_5, scale.label()
figures.save_figure(draw, "figure_5", table, out_dir, provenance, baseline=baseline, measured=measured)

# %% [markdown]
# ## How much faster?
#
# $G = 8$ minus $G = 1$, averaged over the first half of the curve, question by question and seed by seed.

# %%
early = {}
for arm, group in points.items():
    first = [[experiments.scores(p) for p in run if 2 * p.at <= last] for run in group]
    early[arm] = [
        pd.concat(run).groupby(["family", "id"], sort=False).mean().reset_index() for run in first
    ]
faster = {arm: compare(early[arm], early["G = 1"]) for arm in ("G = 4", "G = 8")}
pd.concat(faster).round(1)

# %%
headline = {
    f"{arm} minus G = 1, first half, {m}": [round(float(d.loc[m, c]), 4) for c in ("value", "lo", "hi")]
    for arm, d in faster.items()
    for m in metrics
}
headline |= {"last round": last, "seeds": len(points["G = 1"])}
decided = {"more rollouts, faster start": faster["G = 8"].loc["pass@1"]}
experiments.record(out_dir, "10_figure_5_rollouts", headline, decided)
headline
