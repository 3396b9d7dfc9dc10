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
# # When does a model help itself?
#
# <!--index
# group: theory
# asks: When does a model help itself? A theory small enough to solve.
# -->
# **Question.** SePT writes a low temperature into the weights (Theorem 1). How can that ever beat simply *decoding*
# at a low temperature, and when does it lose?
#
# **Answer.** Decoding cold sharpens everything, training on fresh questions only what questions *share*: where that is 10% of the
# margins' variance six rounds gain <!--laptop/21_when_it_helps:gain at 10% shared, pass@1-->43.6 points of pass@1 over the best temperature, and where it is all of it <!--laptop/21_when_it_helps:gain at 100% shared, pass@1-->-0.1, while pass@32
# changes by <!--laptop/21_when_it_helps:gain at 100% shared, pass@32-->-36.0 points, the price of wrong habits.
#
# ![Three panels of the solved model: the untrained curve over temperatures, the same for all; pass@1 by round, which rises above the best temperature the more, the less of the margins is shared; pass@32 by round, which rises at 10% and 40% shared and falls at 80% and 100%](../figures/laptop/when_it_helps_rounds.png)
#
# *Cost.* 0.4 core-minutes and 0.8 GB of memory in profile laptop; nothing to run at the paper's scale.
#
# Rounds end at the vote of the shared part, the temperature ends at the vote of shared part plus memorised noise. It helps
# if errors are noise of single questions on top of right habits, it hurts if habits themselves are wrong. Everything
# below follows from one small model that can be solved; the last part holds it against base H and the bases of the map.

# %% tags=["parameters"]
profile = "quick"  # str: "smoke" draws fewer answers for the maps; all else is the same in every profile
out_dir = "figures/quick"  # str: where figures, their tables and the headline numbers go
seed = 0  # int: of the drawn answers and of the random logits that the statements are checked on

# %%
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, minimize
from scipy.special import ndtr, ndtri, softmax
from scipy.stats import bootstrap

from sept import figures, figures_margins, figures_regime, published
from sept import shared_part as sp
from sept.experiments import record
from sept.provenance import environment

tau, c = 0.6, 1 / 0.6  # tau_s; tau_t = 1
provenance = {**environment(), "profile": profile, "seed": seed, "policy": "shared and own logits"}
figures.use_style()
rng = np.random.default_rng(seed)

