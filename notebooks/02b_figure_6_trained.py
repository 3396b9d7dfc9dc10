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
# # Figure 6: temperature after training
#
# <!--index
# group: figures
# asks: Has training only moved the best temperature?
# paper: Figure 6
# presets: sweep-qwen2.5-math-7b, sweep-qwen2.5-math-7b, sweep-qwen2.5-math-7b, sept-qwen2.5-math-7b-dsr, grpo-qwen2.5-math-7b-dsr
# -->
# **Question.** Has training only moved the best temperature, so that the untrained model could have had the same
# by decoding?
#
# **Answer.** No: at their own best temperatures the untrained model reaches an AVG of <!--laptop/02b_figure_6_trained:Baseline peak AVG-->61.3,
# SePT <!--laptop/02b_figure_6_trained:SePT peak AVG-->76.2 and GRPO <!--laptop/02b_figure_6_trained:GRPO peak AVG-->89.2.
#
# ![Left, measured: pass@1 and pass@32 against the decoding temperature; the curve of SePT lies above that of the untrained model at every temperature and below GRPO's; right, published: the same order up to 1.2, beyond which the untrained model collapses](../figures/laptop/figure_6.png)
#
# *Cost.* 44.1 core-minutes in profile laptop; 9.7 core-minutes in profile quick; at the paper's scale about 427 A800-hours (`sept plan`, 5 presets).
#
# If only the best temperature had moved, the peaks would be equally high; the last cell lists them. AVG is the mean of
# pass@1, pass@8 and pass@32.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd

from sept import experiments, figures, figures_scores, profiles
from sept.evaluation import summary_rows
from sept.provenance import environment

scale = profiles.profile(profile)
provenance = {**environment(), "profile": profile, "config": scale.key(), "seeds": list(scale.seeds[:3])}
measured = scale.label()
figures.use_style()

# %% [markdown]
# ## The same sweep, three models
#
# The untrained model, after SePT (constant $\tau_s = 0.6$) and after GRPO with as many sampled answers. The mean
# over families is shown; the band covers questions and, where there are several, training seeds.

# %%
runs = {arm: scale.runs(arm, 3) for arm in ("sept", "grpo")}
wanted = {
    (arm, tau): [scale.score(r, tau) for r in runs[arm]] for arm in runs for tau in scale.temperatures
}
trained = [s for scores in wanted.values() for s in scores]
experiments.compute([*scale.sweep().values(), *trained], label="trained")
sweep = experiments.scored(scale.sweep())

# %%
rows = []
for tau in scale.temperatures:
    rows += summary_rows([sweep[tau]], method="Baseline", temperature=tau)
    for arm in runs:
        scored = [experiments.scores(s) for s in wanted[arm, tau]]
        rows += summary_rows(scored, method=experiments.ARM_NAMES[arm], temperature=tau)
table = pd.DataFrame(rows)
figures.save_figure(figures_scores.figure_6, "figure_6", table, out_dir, provenance, measured=measured)

# %% [markdown]
# The peaks of each curve:

# %%
peaks = (
    table[table["metric"].isin(["pass@1", "pass@32", "AVG"])]
    .loc[lambda t: (t["temperature"] > 0) | (t["metric"] != "AVG")]
    .sort_values("value", ascending=False)
    .drop_duplicates(["method", "metric"])
    .sort_values(["metric", "method"])
)
peaks[["method", "metric", "temperature", "value", "lo", "hi"]].round(1)

# %%
headline = {f"{r.method} peak {r.metric}": round(r.value, 4) for r in peaks.itertuples()}
headline |= {f"{r.method} best T for {r.metric}": r.temperature for r in peaks.itertuples()}
experiments.record(out_dir, "02b_figure_6_trained", headline)
headline
