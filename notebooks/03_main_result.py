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
# # The main result: SePT against the best temperature
#
# **Question.** Does a model trained on its own answers beat the *untrained* model decoded at the best
# temperature one could have chosen for it?
#
# **Answer.** On the embedded base H, yes, and by far more than sampling noise; the last cell prints the
# paired difference and its interval. GRPO, which is told what is right, gains more. The paper's
# annealed recipe ($\tau_s$ from 0.6 to 1) is a separate arm here, reported as it comes out: as
# $\tau_s$ nears $\tau_t$ the signal of Equation 2 fades, and in its last third there is none.
#
# Figure 1c and the first rows of Table 1, measured above, published (tinted) below.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.experiments.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd
from IPython.display import HTML

from sept import experiments, figures, figures_training, tables
from sept.evaluation import best_for_each_k, best_temperature, comparison_table, difference, summarise
from sept.provenance import environment

scale = experiments.profile(profile)
arms = ("sept", "sept-annealed", "grpo")
provenance = {**environment(), "profile": profile, "seeds": list(scale.seeds)}
sept = scale.runs("sept")[0].config()
measured = f"{scale.label()}, SePT with {sept.tau_s_schedule} tau_s = {sept.tau_s}"
figures.use_style()

# %% [markdown]
# ## Three baselines
#
# *Chosen on dev*: the temperature with the best AVG on other questions, what an honest user could do.
# *Chosen on test*: the best on the very questions reported, the paper's rule and kinder to the
# baseline. *Best for each $k$*: a different temperature for pass@1, pass@8 and pass@32, greedy
# included, which no single decoding run can reach. AVG is the mean of the three.

# %%
scores = [scale.score(scale.model, tau, q) for q in (scale.dev, scale.test) for tau in scale.temperatures]
experiments.compute(scores, label="base")
dev, test = (
    {tau: experiments.scores(scale.score(scale.model, tau, q)) for tau in scale.temperatures}
    for q in (scale.dev, scale.test)
)
t_dev, t_test = best_temperature(dev), best_temperature(test)
baselines = {
    f"Baseline (T = {t_test}, chosen on test)": test[t_test],
    f"Baseline (T = {t_dev}, chosen on dev)": test[t_dev],
    "Baseline (best T for each k)": best_for_each_k(test),
}

# %% [markdown]
# ## The arms
#
# Every arm starts from the same base and draws as many answers a round for as many rounds; each is
# decoded at temperature 1, as in the paper. Mind the left panel: it scores the answers that were
# trained on, and those are drawn at each arm's own $\tau_s$.

# %%
runs = {arm: scale.runs(arm) for arm in arms}
experiments.compute([scale.score(r) for arm in arms for r in runs[arm]], label="arms")
scored = {arm: [experiments.scores(scale.score(r)) for r in runs[arm]] for arm in arms}

# %%
shown = {
    "accuracy": "right answers at tau_s (share)",
    "entropy": "entropy (nats)",
    "length": "length (tokens)",
}
curves = experiments.training_table([r for arm in arms for r in runs[arm]], shown)
figures.save_figure(figures_training.figure_training, "training_curves", curves, out_dir, provenance)

# %% [markdown]
# ## Figure 1c
#
# Bars are means over families; whiskers are 95% intervals over questions (bootstrap) and, for arms with
# several seeds, seeds (Student's t), added in quadrature, all conditional on this one base.

# %%
reference = test[t_test]
named = {experiments.ARM_NAMES[arm]: scored[arm] for arm in arms}
table = comparison_table(baselines, named)
figures.save_figure(figures.figure_1c, "figure_1c", table, out_dir, provenance, measured=measured)

# %% [markdown]
# ## Table 1
#
# In brackets: the interval; in parentheses: the gain over the baseline chosen on test, measured as a
# *paired* difference on the same questions, with its own interval.

# %%
HTML(tables.save_table(1, table, out_dir, scale.label()))

# %% [markdown]
# ## The claim, as a number
#
# SePT minus each baseline on AVG, paired by question. "Yes" means that zero lies below the interval.

# %%
claims = []
for name, baseline in baselines.items():
    for arm in arms:
        d = summarise([difference(s, baseline) for s in scored[arm]]).loc["AVG"]
        claims.append({"arm": experiments.ARM_NAMES[arm], "against": name, **d[["value", "lo", "hi"]]})
claims = pd.DataFrame(claims)
claims["above zero"] = claims["lo"].gt(0).map({True: "yes", False: "no"})
claims.round(1)

# %%
first = claims[(claims["arm"] == "SePT")].iloc[0]
headline = {
    "baseline_temperature_test": t_test,
    "baseline_temperature_dev": t_dev,
    "baseline_AVG": round(float(table.query("metric == 'AVG'")["value"].iloc[0]), 4),
    "sept_minus_baseline_AVG": [round(float(first[c]), 4) for c in ("value", "lo", "hi")],
    "seeds": len(scale.seeds),
    "questions": len(reference),
}
for arm in arms:
    value = table[(table["method"] == experiments.ARM_NAMES[arm]) & (table["metric"] == "AVG")]
    headline[f"{experiments.ARM_NAMES[arm]} AVG"] = round(float(value["value"].iloc[0]), 4)
experiments.record(out_dir, "03_main_result", headline)
headline
