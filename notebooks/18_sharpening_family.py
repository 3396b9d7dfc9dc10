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
# # The sharpening family
#
# **Question.** SePT sharpens token by token. Best-of-n, majority vote and the power distribution sharpen whole
# answers, EM-FT lowers entropies. Do they agree?
#
# **Answer.** For answers of one token they are one and the same. For longer ones, tempering gives up likelihood
# that the power distribution would have at equal entropy, and, iterated to its end, it lands on the greedy answer,
# which in the share of policies printed below is not the likeliest one. Everything here is exact; nothing is sampled.

# %% tags=["parameters"]
profile = "quick"  # str: "smoke" shrinks the trees; every number is exact in every profile
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go
seed = 2  # int: the policy that is looked at closely, one whose greedy answer is not its likeliest

# %%
import numpy as np
import pandas as pd

from sept import figures, figures_margins, sharpening, tabular
from sept.experiments import record
from sept.provenance import environment

n_tokens, horizon, policies = (3, 2, 20) if profile == "smoke" else (4, 4, 200)
tree = tabular.build_tree(n_tokens, horizon)
logits = tabular.random_logits(tree, seed, 1.0)
provenance = {**environment(), "profile": profile, "seed": seed, "policy": "tabular softmax"}
figures.use_style()
print(f"{tree.parent.size} prefixes, {tree.length.size} complete answers")

# %% [markdown]
# ## One plane for all of them
#
# A sharpened policy is described by how certain it is (entropy over answers) and how likely its answers are to
# the model they came from (mean $\log p$). Of all distributions of a given entropy, the power distribution
# $p^\alpha/Z$ has the likeliest answers, so it is the frontier, and the distance below it is a loss.

# %%
family = pd.DataFrame(sharpening.family_rows(tree, logits))
family.groupby("method")[["entropy", "likelihood", "mode", "gap"]].last().style.format(precision=3)

# %% [markdown]
# ## Where greedy goes wrong
#
# The likeliest first token need not begin the likeliest answer. Share of random policies for which the greedy
# answer is not the likeliest, by the length of answers:

# %%
spreads = (0.5, 1.0, 2.0)
wrong = pd.DataFrame(
    [
        {"horizon": h, "spread": s, "share": sharpening.astray(tabular.build_tree(3, h), policies, s)}
        for h in range(1, 4 if profile == "smoke" else 7)
        for s in spreads
    ]
)
wrong.pivot(index="horizon", columns="spread", values="share").style.format(precision=2)

# %% [markdown]
# ## Majority vote
#
# Three policies over final answers, all with the right answer (first) at 40%: majority of $n$ makes it certain only
# while it is the likeliest. Sharpening amplifies what is there; it cannot know what is right.

# %%
votes = {
    "right 0.40, wrong 0.35": [0.40, 0.35, 0.25],
    "right 0.40, wrong 0.20": [0.40, 0.20, 0.20, 0.20],
    "right 0.40, wrong 0.45": [0.40, 0.45, 0.15],
}
sizes = (1, 3, 5, 9, 17, 33)
majority = [
    {
        "panel": "majority of n",
        "series": name,
        "x": n,
        "value": float(sharpening.majority_of(np.array(p), n)[0]),
    }
    for name, p in votes.items()
    for n in sizes
]

# %% [markdown]
# ## What refreshing adds
#
# Offline, a round can be run to convergence once: $\alpha = \tau_t/\tau_s$. Online, rounds multiply: six rounds at 0.8
# reach $\alpha = 3.8$, along the same line of tempered policies. Refreshing adds strength, not a new direction; what
# else it adds in a trained network is that later rounds *visit* what earlier rounds made likely.

# %%
online = logits
for _ in range(6):
    online = tabular.sept_round(tree, online, 0.8, 1.0)
once = sharpening.tempered(tree, logits, 1 / 0.8**6)
refreshed = float(np.abs(sharpening.tempered(tree, online, 1.0) - once).max())
refreshed

# %%
plane = [
    {"panel": panel, "series": r.method, "x": x, "value": y}
    for r in family.itertuples()
    for panel, x, y in (
        ("the plane", r.entropy, r.likelihood),
        ("loss against the frontier", r.entropy, r.gap),
        ("the likeliest answer", r.entropy, r.mode),
    )
]
greedy = [
    {"panel": "greedy is not likeliest", "series": f"spread {r.spread:g}", "x": r.horizon, "value": r.share}
    for r in wrong.itertuples()
]
labels = {
    "the plane": ["entropy over answers (nats)", "mean $\\log p$ (nats)"],
    "loss against the frontier": ["entropy over answers (nats)", "nats below power"],
    "the likeliest answer": ["entropy over answers (nats)", "its probability"],
    "greedy is not likeliest": ["tokens in an answer", "share of policies"],
    "majority of n": ["n", "chance of the right answer"],
}
table = pd.DataFrame(plane).assign(lo=None, hi=None)
options = {"labels": {p: labels[p] for p in table["panel"].unique()}}
figures.save_figure(
    figures_margins.figure_lines, "sharpening_family", table, out_dir, provenance, **options
)

# %%
table = pd.DataFrame([*greedy, *majority]).assign(lo=None, hi=None)
options = {"labels": {p: labels[p] for p in table["panel"].unique()}, "log": ["majority of n"]}
figures.save_figure(
    figures_margins.figure_lines, "sharpening_limits", table, out_dir, provenance, **options
)

# %%
gap = family[family.method == "SePT (tempering)"]["gap"]
headline = {
    "largest loss of tempering, nats": round(float(gap.max()), 4),
    "greedy is not likeliest, longest": round(float(wrong["share"].iloc[-1]), 4),
    "online rounds against one tempering": refreshed,
    "EM-FT, largest loss, nats": round(float(family[family.method == "EM-FT"]["gap"].max()), 4),
}
record(out_dir, "18_sharpening_family", headline)
headline
