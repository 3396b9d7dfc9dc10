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
# # Causes: what makes self-training gain?
#
# <!--index
# group: beyond
# asks: What makes it gain? One thing changed at a time, hypotheses written before.
# -->
# **Question.** On base H SePT gains a lot. Which part of it does that: that questions are fresh, that the sampler
# is refreshed, how far each round goes, what kind of error the base makes, that it samples less randomly, or
# something a vote would do as well? And is it a good start for training with labels?
#
# **Answer.** Fresh questions for one, since 36 questions asked again and again gain <!--laptop/23_causes:Ca1/0-->8.3 [<!--laptop/23_causes:Ca1/1-->4.9, <!--laptop/23_causes:Ca1/2-->11.8] points of AVG less.
#
# ![Gains over the base at its best temperature in panels, one for each thing that is changed, with 95% intervals: training questions, refreshing, the base's corpus, equal entropy, votes, labels; hollow markers are arms with one seed](../figures/laptop/causes.png)
#
# *Cost.* 69.5 core-minutes in profile laptop; nothing to run at the paper's scale.
#
# One thing is changed at a time. Hypotheses and rules were written before the runs, in
# [hypotheses-causes](../docs/hypotheses-causes.md), with what was not run; the last cells print every number that decides one.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd

from sept import causes, experiments, figures, figures_causes, figures_margins, profiles
from sept.evaluation import best_temperature, difference, summarise
from sept.provenance import environment

scale = profiles.profile(profile)
if scale.model != "H":  # what is changed here can be changed in the embedded world only
    scale = profiles.profile("laptop")
seeds = scale.seeds[:3]
ranks = 3, 2, 1, 1  # how many seeds get the first rank, other bases, the second and the third rank
provenance = {**environment(), "profile": profile, "config": scale.key(), "seeds": list(seeds)}
figures.use_style()

# %% [markdown]
# ## The arms
#
# All draw as many answers a round as SePT in its usual shape, 128 questions with one answer each. Arms of the second
# rank have fewer seeds; with one seed an interval covers the questions only, and nothing is decided.
#
# - *Training questions*: 32 questions with 4 answers a round, from a finite set asked again and again (each training
#   seed has sets of its own) or always fresh.
# - *Sampler refreshed*: from online to offline.
# - *Passes and rate*: how far a round goes on the answers it drew.
# - *Second stage of the base*: base H is base F after a second stage on 1,000 noisy documents. The same stage (tokens,
#   noise, rate) on the first 250 of them, or on always fresh ones, changes how much error is tied to single questions.
# - *Votes*: 16 questions with 8 answers. SePT trains on all; in the other arm every answer that disagrees with the
#   majority of its 8 is replaced by one that agrees. So is what a vote knows better than what sharpening knows?
# - *Then labels*: GRPO goes on where SePT was after half of its rounds.

# %%
arms = causes.arms(scale, seeds, ranks)
corpora = {name: group[0].base for name, group in arms["Second stage of the base"].items()}
pd.Series({panel: ", ".join(group) for panel, group in arms.items()}).to_frame("arms")

# %%
levels = [t for t in scale.temperatures if t in (0.2, 0.4, 0.6, 0.9)]
sweeps = {name: {t: scale.score(model, t) for t in levels} for name, model in corpora.items()}
own = [
    (r, *(scale.score(m, t, r.problems) for m, t in ((r, 1.0), ("H", 0.0), ("H", 1.0))))
    for r in arms["Training questions"]["36 questions"]
]
finals = [scale.score(model) for panel in arms.values() for group in panel.values() for model in group]
asked = [*finals, *(s for row in own for s in row[1:]), *(s for x in sweeps.values() for s in x.values())]
experiments.compute(asked, label="causes")

# %% [markdown]
# ## The temperature of equal entropy
#
# SePT's entropy per token at $T = 1$, and by bisection the temperature at which its base has the same; both from
# sampled answers to the dev questions.

# %%
matched = []
for run in arms["Equal entropy"]["SePT"]:
    entropy = [
        lambda tau, m=model: causes.token_entropy(m, scale.dev, tau, limit=scale.max_new_tokens)
        for model in (causes.final(run), "H")
    ]
    matched.append(causes.matched_temperature(entropy[1], entropy[0](1.0)))
at_equal = [scale.score("H", tau) for tau in matched]
experiments.compute(at_equal, label="equal entropy")
matched

# %% [markdown]
# ## The vote as a rule of decoding
#
# The majority of 32 answers: of the base, at the temperature that is best for just that, and of SePT at 1.

# %%
ballots = {
    t: causes.votes(scale.score("H", t)) for t in scale.temperatures if t in (0.2, 0.4, 0.6, 0.8, 1.0)
}
best_vote = max(ballots, key=lambda t: ballots[t]["pass@1"].mean())
elected = [causes.votes(scale.score(run)) for run in arms["Equal entropy"]["SePT"]]
{t: round(100 * table["pass@1"].mean(), 1) for t, table in ballots.items()}

# %% [markdown]
# ## Gains
#
# Over the untrained model at the temperature that is best for its AVG; on the bases of other corpora over their own.

# %%
found = {name: experiments.scored(sweep) for name, sweep in sweeps.items()}
level = {name: sweep[best_temperature(sweep)] for name, sweep in found.items()}
usual = level["1,000 documents (H)"]
scored = {
    panel: {name: [experiments.scores(scale.score(m)) for m in group] for name, group in of.items()}
    for panel, of in arms.items()
}
scored["Equal entropy"] |= {"base at T*": [experiments.scores(s) for s in at_equal]}
scored["Votes"] |= {"base, maj@32": [ballots[best_vote]] * len(seeds), "SePT, maj@32": elected}
gains = {
    panel: {n: [difference(r, level.get(n, usual)) for r in runs] for n, runs in of.items()}
    for panel, of in scored.items()
}
rows = [
    summarise(runs).reset_index().assign(panel=panel, arm=name)
    for panel, of in gains.items()
    for name, runs in of.items()
]
table = pd.concat(rows)[["panel", "arm", "metric", "value", "lo", "hi", "seeds", "questions"]]
draw = figures_causes.figure_causes
figures.save_figure(draw, "causes", table, out_dir, provenance, measured=scale.label())

