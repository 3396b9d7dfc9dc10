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
# <!--index
# group: theory
# asks: Do tempering, power sampling, best-of-n and EM-FT agree?
# -->
# **Question.** SePT sharpens token by token. Best-of-n, majority vote and the power distribution sharpen whole
# answers, EM-FT lowers entropies. Do they agree?
#
# **Answer.** For answers of one token tempering is the power distribution, for longer ones it is not: it gives up as much as <!--laptop/18_sharpening_family:largest loss of tempering, nats-->0.67 nats of
# likelihood, and its end, the greedy answer, is not the likeliest one in <!--laptop/18_sharpening_family:greedy is not likeliest, longest-->0.26 of random policies.
#
# ![Three panels against the entropy over answers: mean log p of tempering and EM-FT lies below that of the power distribution and best of n, by up to 0.67 nats; only the latter two end with all probability on the likeliest answer](../figures/laptop/sharpening_family.png)
#
# *Cost.* 0.2 core-minutes and 0.6 GB of memory in profile laptop; nothing to run at the paper's scale.
#
# Tempering gives up the likelihood that the power distribution would have at equal entropy. Everything here is exact;
# nothing is sampled. At the end there are exercises.

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

# %% [markdown]
# ## Exercises
#
# **1.** One token, probabilities $(0.5, 0.3, 0.2)$. Compute the power distribution with $\alpha = 2$ and tempering at
# $\tau = 1/2$.
#
# <details><summary>Answer</summary>
#
# Both are $(0.25, 0.09, 0.04)/0.38$ = (<!--exercise:power 1-->0.658, <!--exercise:power 2-->0.237, <!--exercise:power 3-->0.105): $\mathrm{softmax}(2z) \propto \mathrm{softmax}(z)^2$.
#
# </details>
#
# **2.** Two tokens. The first is $a$ with 0.6 or $b$ with 0.4; after $a$ the second is even, after $b$ it is $c$ with 0.9.
# Which answer is the likeliest, which one is greedy, and what do power and tempering with $\alpha = 2$ give to $bc$?
#
# <details><summary>Answer</summary>
#
# $bc$ has 0.36, both answers that begin with $a$ have 0.30; greedy begins with $a$. The power distribution gives $bc$
# $0.36^2/(2 \cdot 0.3^2 + 0.36^2 + 0.04^2)$ = <!--exercise:power bc-->0.416. Tempering gives $b$ first $0.16/0.52$ and then $c$ $0.81/0.82$, together <!--exercise:tempered bc-->0.304: less than the untrained 0.36. Sharpening by tokens can make the likeliest answer rarer.
#
# </details>
#
# **3.** The right answer has 0.40, two wrong ones 0.35 and 0.25. How often is the majority of 3 right, ties broken evenly?
#
# <details><summary>Answer</summary>
#
# Two or three of three: $3 \cdot 0.4^2 \cdot 0.6 + 0.4^3$ = <!--exercise:two of three-->0.352. All different, $6 \cdot 0.4 \cdot 0.35 \cdot 0.25$, in a third of which the
# right one is taken: <!--exercise:all different-->0.070. Together <!--exercise:majority of 3-->0.422, hardly more than one draw.
#
# </details>
#
# **4.** Best of $n$ takes the likeliest of $n$ answers. How large must $n$ be for $bc$ of exercise 2 to have 99%?
#
# <details><summary>Answer</summary>
#
# It is missed only if no draw is $bc$: $0.64^n \le 0.01$ gives $n$ = <!--exercise:best of n-->11.
#
# </details>