# %% [markdown]
# ## The model
#
# Questions $x$ of one *type* have logits
# $$z_x(a) = s(a) + u_x(a),$$
# the part $s$ shared by all of them and a part of each question's own: what was memorised about it, or what it
# happens to stir up. Own parts are drawn from some $P_u$ with mean zero. A model of the world is many types, each
# with its own $s$; in some of them the shared part prefers a wrong answer. With two answers, only margins of the
# right one count: $m$ and $u \sim N(0, v)$, so $p = \sigma(m + u)$.
#
# A round samples answers from $q_x = \mathrm{softmax}(z_x/\tau_s)$ and minimises cross-entropy at $\tau_t$. Write $c =
# \tau_t/\tau_s$. All depends on which of the two parts the round can move.
#
# **1. The same N questions until convergence: both.** The cross-entropy is zero-gradient only at $z'_x = c z_x$ (up to
# constants), Theorem 1. Where does the growth go? Let gradient flow move $s$ at rate 1 and $u_x$ at rate $r$ (in a
# network: how much of the gradient's squared length lies in features of that question alone). Both are moved by the same
# gradients $g_x$: $\dot s = \sum_x g_x$ and $\dot u_x = r g_x$. So $r s - \sum_x u_x$ never changes, and with $z'_x =
# c z_x$
# $$s' = s + (c - 1)\,\frac{N}{N + r}\,(s + \bar u).$$
# Of the growth the share $N/(N+r)$ becomes common property, *including the mean noise $\bar u$ of the set*.
#
# **2. Fresh questions at every step: the shared part alone.** Then a round minimises $f(s') = \mathbb{E}_u
# \mathrm{CE}(q_{s+u}, p_{s'+u})$, and its gradient vanishes where
# $$\mathbb{E}_u\,\mathrm{softmax}\frac{s' + u}{\tau_t} = \mathbb{E}_u\,\mathrm{softmax}\frac{s + u}{\tau_s}.$$
# *The mean answer is kept, single questions are not.* Such an $s'$ exists and is unique up to a constant:
# log-sum-exp is strictly convex but for constants, so $f$ is, and $f \to \infty$ in every other direction because $q$
# gives each answer a positive chance.
#
# **3. Offline** is a round of 1 or 2 whose sampler never moves, so it ends there. Of fresh questions, the *chain rule* of
# this theory says: **accuracy at $T=1$ after a converged round is accuracy at $T=\tau_s$ before it**, exactly. One
# round can therefore never beat the best temperature in pass@1. It may in pass@k: equal mean, but less spread
# between questions, and $1-(1-p)^k$ is concave.
#
# **4. Coupled**, $\tau_s = \tau_t$: every $s$ is its own fixed point. Only noise is left: a step of rate $\eta$ with $B$
# draws moves $m$ by $\eta(a - p)$, mean zero, variance $\eta^2\,\mathbb{E}[p(1-p)]/B$. Accuracy is concave in $m$ where $m >
# 0$, so a right type loses $\frac{\eta^2}{2B}\mathbb{E}[p(1-p)]\,|\mathbb{E}[p(1-p)(1-2p)]|$ a step and a wrong one gains it.
# A signal grows like $\eta \times$ steps, this like $\eta^2 \times$ steps: at a smaller rate it fades, at a large one
# it is all there is.
#
# **5. EM-FT** minimises $H(p)$. For any number of answers
# $$-\nabla_z H = p \circ (\log p + H) = \tfrac{d}{d\beta}\,\mathrm{softmax}(\beta z)\big|_{\beta = 1},$$
# so its gradient is SePT's to first order in $\tau_t/\tau_s - 1$. What differs is the end of a round: SePT has a target,
# EM-FT pushes a confident answer on for ever.
#
# Each line of the table computes a statement by routes that share no code: closed form, Newton on the moments,
# quasi-Newton on the enumerated loss, exact gradient flow, bracketing, finite differences.

# %%
s, own, w = rng.normal(0, 1, 4), rng.normal(0, 1.2, (6, 4)), rng.dirichlet(np.full(6, 3.0))
loss, even = (lambda new: sp.fresh_loss(new, s, own, w, tau, 1.0)), np.full(6, 1 / 6)
new = sp.fresh_round(s, own, w, tau, 1.0)
by_bfgs = minimize(loss, s, jac=True, method="BFGS", options={"gtol": 1e-11}).x
by_flow = sp.flow(s, own, w, tau, 1.0, 0.0, np.array([0.0, 1000.0]))[0][-1]
fixed, fixed_own = sp.fixed_round(s, own, tau, 1.0, 8.0)
flow_s, flow_own = (part[-1] for part in sp.flow(s, own, even, tau, 1.0, 8.0, np.array([0.0, 1e5])))
m, v = np.array([-0.7, 0.4, 2.0]), 0.8
cold = sp.fresh_margin(m, v, tau)
roots = [
    brentq(lambda x, a=a: float(sp.right(x, v, 1) - sp.right(a, v, tau)), -9, 9, xtol=1e-13) for a in m
]
slope = -(sp.entropy(m + 1e-5, v) - sp.entropy(m - 1e-5, v)) / 2e-5
residuals = {
    "fresh: Newton on the moments = minimum of the loss": new - new.mean() - by_bfgs + by_bfgs.mean(),
    "fresh: = gradient flow": new - by_flow,
    "fresh: the mean answer is kept": w @ (softmax(new + own, 1) - softmax((s + own) / tau, 1)),
    "fixed: Theorem 1 on the trained questions": np.ptp(fixed + fixed_own - c * (s + own), axis=1),
    "fixed: own parts, closed form = gradient flow": np.ptp(fixed_own - flow_own, axis=1),
    "fixed: shared part, closed form = gradient flow": np.ptp(fixed - flow_s),
    "two answers: log-Newton = bracketing": cold - roots,
    "two answers: wrong preferences grow alike": cold + sp.fresh_margin(-m, v, tau),
    "coupled: every s stays": sp.fresh_round(s, own, w, 0.7, 0.7) - s,
    "EM-FT: its pull = -dH/dm": sp.pull(m, v) - slope,
}
report = pd.DataFrame(
    [[k, np.abs(r).max()] for k, r in residuals.items()], columns=["statement", "residual"]
)
assert (report["residual"] <= 1e-8).all(), report
report.style.format({"residual": "{:.1e}"}).hide(axis="index")

