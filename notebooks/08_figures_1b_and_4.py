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
# # Figures 1b and 4: one round, and what the model reads
#
# <!--index
# group: figures
# asks: What exactly happens in one round?
# paper: Figures 1b, 4
# -->
# **Question.** What exactly happens in one round, and what text does the model see?
#
# **Answer.** The model answers <!--laptop/08_figures_1b_and_4:questions a round-->128 questions at a low temperature $\tau_s$ = <!--laptop/08_figures_1b_and_4:tau_s-->0.6, takes an ordinary fine-tuning step on *all*
# of those answers at $\tau_t$ = <!--laptop/08_figures_1b_and_4:tau_t-->1, and the updated model answers the next questions.
#
# ![A loop of boxes: questions go to the old model, which draws one answer each at the low temperature; all pairs, right or wrong, go to plain fine-tuning at 1; the updated model becomes the next sampler; reward and verifier stand outside the loop](../figures/laptop/figure_1b.png)
#
# *Cost.* 0.2 core-minutes and 0.7 GB of memory in profile laptop; nothing to run at the paper's scale.
#
# Nothing in the round says which answers are right. The text is the question in the template that the model
# knows, and nothing more. Below, the drawing of that round, then the same round run by hand on two
# questions, so that every box is seen as numbers.

# %% tags=["parameters"]
profile = "quick"  # str: scale, one of sept.profiles.PROFILES
out_dir = "figures/quick"  # str: where figures, tables and the headline numbers go

# %%
import pandas as pd
import torch

from sept import experiments, figures, figures_text, objectives, profiles
from sept.config import preset
from sept.grading import grade
from sept.policy import load_policy, make_batch, response_logits
from sept.problems import load_problems
from sept.provenance import environment
from sept.sampling import make_sampler

drawn_config = profiles.profile(profile).runs("sept")[0].config()
provenance = {**environment(), "profile": profile, "config": drawn_config.key()}
figures.use_style()

# %% [markdown]
# ## Figure 1b
#
# The numbers in it are those of this profile's SePT arm. The effect (green) needs $\tau_s < \tau_t$: the
# pairs come from a sharper distribution than the one that is fitted to them. An ideal round multiplies
# every logit margin by $\tau_t/\tau_s$ (Theorem 1; `01_theorem_exact` checks it).

# %%
loop = figures_text.loop_table(drawn_config)
figures.save_figure(figures_text.figure_1b, "figure_1b", loop, out_dir, provenance)

# %% [markdown]
# ## The same round by hand
#
# Base H, two questions, one answer to each, one optimizer step. First the upper half of the drawing:
# questions, then answers drawn at $\tau_s$. *We* grade them here; the loop does not look.

# %%
config = preset("sept", questions=2, mini_batch=2)
problems = load_problems("toy:train")
questions = problems.batch(0, config.questions, config.seed)
policy = load_policy("H", device="cpu")
sampler = make_sampler(policy)
prompts, names = [policy.encode(q.prompt) for q in questions], [q.id for q in questions]
drawn = sampler.sample(prompts, names, config.G, config.tau_s, config.max_new_tokens, config.seed)
answers = [policy.decode(t[:n].tolist()) for t, n in zip(drawn.tokens, drawn.lengths, strict=True)]
ended = drawn.finished.tolist()
right = [grade(a, e, q, problems.world) for a, e, q in zip(answers, ended, questions, strict=True)]
pairs = pd.DataFrame({"question q": [q.prompt for q in questions], "answer o": answers, "right": right})
pairs

# %% [markdown]
# Now the lower half. Training scores the very token ids that were drawn, at $\tau_t$. The log-probability
# of an answer is the sum over its tokens; the loss is minus its mean over all tokens.

