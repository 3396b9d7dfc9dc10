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
# # When does a model help itself? The map, measured
#
# <!--index
# group: beyond
# asks: On which bases does SePT gain, and can one tell beforehand?
# -->
# **Question.** The paper ends with it: which properties of a model make SePT effective, and when does it fail?
# And can one tell beforehand, without a single right answer?
#
# **Answer.** With both signs: of <!--laptop/22_regime_map:bases-->16 bases SePT gains on <!--laptop/22_regime_map:SePT gains against own-->8 and loses on <!--laptop/22_regime_map:SePT loses against own-->7, up to 22 points where a corpus was half
# memorised, and no predictor without labels is surely better than a constant guess (mean errors <!--laptop/22_regime_map:error, predicted-->10.3 and <!--laptop/22_regime_map:error, constant-->11.1 points).
#
# ![Four maps of SePT's gain over corpus size and noise of the base's second stage, at AVG, pass@1, pass@8 and pass@32: it gains with much noise and up to 2,000 documents, loses at 8,000 and on 125 documents with little noise](../figures/laptop/regime_corpus_noise.png)
#
# *Cost.* 0.6 core-minutes and 0.7 GB of memory in profile laptop; nothing to run at the paper's scale.
#
# The hypotheses below were committed before the first base of the map was built
# ([hypotheses-map](../docs/hypotheses-map.md)); refuted ones stay.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
from pathlib import Path

import numpy as np
import pandas as pd

from sept import experiments, figures, figures_map, regime, regime_rules, regime_statistics
from sept.provenance import environment, write_text

plan, folder = regime.place(profile)
figures.use_style()

# %% [markdown]
# ## Bases
#
# Base F, well trained, goes on for a second stage: 125 to 8,000 new documents × 0.4 to 1.6 M tokens × three rates
# of error. Beside these there are models stopped early (`nothing`) and smaller ones (`small`). No two share a
# corpus. The order balances the axes, so that wherever the list ends its bases are spread over the map.
#
# Each is a shard of two small files: what was measured of it without labels, and how many answers to each test
# question were right, untrained at twelve temperatures and trained by three arms. The `laptop` profile reads the
# shards that are committed; `SEPT_BASES=40` in the environment makes it go on to 40, shard by shard.

# %%
shards = regime.compute(plan, folder)
measured = [regime_statistics.gains(shard) for shard in shards]
bases = regime_statistics.bases_table(shards, measured)
write_text(Path(out_dir) / "regime_bases.csv", bases.to_csv(index=False))
provenance = {**environment(), "profile": profile, "bases": len(bases), "seeds": [100]}
everything = pd.concat(
    [table.assign(base=shard.cell.name) for shard, table in zip(shards, measured, strict=True)]
)
bases[["base", "gap", "carry_over", "agreement", "base T=0.0 pass@1", "SePT AVG", "EM-FT AVG"]].round(2)

# %% [markdown]
# ## The gain, base by base
#
# The arm at temperature 1 minus the untrained base at the temperature that is best *for this very score on these
# very questions*, greedy included for a single k: the strictest of the three baselines. Intervals are over questions
# (paired bootstrap, 95%), with one training seed. The table behind it has the other two baselines as well.

# %%
shown = ["AVG", "pass@1", "pass@8", "pass@32"]
own = everything[everything["against"] == "own"]
figures.save_figure(figures_map.figure_bases, "regime_gains", own, out_dir, provenance, metrics=shown)
against = everything[everything["metric"] == "AVG"].groupby(["arm", "against"], sort=False)
summary = against.agg(
    mean=("value", "mean"), above=("lo", lambda x: (x > 0).sum()), below=("hi", lambda x: (x < 0).sum())
)
summary.round(1)

# %% [markdown]
# ## Maps
#
# A cell averages the bases that fall into it (grey: none yet); its interval is the questions' alone. Bold: clear of
# 0. The black line is where the gain passes 0, drawn where the grid is full.

# %%
main = bases[bases["start"] == "F"].assign(millions=lambda t: t["tokens"] / 1e6)
corpus, noise, draw = "documents in the corpus", "errors per column", figures_map.figure_regime
by_noise = {
    arm: regime_statistics.map_cells(own, main, "documents", "error_rate", arm, shown)
    for arm in own["arm"].unique()
}
by_tokens = regime_statistics.map_cells(own, main, "documents", "millions", "SePT", shown)
arms = pd.concat([table[table["panel"].str.endswith("AVG")] for table in by_noise.values()])
figures.save_figure(draw, "regime_corpus_noise", by_noise["SePT"], out_dir, provenance, x=corpus, y=noise)
figures.save_figure(
    draw, "regime_corpus_tokens", by_tokens, out_dir, provenance, x=corpus, y="million tokens"
)
figures.save_figure(draw, "regime_arms", arms, out_dir, provenance, x=corpus, y=noise)