# %% [markdown]
# ## Two answers: by how much, and where it ends
#
# **Growth.** A sigmoid is nearly a Gaussian's distribution function, $\sigma(x) \approx \Phi(\lambda x)$, $\lambda^2 = \pi/8$, and
# Gaussians add: $\mathbb{E}\,\sigma((m+u)/\tau) \approx \Phi\big(\lambda m/\sqrt{\tau^2 + \lambda^2 v}\big)$. Equating both sides of
# statement 2,
# $$m' = g\,m, \qquad g = \sqrt{\frac{\tau_t^2 + \lambda^2 v}{\tau_s^2 + \lambda^2 v}},$$
# between $c$ (nothing is a question's own, $v = 0$) and 1 (all is). The variance $v$ stays what it was, so rounds
# multiply. The next cell prints the exact growth: within 2% for $m \le 1$; far out, where all own
# parts agree, the exact growth returns to $c$.
#
# **Signs are kept.** $\sigma(z/\tau) = P(z + \tau\ell > 0)$ with $\ell$ logistic, so $\mathbb{E}\,\sigma((m + u)/\tau) = P(W_\tau < m)$
# with $W_\tau = u + \tau\ell$. For $u$ symmetric with one peak, $W_\tau$ is too, and it spreads as $\tau$ grows. So for $m > 0$ cold
# sampling is right more often, hence $m' > m$; for $m < 0$ mirror images; 0 stays. **A shared preference never
# changes sides. It only wins.** (One peak is needed. With own parts of $\pm 3$ and $m = 1$ the two camps are certain already,
# and the round *shrinks* $m$: exercise 2.)
#
# **Where it ends.** After many rounds accuracy on unseen questions is the share of types with $m_j > 0$. Greedy decoding of
# the base gives $\mathbb{E}\,\Phi(m_j/\sqrt v)$, other temperatures $\mathbb{E}\,\Phi(\lambda m_j/\sqrt{T^2 + \lambda^2 v})$, which is never
# outside of what greedy and coin-tossing give type by type. Say a share $\omega$ of types is wrong with the same $|m|$:
# $$\text{limit of SePT} - \text{best temperature} = (1 - 2\omega)\,\big(1 - \Phi(|m|/\sqrt v)\big)\quad (\omega < \tfrac12),$$
# positive as long as most types are right, and large if memorised noise made greedy decoding poor.
#
# **When it crosses.** SePT at $T=1$ passes its greedy base once $g^R = \sqrt{1 + 1/(\lambda^2 v)}$, whatever $m$ is:
# $$R = \ln\Big(1 + \frac{1}{\lambda^2 v}\Big)\Big/ \ln\frac{1 + \lambda^2 v}{\tau^2 + \lambda^2 v} \;\to\; \frac{1}{1 - \tau^2}
# = 1.56\text{ rounds for large } v.$$
# Always more than one: this is what refreshing the sampler is for.
#
# **A temperature sweep cannot see it coming.** It depends on $\mathrm{Var}(m) + v$ only. Below, five bases of ten decisions
# per answer that are *the same at every temperature* and differ in how much of the variance of margins is shared.

# %%
at = np.array([0.1, 1, 3, 10])
growths = {
    v: [sp.growth(v, tau), *(sp.fresh_margin(at, v, tau) / at)] for v in (0.01, 0.1, 0.5, 1, 2, 4, 16)
}
g_table = pd.DataFrame.from_dict(growths, "index", columns=["probit g", *(f"m = {m:g}" for m in at)])
print(g_table.rename_axis("v").to_string(float_format="{:.3f}".format))
decisions, total, drawn = 10, 5.3, 1000 if profile == "smoke" else 8000
temperatures, shares = np.round(np.arange(0, 1.61, 0.1), 1), (0.1, 0.4, 0.6, 0.8, 1.0)
mu = np.sqrt(total) * ndtri(0.5 ** (1 / decisions))  # greedy is right half of the time
rows, ends, before = [], {}, {}
for share in shares:
    m, u = sp.answers(mu, share * total, (1 - share) * total, decisions, drawn, seed)
    paths = sp.rounds_of(m, (1 - share) * total, tau, 6)
    name = f"{100 * share:.0f}% shared"
    for k in (1, 32):
        if k not in before:  # the sum of the two parts has the same distribution for every share
            before[k] = {t: 100 * sp.sampled_pass(m, u, t, k) for t in temperatures}
            rows += [["untrained", f"Baseline, pass@{k}", t, y] for t, y in before[k].items()]
            rows += [[f"pass@{k}, T = 1", "Baseline, best T", x, max(before[k].values())] for x in (0, 6)]
        after = [100 * sp.sampled_pass(x, u, 1.0, k) for x in paths]
        rows += [[f"pass@{k}, T = 1", name, r, y] for r, y in enumerate(after)]
        ends[share, k] = after[-1] - max(before[k].values())
