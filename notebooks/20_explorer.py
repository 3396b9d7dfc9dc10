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
# # The explorer: drag the temperatures
#
# <!--index
# group: start
# asks: What do temperatures, rounds and samples do to the next token? Drag.
# paper: Theorem 1
# -->
# **Question.** What does a round do to the distribution of the next token, and what do temperatures, rounds and
# the number of samples change about it?
#
# **Answer.** With enough samples it multiplies every margin by the product of $\tau_t/\tau_s$ over the rounds (<!--laptop/20_explorer:slope, 4 rounds at 1.4-->0.26 after four at 1.4);
# with few, tokens that were never drawn are lost for good (<!--laptop/20_explorer:tokens lost, 4 rounds of 32 draws-->2 of 6 after four rounds of 32 draws).
#
# ![Left, the probabilities of six tokens: untrained, sampled at 0.6, and after a round, the last two alike and sharper; right, margins after against before on a straight line of slope 1.67](../figures/laptop/explorer_one_round.png)
#
# *Cost.* 0.2 core-minutes and 0.7 GB of memory in profile laptop; nothing to run at the paper's scale.
#
# Losing tokens is one way in which self-training narrows a model. Rounds here are *ideal*, each trained to its optimum
# at one prefix. A real round takes a step or two, and its prefixes share weights: see
# `16_theorem_on_language_models`.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, their tables and the headline numbers go

# %%
import ipywidgets

from sept import figures, figures_explorer, tabular
from sept.experiments import record
from sept.policy import load_policy
from sept.problems import load_problems
from sept.provenance import environment

provenance = {**environment(), "profile": profile, "rounds": "trained to their optimum"}

# %% [markdown]
# ## Two kinds of prefixes
#
# One is a row of a table of logits, as in `01_theorem_exact`. The others are prefixes that base **H** met while it
# answered a question: the model runs once, and a slider only rescales what it said.

# %%
row = tabular.random_logits(tabular.build_tree(6, 1), 0)[0]
of_table = {"the only one": (["a", "b", "c", "d", "e", "end"], row)}

policy, problem = load_policy("H"), load_problems("toy:test:add3:5").items[3]
of_model = figures_explorer.prefixes_of(policy, problem)
print(f"{problem.prompt} (right: {problem.answer}): where base H was least certain as it answered")
print("\n".join(of_model))

# %% [markdown]
# ## Drag
#
# Try: $\tau_s = \tau_t$, any number of rounds; $\tau_s = 1.4$; eight samples; 0.6 for eight rounds. Crosses mark tokens that
# were never drawn. This needs a running kernel; below are snapshots.

# %%
table_tab, model_tab = figures_explorer.Explorer(of_table), figures_explorer.Explorer(of_model)
ipywidgets.Tab([table_tab.box, model_tab.box], titles=["A table of logits", "Prefixes of base H"])

# %% [markdown]
# ## Snapshots
#
# One round at $\tau_s = 0.6$ on the table: every margin grows by $1/0.6 = 1.67$.

# %%
one_round = figures_explorer.explored(*of_table["the only one"], tau_s=0.6)
figures.save_figure(figures_explorer.figure_explorer, "explorer_one_round", one_round, out_dir, provenance)

# %% [markdown]
# Sampled hotter than trained, $\tau_s = 1.4$ for four rounds: the distribution flattens.

# %%
inverted = figures_explorer.explored(*of_table["the only one"], tau_s=1.4, rounds=4)
figures.save_figure(figures_explorer.figure_explorer, "explorer_inverted", inverted, out_dir, provenance)

# %% [markdown]
# The same temperatures in sampling and training, four rounds of 32 draws: nothing should change, but every round
# passes the sampling noise of the one before it on, and tokens that happen not to be drawn are gone.

# %%
few = figures_explorer.explored(*of_table["the only one"], tau_s=1.0, rounds=4, samples=32)
figures.save_figure(figures_explorer.figure_explorer, "explorer_few_samples", few, out_dir, provenance)

# %% [markdown]
# A real prefix of base **H**, the least certain of this answer, after one ideal round at $\tau_s = 0.6$.

# %%
real = figures_explorer.explored(*next(iter(of_model.values())), tau_s=0.6)
figures.save_figure(figures_explorer.figure_explorer, "explorer_base_h", real, out_dir, provenance)

# %%
tables = {
    "one round at 0.6": one_round,
    "4 rounds at 1.4": inverted,
    "4 rounds of 32 draws": few,
    "base H": real,
}
numbers = {name: figures_explorer.measured(table) for name, table in tables.items()}
headline = {f"slope, {name}": round(n["slope"], 4) for name, n in numbers.items()}
headline |= {f"tokens lost, {name}": int(n["lost"]) for name, n in numbers.items()}
record(out_dir, "20_explorer", headline)
headline
