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
# # Temperature: what can be had without training
#
# **Question.** SePT makes a model sharper. Why not simply decode the untrained model at a lower
# temperature?
#
# **Answer.** That is the baseline to beat, and no single temperature is good at everything: the one
# that is best for a single answer (pass@1) is colder than the one that is best for the best of 32.
# Training with SePT or GRPO lifts the whole curve; afterwards pass@32 depends less on temperature.
#
# The paper shows this in Figure 1a (untrained) and Figure 6 (trained). Each is measured here on the
# embedded model and drawn beside the published curves, which are tinted.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.experiments.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd

from sept import experiments, figures
from sept.evaluation import best_temperature, peak_shift, summary_rows, sweep_table
from sept.provenance import environment

scale = experiments.profile(profile)
provenance = {**environment(), "profile": profile, "seeds": list(scale.seeds)}
measured = scale.label()
figures.use_style()

# %% [markdown]
# ## Figure 1a: the untrained model
#
# For each temperature, $n$ = 32 answers to every test question; pass@$k$ is the chance that at
# least one of $k$ answers is right, estimated without bias from the 32. At 0 there is one greedy
# answer, so all pass@$k$ are equal there (the paper leaves pass@32 out at 0). The band around the
# mean is a 95% bootstrap interval over questions.

# %%
experiments.compute(scale.sweep().values(), label="base")
sweep = experiments.scored(scale.sweep())
table = sweep_table(sweep)
figures.save_figure(figures.figure_1a_beside, "figure_1a", table, out_dir, provenance, measured=measured)

# %% [markdown]
# Cold decoding picks the model's favourite answer again and again: good if the favourite is right,
# hopeless if it is not, however often one asks. Heat buys variety and pays with slips in every
# column. So pass@1 falls with temperature while pass@32 rises, above as below. What differs is the far
# end: below, everything collapses beyond 1.2, the small arithmetic model still writes derivations.

# %%
best = {m: best_temperature(sweep, m) for m in ("pass@1", "pass@8", "pass@32", "AVG")}
pd.Series(best, name="best temperature")

# %% [markdown]
# ## Figure 6: the trained models
#
# The same sweep after SePT (constant $\tau_s = 0.6$) and after GRPO with as many sampled answers. The
# mean over families is shown; the band covers questions and, where there are several, training seeds.

# %%
runs = {arm: scale.runs(arm, 3) for arm in ("sept", "grpo")}
wanted = {
    (arm, tau): [scale.score(r, tau) for r in runs[arm]] for arm in runs for tau in scale.temperatures
}
experiments.compute([s for scores in wanted.values() for s in scores], label="trained")

# %%
rows = []
for tau in scale.temperatures:
    rows += summary_rows([sweep[tau]], method="Baseline", temperature=tau)
    for arm in runs:
        scored = [experiments.scores(s) for s in wanted[arm, tau]]
        rows += summary_rows(scored, method=experiments.ARM_NAMES[arm], temperature=tau)
table = pd.DataFrame(rows)
figures.save_figure(figures.figure_6, "figure_6", table, out_dir, provenance, measured=measured)

# %% [markdown]
# Compare the curves at *their own* best temperatures, not only at 1: if training had only moved the
# best temperature, the peaks would be equally high. They are not.

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
headline = {f"best T for {m}": tau for m, tau in best.items()}
headline |= {f"{r.method} peak {r.metric}": round(r.value, 4) for r in peaks.itertuples()}
shift = peak_shift(sweep, "pass@1", "pass@32")
experiments.record(out_dir, "02_temperature_sweep", headline, {"cold pass@1, warm pass@32": shift})
headline