table = pd.DataFrame(rows, columns=["panel", "series", "x", "value"]).assign(lo=None, hi=None)
score, names = "score (%)", ["SePT rounds", "score (%)"]
labels = {"untrained": ["temperature", score]} | {f"pass@{k}, T = 1": names for k in (1, 32)}
figures.save_figure(
    figures_margins.figure_lines, "when_it_helps_rounds", table, out_dir, provenance, labels=labels
)

# %% [markdown]
# Left, the one curve that all five share. Middle, they part: with 10% shared nearly every error was noise, and rounds remove
# it; with 100% shared all errors are habits, and the end of many rounds *is* greedy decoding. Right, what that costs at
# $k = 32$.
#
# ## How many steps, how many questions: the order of limits matters
#
# Statements 1 and 2 disagree about the shared part, $c$ against $g$, even for $N \to \infty$. Both are right. On a fixed set the
# shared part moves first and stops at $g$, as if questions were fresh. Then, over a time that grows with $N$, the own parts
# of the trained questions take their share, and the shared part is pulled on to $1 + (c-1) N/(N+r)$. So **slopes
# on new questions should be larger after long training on one set than with fresh questions at every step**, though
# fresh questions are the better teachers: what a set adds is its own mean noise. Iterated to the end, a set of
# $N$ sends each type where $m + \bar u$ points. A new question is then right with chance
# $$\Phi\big(m\sqrt{N/v}\big),$$
# *a vote of $N$ questions*: greedy decoding of the base for $N = 1$, the shared part for $N \to \infty$.

# %%
m, v, rate, times, rows = 1.0, 1.0, 16.0, np.geomspace(0.1, 1e5, 25), []
sets = {f"fixed set of {n}": (n, rate) for n in (2, 16, 128)} | {"fresh questions": (128, 0.0)}
for name, (n, r) in sets.items():
    spread = np.sqrt(v) * ndtri((np.arange(n) + 0.5) / n)  # a balanced set: its mean noise is zero
    parts, weights = np.stack([spread, np.zeros(n)], 1), np.full(n, 1 / n)
    s_t, own_t = sp.flow(np.array([m, 0.0]), parts, weights, tau, 1.0, r, np.array([0.0, *times]))
    shared, old = (s_t[1:, 0] - s_t[1:, 1]), m + spread
    z = shared[:, None] + own_t[1:, :, 0] - own_t[1:, :, 1]
    rows += [["new questions", name, *xy] for xy in zip(times, shared / m, strict=True)]
    rows += [["trained questions", name, *xy] for xy in zip(times, z @ old / (old @ old), strict=True) if r]
for ratio in (0.1, 0.3, 1.0):
    chances = {n: 100 * ndtr(ratio * np.sqrt(n)) for n in 2 ** np.arange(11)}
    rows += [["after many rounds", f"$m = {ratio}\\,\\sigma$", n, y] for n, y in chances.items()]
steps = pd.DataFrame(rows, columns=["panel", "series", "x", "value"]).assign(lo=None, hi=None)
time, both = "time of gradient flow", [[0.1, 1e5], [c, c]]
labels = {"new questions": [time, "growth of $m$"], "trained questions": [time, "slope"]}
labels |= {"after many rounds": ["questions in the set", "right on new ones (%)"]}
options = {"labels": labels, "theory": dict.fromkeys(list(labels)[:2], both), "log": list(labels)}
figures.save_figure(
    figures_margins.figure_lines, "when_it_helps_steps", steps, out_dir, provenance, **options
)