# %%
batch = make_batch(drawn.prompts, drawn.tokens, drawn.lengths, policy.pad_id)
logits = response_logits(policy.model, batch)
losses = objectives.nll(logits, batch.tokens, config.tau_t)
tokens = int(drawn.lengths.sum())
loss = objectives.normalise(losses, batch.mask, config.loss_normalisation, tokens, len(drawn), 1)
at_tau_s = objectives.token_log_probs(logits, batch.tokens, config.tau_s)
pairs["log-prob at tau_s, by the sampler"] = drawn.log_probs.sum(1).numpy()
pairs["the same, by the policy"] = (at_tau_s * batch.mask).sum(1).detach().numpy()
pairs["log-prob at tau_t"] = -(losses * batch.mask).sum(1).detach().numpy()
print(f"loss: {loss.item():.4f} nats a token over {tokens} tokens")
pairs.set_index("question q").T

# %% [markdown]
# Sampler and policy agree on what was drawn, because their weights are equal; the loop stops if they
# do not. At $\tau_t$ the same answers are *less* likely than they were when drawn. The step makes
# them likelier at $\tau_t$, which is the direction of "be at temperature 1 what you are at 0.6".

# %%
options = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
optimizer = torch.optim.AdamW(policy.model.parameters(), weight_decay=config.weight_decay, **options)
loss.backward()
torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.grad_clip)
optimizer.step()
policy.version += 1
with torch.no_grad():
    moved = -objectives.nll(response_logits(policy.model, batch), batch.tokens, config.tau_t)
pairs["log-prob at tau_t, after the step"] = (moved * batch.mask).sum(1).numpy()
print(f"weights: sampler version {sampler.version}, policy version {policy.version}")
sampler.refresh(policy)
print(f"after the refresh: sampler version {sampler.version}, policy version {policy.version}")
pairs.set_index("question q").T

# %% [markdown]
# That is the whole algorithm. The real loop does it with more questions, and its learning rate rises
# from zero over the first rounds; both temperatures and the loss are the ones used here. Two answers are
# a noisy sample: a wrong one is learned as eagerly as a right one. It works out on average only because
# $\tau_s < \tau_t$ favours what the model already prefers.
#
# ## Figure 4
#
# The paper's three templates, each filled in with one question, and below them the prompt of the
# embedded world, which has no instruction and no roles. `↵` marks a true line end, `{...}` a slot,
# `<...>` a special token. The text of Qwen's default system message is not printed in the paper, so it
# stays a slot; `<bos>` stands for the model's own first token.

# %%
published_ones = figures_text.templates_table(r"What is $7352 + 8149$?")
prompt = "7352+8149:"
ids = policy.encode(prompt)
own = {"source": "embedded", "model": "base H", "template": "<bos>{question}"}
own["example"] = "".join(policy.tokenizer.convert_ids_to_tokens(ids))
templates = pd.concat([published_ones, pd.DataFrame([own])], ignore_index=True)
figures.save_figure(figures_text.figure_4, "figure_4", templates, out_dir, provenance)

# %% [markdown]
# One character is one token there, so this is all that base H reads:

# %%
shown = pd.DataFrame({"token": policy.tokenizer.convert_ids_to_tokens(ids), "id": ids}).T
shown

# %% [markdown]
# ## Try it
#
# Draw `figures_text.loop_table(preset("offline"))` and `preset("inverted")`: which arrow changes, and what
# becomes of the margins? Then set `tau_s = 1.0` in the round by hand. Which two rows become equal?

# %%
headline = {
    "tau_s": config.tau_s,
    "tau_t": config.tau_t,
    "questions a round": drawn_config.questions,
    "loss of the small round": round(loss.item(), 4),
    "log-prob at tau_s": round(float(pairs["the same, by the policy"].sum()), 4),
    "log-prob at tau_t": round(float(pairs["log-prob at tau_t"].sum()), 4),
    "log-prob at tau_t, after the step": round(float(pairs["log-prob at tau_t, after the step"].sum()), 4),
    "prompt tokens of the embedded world": len(ids),
}
experiments.record(out_dir, "08_figures_1b_and_4", headline)
headline