# %% [markdown]
# ## Margins: what is sharpened
#
# The slope of a run's margins on the untrained model's, at answers to the questions of its first round. Of finite sets
# these are trained on again and again. Fresh ones are never asked again, and the first round of the warm-up changes
# nothing, so they stand for questions not trained on. Bands: lowest and highest of the seeds.

# %%
parts = []
for panel in ("Training questions", "Sampler refreshed"):
    for name, group in arms[panel].items():
        values = pd.concat([experiments.rounds_table(run)[["round", "slope"]].dropna() for run in group])
        line = values.groupby("round")["slope"].agg(["mean", "min", "max"]).reset_index()
        parts.append(line.set_axis(["x", "value", "lo", "hi"], axis=1).assign(panel=panel, series=name))
slopes = pd.concat(parts, ignore_index=True)
labels = {panel: ["round", "slope of the margins"] for panel in slopes["panel"].unique()}
draw = figures_margins.figure_lines
figures.save_figure(draw, "causes_slopes", slopes, out_dir, provenance, labels=labels, columns=2)

# %% [markdown]
# ## Verdicts
#
# Each row: a metric, the range its interval must lie in, and the combination of arms. *held*: it lies there; *refuted*:
# wholly outside; *open*: neither.

# %%
above, below, within = (0, 1e9), (-1e9, 0), (-3, 3)
asks = {
    "Ca1": ("AVG", above, {"fresh questions": 1, "36 questions": -1}),
    "Ca2": ("AVG", below, {"36 questions": 1, "fresh questions": -0.5}),
    "Ca4": ("AVG", within, {"fresh questions": 1, "2,304 questions": -1}),
    "Ca5": ("pass@1", above, {"own": 1, "own, base greedy": -0.5, "own, base": -0.5}),
    "Cb2": ("AVG", within, {"every round": 1, "every 10 rounds": -1}),
    "Cb3, loss": ("AVG", above, {"every round": 1, "every 30 rounds": -1}),
    "Cb3, rest": ("AVG", above, {"every 30 rounds": 1, "every round": -0.5, "never": -0.5}),
    "Cc1": ("AVG", above, {"4 passes, lr 1e-4": 1, "1 pass, lr 1e-4": -1}),
    "Cc2": ("AVG", above, {"1 pass, lr 1e-4": 1, "1 pass, lr 3e-5": -1}),
    "Cc3": ("AVG", within, {"4 passes, lr 3e-5": 1, "1 pass, lr 1e-4": -1}),
    "Cd1": ("AVG", above, {"250 documents": 1, "fresh documents": -1}),
    "Cd3": ("AVG", (-1e9, 2), {"fresh documents": 1}),
    "Ce1": ("AVG", above, {"SePT": 1, "base at T*": -1}),
    "Ce2": ("pass@1", above, {"SePT": 1, "base at T*": -1}),
    "Cf1": ("AVG", above, {"majority, 16 x 8": 1, "SePT, 16 x 8": -1}),
    "Cf2": ("pass@1", below, {"SePT": 1, "base, maj@32": -1}),
    "Cf3": ("pass@1", above, {"SePT, maj@32": 1, "base, maj@32": -1}),
    "Cg1": ("AVG", above, {"SePT, then GRPO": 1, "GRPO, half way": -1}),
    "Cg2": ("AVG", below, {"SePT, then GRPO": 1, "GRPO": -1}),
    "Cg3": ("AVG", above, {"SePT, then GRPO": 1, "SePT": -1}),
}

# %%
flat = {name: runs for of in gains.values() for name, runs in of.items()}
for number, name in enumerate(("own", "own, base greedy", "own, base"), 1):
    flat[name] = [experiments.scores(row[number]) for row in own]
headline = {}
for name, (metric, wanted, terms) in asks.items():
    if not set(terms) <= set(flat):
        headline[name] = ["open"]  # an arm was not run
        continue
    row = summarise(causes.combined(terms, flat)).loc[metric]
    headline[name] = [round(float(row[c]), 2) for c in ("value", "lo", "hi")]
    headline[name] += [causes.verdict(row["lo"], row["hi"], wanted, int(row["seeds"]))]
orders = {"Ca3": ("Training questions", 5), "Cb1": ("Sampler refreshed", 5)}
orders["Cd2"] = ("Second stage of the base", 4)
for name, (panel, number) in orders.items():  # the largest gain last
    both = min(map(len, gains[panel].values()))  # the seeds that all arms have
    values = [round(float(summarise(r[:both]).loc["AVG", "value"]), 2) for r in gains[panel].values()]
    values = values if name == "Ca3" else values[::-1]
    headline[name] = [*values, causes.ordered(values, number) if both > 1 else "open"]
headline = dict(sorted(headline.items()))
bests = {name: best_temperature(sweep) for name, sweep in found.items()}
headline |= {"baseline temperature": bests, "T*": matched, "voting temperature": best_vote}
headline["maj@32 of the base"] = round(100 * float(ballots[best_vote]["pass@1"].mean()), 2)
headline |= {"seeds": list(seeds), "seeds by rank": list(ranks), "questions": len(usual)}
experiments.record(out_dir, "23_causes", headline)
pd.Series(headline).to_frame("value, interval or order, verdict")