# %% [markdown]
# Dashed: $c = 1.67$. The largest set follows fresh questions up to their $g$, then leaves them behind.
#
# ## Three roads to the same entropy, noise, and large k
#
# *Equal entropy*: temperature, SePT (one small step per round) and EM-FT on one population of types. Sharpening the shared
# part alone buys more accuracy per nat than sharpening everything, and SePT and EM-FT take almost the same road. They
# differ in speed (*pull*): where margins are large SePT's target is reached and EM-FT still pushes, so its steps
# need a smaller rate, and on stale samples it has no resting point. *Coupled*: three rates over the same distance.
#
# **When pass@k falls.** pass@k is $\mathbb{E}[1-(1-p)^k]$. A round multiplies each $m_j$ by $g$, so it changes it by $(g - 1)$ times
# $$\mathbb{E}\big[m_j \cdot k\,p\,(1-p)^k\big].$$
# The kernel $k p(1-p)^k$ peaks at a total margin of $-\ln k$ and has about unit variance there: large $k$ looks at questions that are
# answered once in $k$ times. For types $m_j \sim N(\mu, s^2)$ the shared part behind such a margin has a mean that changes
# sign at
# $$k^* \approx \exp\frac{\mu\,(1 + v)}{s^2}.$$
# Below $k^*$ a round raises pass@k, above it lowers it. With little shared error ($s^2 \to 0$) no $k$ ever loses; with only
# shared error $k^*$ is small. Type by type there is no exception: a wrong type loses at every $k$.

# %%
mu_1, total_1, v, rows = 1.0, 1.2, 0.6, []
types, weight = sp.normal_nodes(total_1 - v, mu_1, 121)
road, roads_of = (
    "equal entropy",
    {"Baseline, any T": [(types / t, v / t**2) for t in np.geomspace(0.1, 2, 15)]},
)
pulls = {"SePT": lambda _, m: sp.pull(m, v, tau), "EM-FT": lambda _, m: sp.pull(m, v)}
for name, force in pulls.items():
    found = solve_ivp(force, (0, 60), types, t_eval=np.linspace(0, 60, 16), rtol=1e-8).y.T
    roads_of[name] = [(m, v) for m in found]
    rows += [["pull on a margin", name, x, float(force(0, np.array(x)))] for x in np.linspace(0, 6, 13)]
for name, points in roads_of.items():
    rows += [[road, name, weight @ sp.entropy(*p), 100 * weight @ sp.right(*p, 1.0)] for p in points]
for eta in (0.1, 0.3, 1.0):
    at, walk = sp.coupled_walks(1.0, v, eta, round(30 / eta), 500 if profile == "smoke" else 8000, seed)
    rows += [["coupled, m = 1", f"rate {eta:g}", *xy] for xy in zip(eta * at, 100 * walk, strict=True)]
for share in (0.2, 0.5, 0.8):
    change = {k: sp.slope_at_k(mu_1, share * total_1, (1 - share) * total_1, k) for k in 2 ** np.arange(11)}
    name, top = f"{100 * share:.0f}% shared", max(change.values())
    rows += [["change of pass@k", name, k, y / top] for k, y in change.items()]
roads = pd.DataFrame(rows, columns=["panel", "series", "x", "value"]).assign(lo=None, hi=None)
labels = {road: ["entropy (nats)", "right (%)"], "pull on a margin": ["shared margin $m$", "its speed"]}
labels |= {"coupled, m = 1": ["rate $\\times$ steps", "right (%)"], "change of pass@k": ["k", "relative"]}
options = {"labels": labels, "log": ["change of pass@k"], "columns": 2}
figures.save_figure(
    figures_margins.figure_lines, "when_it_helps_roads", roads, out_dir, provenance, **options
)

# %% [markdown]
# ## The map
#
# Gain over the best temperature, each $k$ with a best temperature of its own. Top left, the closed form above for many rounds, one
# decision and a share of wrong types. The others: ten decisions per answer, after four converged rounds, over what is right
# at $T=0$ and how much is shared. Black: no gain. The cross is the base whose futures the first figure showed, at
# 60%.

