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
# # The paper's claims, one by one
#
# <!--index
# group: start
# asks: What of the paper holds on a model that everyone can run?
# -->
# **Question.** What of the paper holds on a model that everyone can run?
#
# **Answer.** Of <!--laptop/19_claims:claims-->18 claims <!--laptop/19_claims:holds here-->14 hold here, <!--laptop/19_claims:undecided-->3 are undecided and <!--laptop/19_claims:does not hold here-->1 does not hold.
#
# ![A table of 18 claims with the published value, the measured value as a point with its interval, and the verdict: most intervals lie on the published side of zero, EM-FT's lies on the other, three straddle their threshold](../figures/laptop/claims.png)
#
# *Cost.* 0.2 core-minutes and 0.5 GB of memory in profile laptop; nothing to run at the paper's scale.
#
# The table says so claim by claim: published evidence, measured evidence with its interval, and the verdict of a rule
# that was committed before the reported runs (`sept/claims.py`); `rule_first` marks the rules that were written before
# any number for them had been seen at all. A claim that fails here is shown as clearly as one that holds; it fails *on
# the embedded model*, no more and no less. This notebook computes nothing: it reads what the others recorded.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
from pathlib import Path

import pandas as pd

from sept import claims, experiments, figures, figures_claims
from sept.provenance import environment, write_text

provenance = {**environment(), "profile": profile}
figures.use_style()

# %% [markdown]
# ## What decides
#
# Each claim has one statistic with an interval, measured by the notebook named beside it. `above t`: the whole
# interval has to lie above $t$; `within t`: inside $\pm t$. An interval that straddles the threshold decides nothing.

# %%
rules = pd.DataFrame(
    [
        {"claim": c.name, "rule": f"{c.rule} {c.threshold:g}", "statistic": c.statistic}
        for c in claims.CLAIMS
    ]
)
rules.style.hide(axis="index")

# %%
table = pd.DataFrame(claims.claims_table(out_dir))
write_text(Path(out_dir) / "claims.csv", table.to_csv(index=False))
figures.save_figure(figures_claims.figure_claims, "claims", table, out_dir, provenance)

# %%
shown = ["text", "rule_first", "published", "source", "value", "lo", "hi", "verdict", "notebook"]
table[shown].round(2).style.hide(axis="index").format(precision=2, na_rep="-")

# %% [markdown]
# Mind three things. Published numbers come from one run each, so their sign is evidence, their size much less.
# The embedded model is 0.3 M parameters of written arithmetic: a claim about large $k$ or other question sets may
# depend on that. And "undecided" means what it says.

# %%
headline = {verdict: int(n) for verdict, n in table["verdict"].value_counts().items()}
headline["claims"] = len(table)
experiments.record(out_dir, "19_claims", headline)
headline