# %% [markdown]
# ## What foretells it
#
# Measured on the untrained base, without a right answer. *Gap*: loss on new documents minus loss on its own corpus
# (this one needs the corpus). *Carry-over*: of one round's sharpening of 64 questions, the share that shows on 64
# others. The rest comes from answers it draws. The last two panels are no predictors but axes of the map.

# %%
points = own[(own["arm"] == "SePT") & (own["metric"] == "AVG")]
logs = bases.assign(
    **{"log10 passes": np.log10(bases["passes"]), "log10 tokens": np.log10(bases["tokens"])}
)
panels = {name: name.replace("_", " ") for name in regime.PREDICTORS}
panels |= {
    "base T=0.0 pass@1": "greedy pass@1 (labels)",
    "log10 passes": "log10 passes",
    "log10 tokens": "log10 tokens",
}
parts = [
    points.merge(logs[["base", "start", column]].rename(columns={column: "x"}), on="base").assign(
        panel=panel
    )
    for column, panel in panels.items()
]
table = pd.concat(parts)[["panel", "base", "start", "x", "value", "lo", "hi"]]
figures.save_figure(
    figures_map.figure_foretold, "regime_predictors", table, out_dir, provenance, ylabel="gain, AVG"
)

# %% [markdown]
# ## A predictor without labels
#
# One-variable lines and ridge regressions on all predictors compete; for every base the choice is made, and the
# winner fitted, on the other bases alone (nested leave-one-out). A constant guess is their median.
#
# **These are models of 0.3 M parameters, all cousins of one another, in one world of arithmetic. Nothing says that
# the line's numbers carry over to another model; at most the kind of quantity to look at does.** So this is no
# command of the package.

# %%
names, target = list(regime.PREDICTORS), "SePT AVG"
predicted = regime_statistics.held_out(bases, names, target).merge(bases[["base", "start"]], on="base")
figures.save_figure(figures_map.figure_predicted, "regime_predicted", predicted, out_dir, provenance)

# %%
errors = {c: (predicted[c] - predicted["value"]).abs() for c in ("predicted", "constant")}
compared = predicted.assign(**errors, better=errors["predicted"] - errors["constant"])
single = pd.Series({n: regime_statistics.left_out(bases, [n], 0.0, target) for n in names}).sort_values()
ranks = {n: regime_statistics.rank_correlation(n, target)(bases) for n in single.index}
ranking = pd.DataFrame({"error, held out (points)": single, "rank correlation": ranks})
write_text(
    Path(out_dir) / "regime_ranking.csv", ranking.rename_axis("predictor").reset_index().to_csv(index=False)
)
bent = bases.assign(**{f"{n}²": (bases[n] - bases[n].mean()) ** 2 for n in names})
parabola = pd.Series({n: regime_statistics.left_out(bent, [n, f"{n}²"], 0.0, target) for n in names})
print(f"mean error {errors['predicted'].mean():.1f} points, constant {errors['constant'].mean():.1f}")
ranking.assign(**{"with a parabola": parabola}).round(2)

# %% [markdown]
# The last column was added after the map was seen, and so is no evidence: the gain rises and falls again along several
# predictors, which no straight line can follow.
#
# ## The hypotheses
#
# What was measured of each row of [hypotheses-map](../docs/hypotheses-map.md) and of the small theory's
# [rows](../docs/hypotheses.md), and what the rules say that were committed with them (`sept/regime_rules.py`). Intervals
# resample recipes.

# %%
rows, offline = regime_rules.of_the_map(bases, own, compared, ranks, [*single.index], target)
theory = regime_rules.of_the_theory(bases, own, shards, plan.temperatures, target)
for name, found in (("regime_hypotheses", rows), ("regime_theory", theory)):
    write_text(Path(out_dir) / f"{name}.csv", pd.DataFrame(found).T.rename_axis("id").to_csv())
rows |= theory
pd.DataFrame(rows).T

# %%
headline = {"bases": len(bases), "questions": int(shards[0].counts["id"].str.startswith("test").sum())}
headline |= {f"{arm} gains against {a}": int(n) for (arm, a), n in summary["above"].items()}
headline |= {f"{arm} loses against {a}": int(n) for (arm, a), n in summary["below"].items()}
headline |= {f"{arm} mean gain against {a}": round(float(v), 4) for (arm, a), v in summary["mean"].items()}
for name, row in rows.items():
    numbers = [round(float(row.get(c, np.nan)), 4) for c in ("value", "lo", "hi")]
    headline[name] = [None if np.isnan(v) else v for v in numbers]
    headline[f"{name} verdict"] = row["verdict"]
headline |= {f"error, {name}": round(float(e.mean()), 4) for name, e in errors.items()}
headline |= {"offline mean": [round(offline[c], 4) for c in ("value", "lo", "hi")]}
headline |= {f"rank correlation, {n}": round(float(r), 4) for n, r in ranks.items()}
experiments.record(out_dir, "22_regime_map", headline)
headline