# %%
x_ratio, y_wrong = np.linspace(0, 3, 25), np.linspace(0, 0.5, 21)
rows = [
    ["k = 1, end of many rounds", x, y, 100 * (1 - 2 * y) * (1 - ndtr(x))] for x in x_ratio for y in y_wrong
]
grid = (0.1, 0.5, 0.9) if profile == "smoke" else (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)
for greedy in (0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
    mean = np.sqrt(total) * ndtri(greedy ** (1 / decisions))
    for share in grid:
        m, u = sp.answers(mean, share * total, (1 - share) * total, decisions, drawn // 4, seed)
        final = sp.rounds_of(m, (1 - share) * total, tau, 4)[-1]
        for k in (1, 8, 32):
            best = max(sp.sampled_pass(m, u, t, k) for t in temperatures[::2])
            gain = 100 * (sp.sampled_pass(final, u, 1.0, k) - best)
            rows.append([f"k = {k}, four rounds", 100 * share, 100 * greedy, gain])
map_table = pd.DataFrame(rows, columns=["panel", "x", "y", "value"])
labels = {
    p: ["share of the variance that is shared (%)", "greedy accuracy (%)"]
    for p in map_table["panel"].unique()
}
labels["k = 1, end of many rounds"] = ["$|m|/\\sqrt{v}$", "share of wrong types"]
options = {
    "labels": labels,
    "unit": "gain over the best temperature (points)",
    "points": {p: [60, 50] for p in labels if "four" in p},
}
figures.save_figure(
    figures_regime.figure_maps, "when_it_helps_map", map_table, out_dir, provenance, **options
)

# %% [markdown]
# ## Base H through the eyes of this model
#
# Two things are read off base H, from what other notebooks recorded (`figures/laptop`). First its *carry-over*: one converged round
# multiplies margins by $c$ on the 64 questions it trained on and by less on others (notebook 16). If $N \gg r$, statement 1 says $1 +
# (c - 1)\rho$, with $\rho$ the shared part of the margins' variance. Second its temperature curve (notebook 02), which gives $\mu$,
# $s^2 + v$ and the number of decisions. No trained model enters. Out come the growth $g$ per round on fresh questions, the slope that
# fresh questions at every step should show ($1 + (g - 1)\rho$), and the score at the end of many rounds, $\Phi(\mu/s)^D$.
#
# Read it as an illustration: the model was made after H's numbers were known. [docs/hypotheses.md](../docs/hypotheses.md) says what
# it predicts for bases that it has not seen.

# %%
laptop = Path("figures/laptop")
at = json.loads((laptop / "16_theorem_on_language_models.json").read_text())
carry_over = (at[f"other at {tau}"] - 1) / (at[f"slope at {tau}"][0] - 1)
curves = pd.read_csv(laptop / "figure_6.csv").query("metric == 'pass@1'")
base, trained = (curves[curves["method"] == name] for name in ("Baseline", "SePT"))
read = sp.read_base(base["temperature"].to_numpy(), base["value"].to_numpy() / 100, carry_over)
types, weight = sp.normal_nodes(read["s2"], read["mu"], 401)
paths, after = sp.rounds_of(types, read["v"], tau, 6), {}
rows = [["base H", "Baseline, measured", r.temperature, r.value, r.lo, r.hi] for r in base.itertuples()]
rows += [["after SePT", "SePT, measured", r.temperature, r.value, r.lo, r.hi] for r in trained.itertuples()]
for n, name in {0: "read", 1: "one round", 3: "three rounds", 6: "six rounds"}.items():
    panel = "after SePT" if n else "base H"
    for t in temperatures:
        after[n, t] = 100 * (weight @ sp.right(paths[n], read["v"], t)) ** read["decisions"]
        rows.append([panel, name, t, after[n, t], None, None])
rows += [["after SePT", "many rounds", t, 100 * read["limit"], None, None] for t in temperatures]
h_table = pd.DataFrame(rows, columns=["panel", "series", "x", "value", "lo", "hi"])
labels = {p: ["temperature", "pass@1 (%)"] for p in ("base H", "after SePT")}
figures.save_figure(
    figures_margins.figure_lines,
    "when_it_helps_base_h",
    h_table,
    out_dir,
    provenance,
    labels=labels,
    columns=2,
)

# %% [markdown]
# The level at $T = 1$ is about right, the shape is not: SePT's greedy answers are better than the reading allows, and
# they fall off faster with temperature. The chain rule fits: Offline at $T = 1$ has the pass@1 of its base at $T = 0.6$, and
# more pass@32 (last cell). So it does in the paper's own numbers for Qwen2.5-Math-7B: 21.0 against 19.2 for the base at 0.6
# and 12.5 at 1, and 65.2 against 61.0 at $k = 32$. What the model has not: questions that no draw answers, so its pass@32 is too high;
# and unequal decisions, so one $D$ stands for many, and another $D$ moves the limit.
#
# ## Read before training, on bases that it has not seen
#
# The same reading for every base of the map (notebook 22, shards in `figures/map`): row T5 of [docs/hypotheses.md](../docs/hypotheses.md), by
# the rule that was committed with it. Left, the reading against SePT's pass@1; right, the chain rule. Rows T1, T2 and T4
# are judged in notebook 22, T3 by the question sets of notebook 23. Without shards there is nothing to judge. One way
# in which the reading must fail is known: where hardly anything carries over, it says 100% in the end, but a round's growth
# is next to 1, and no run lasts that long.

# %%
found, ways = [], ["T=0.6", "T=1.0", "sept", "offline"]
for path in sorted(Path("figures/map").glob("*.json")):
    counts = pd.read_csv(path.with_suffix(".csv")).query("id.str.startswith('test')")
    scored = counts.drop(columns=["id", "family", "n"]).mean() / 32  # as many questions in every family
    scored["T=0.0"] *= 32  # one greedy answer
    curve = {float(way[2:]): y for way, y in scored.items() if way.startswith("T=")}
    carried = float(np.clip(json.loads(path.read_text())["predictors"]["carry_over"], 0.01, 1))
    limit = sp.read_base(np.array(list(curve)), np.array(list(curve.values())), carried)["limit"]
    found.append([path.stem.rsplit("-", 1)[0], limit, max(curve.values()), *scored[ways]])
bases = pd.DataFrame(found, columns=["base", "read", "best", *ways]).set_index("base") * 100
per_base = {f"map, {b}": [round(float(x), 1) for x in row] for b, row in bases.iterrows()}
ahead = (bases["read"] - bases["sept"]).abs() - (bases["best"] - bases["sept"]).abs()
t5 = [float("nan")] * 3
if len(bases) >= 4:
    interval = bootstrap((ahead,), np.mean, method="percentile", rng=0).confidence_interval
    t5 = [float(x) for x in (ahead.mean(), *interval)]
    sides = {"many rounds, read": ("read", "sept"), "the chain rule": ("T=0.6", "offline")}
    points = [[p, b, r[x], r[y]] for p, (x, y) in sides.items() for b, r in bases.iterrows()]
    points = pd.DataFrame(points, columns=["panel", "base", "x", "value"])
    axis = "pass@1 (%)"
    labels = {"many rounds, read": [f"read off the base: {axis}", f"SePT: {axis}"]}
    labels |= {"the chain rule": [f"base at T = 0.6: {axis}", f"Offline at T = 1: {axis}"]}
    options = {"labels": labels, "diagonal": list(sides)}
    figures.save_figure(
        figures_regime.figure_points, "when_it_helps_read", points, out_dir, provenance, **options
    )
bases.round(1)

# %% [markdown]
# ## What was assumed, and where it breaks
#
# * **Converged rounds.** Real rounds take one or two steps. Many small rounds go the same way (`pull`, with the sampler
#   always fresh), but "round" is then no unit of time.
# * **Two kinds of features.** Networks share in part: what a question has in common with three others is neither.
#   $r$ and $\rho$ are summaries of a spectrum.
# * **The order of limits.** Fresh questions means few steps on each; a long run on a large fixed set ends elsewhere (see above).
# * **No sampling noise.** Statement 4 says what it costs: $\eta^2$ times steps, in wrong types' favour. AdamW divides by the
#   gradient's size, so there it does not even fade with the number of draws.
# * **Answers of several tokens.** Decisions are not independent: a prefix that has gone wrong is visited at $\tau_s$ less than
#   at 1, and is trained on less.
# * **Own parts with one peak**, and never trained: memorised text can be two camps (exercise 2).
#
# ## Exercises
#
# **1.** A single offline round at $\tau_s \to 0$ on fresh questions: what accuracy at $T=1$? Why is the crossing formula then 1?
#
# <details><summary>Answer</summary>
#
# By the chain rule, that of greedy decoding of the base, exactly. In the formula $\tau = 0$ makes numerator and denominator equal. One
# round at any $\tau_s > 0$ stays below.
#
# </details>
#
# **2.** Own parts are $\pm a$, half each. For which $a$ does a round at $\tau_s = 0.6$ shrink a small shared margin?
#
# <details><summary>Answer</summary>
#
# Expand both sides in $m$: $m' \sigma'(a) = m\,\sigma'(a/\tau_s)/\tau_s$. It shrinks where $\sigma'(a/0.6) < 0.6\,\sigma'(a)$, from $a$ = <!--exercise:cold camps-->1.18 on
# (`brentq(lambda a: expit(a/.6)*expit(-a/.6) - .6*expit(a)*expit(-a), 1, 4)`). Cold camps stop listening.
#
# </details>
#
# **3.** Types with $m = 0.3\,\sigma$: how large must a fixed set be for 95% in the end?
#
# <details><summary>Answer</summary>
#
# $\Phi(0.3\sqrt N) = 0.95$ gives $N = (1.645/0.3)^2$ = <!--exercise:questions of a type-->30 questions *of that type*. A question with many decisions counts for many
# types at once.
#
# </details>
#
# **4.** Why can no temperature sweep of the base tell the five bases of the first figure apart, not even pass@k?
#
# <details><summary>Answer</summary>
#
# A sweep sees single questions, and their margins $m + u$ have the same distribution for all five. To split it, questions
# of one type have to be compared with each other: by training, or by asking variants of a question.
#
# </details>
#
# **5.** EM-FT at rate $\eta$ for one step equals SePT at which $\tau_s$ and rate, to first order?
#
# <details><summary>Answer</summary>
#
# Any $\tau_s$ close to $\tau_t = 1$ at rate $\eta/(1/\tau_s - 1)$, by statement 5.
#
# </details>

# %%
table_4 = pd.read_csv(laptop / "table_4.csv").query("method == 'Offline'").set_index("metric")
sweep = pd.read_csv(laptop / "figure_6.csv").query("method == 'Baseline' and temperature == 0.6")
sweep = sweep.set_index("metric")["value"]
headline = {
    "largest residual": float(report["residual"].max()),
    "largest error of probit g, m = 1": round(
        float((g_table["m = 1"] / g_table["probit g"] - 1).abs().max()), 4
    ),
    "carry-over of H": round(carry_over, 4),
    "slope with fresh questions, read": round(1 + carry_over * (read["growth"] - 1), 4),
    "k* of a decision of H": round(sp.turning_k(read["mu"], read["s2"], read["v"]), 2),
    **{f"H, {name}": round(value, 4) for name, value in read.items()},
    "H after six rounds, pass@1": round(float(after[6, 1.0]), 2),
    **{f"gain at {100 * s:.0f}% shared, pass@{k}": round(gain, 2) for (s, k), gain in ends.items()},
    **{f"H, {k} at 0.6": round(float(sweep[k]), 2) for k in ("pass@1", "pass@32")},
    **{f"H, Offline {k}": round(float(table_4.loc[k, "value"]), 2) for k in ("pass@1", "pass@32")},
}
paper = published.table_row(4, "Qwen2.5-Math-7B", "SePT (Offline)")
for side, k in (("left", "pass@1"), ("right", "pass@32")):
    curve = published.curve("1a", side, "Mean").set_index("x")["y"]
    headline |= {f"7B, published, {k} at {t:g}": round(float(curve[t]), 1) for t in (0.6, 1.0)}
    headline[f"7B, published, Offline {k}"] = float(paper[k])
if len(bases) >= 4:
    headline |= {"bases": len(bases), "T5": [round(x, 2) for x in t5]}
    errors = {x: (bases[x] - bases["sept"]).abs().mean() for x in ("read", "best")}
    headline |= {f"mean error of {x}": round(float(e), 2) for x, e in errors.items()}
    chain = {x: (bases[x] - bases["offline"]).abs().mean() for x in ("T=0.6", "T=1.0")}
    headline |= {f"Offline to base at {x}": round(float(e), 2) for x, e in chain.items()}
record(out_dir, "21_when_it_helps", headline | per_base)
pd.Series(headline, dtype=object).to_frame("value")
