"""The three objectives and the three normalisations: pure functions of logits and a batch.

Every objective returns a loss per response token, [B, T]; `normalise` turns it into the scalar of an
optimizer step. So an arm is an objective, a normalisation and two temperatures, nothing more.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_log_probs(logits: Tensor, tokens: Tensor, tau: float = 1.0) -> Tensor:
    """log softmax(logits / tau) at `tokens`. logits [B, T, V], tokens [B, T] -> [B, T], nats."""
    return torch.log_softmax(logits.float() / tau, -1).gather(-1, tokens[..., None]).squeeze(-1)


def nll(logits: Tensor, tokens: Tensor, tau_t: float) -> Tensor:
    """Negative log-likelihood of the sampled tokens at tau_t (equation 1): [B, T]."""
    return -token_log_probs(logits, tokens, tau_t)


def entropy(logits: Tensor, tau: float = 1.0) -> Tensor:
    """Entropy of the full next-token distribution at tau, nats: [B, T, V] -> [B, T].

    As EM-FT's loss it has a gradient through the logits only: visited prefixes are taken as given.
    """
    log_p = torch.log_softmax(logits.float() / tau, -1)
    return -(log_p.exp() * log_p).sum(-1)


def group_advantages(rewards: Tensor, G: int) -> Tensor:
    """(r - group mean) / (group sample std + 1e-6); rewards [N] in groups of G neighbours -> [N]."""
    groups = rewards.view(-1, G)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-6)).flatten()


def grpo(
    logits: Tensor, tokens: Tensor, tau_t: float, old: Tensor, advantage: Tensor, clip: float
) -> Tensor:
    """Clipped policy-gradient loss with dual clip at 3: [B, T].

    old [B, T]: log-probs of the tokens when they were drawn; advantage [B], one per sequence.
    """
    ratio = (token_log_probs(logits, tokens, tau_t) - old).exp()
    gain = advantage[:, None]
    loss = -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    return torch.where(gain < 0, torch.minimum(loss, -3.0 * gain), loss)


def normalise(
    losses: Tensor, mask: Tensor, how: str, step_tokens: int, step_sequences: int, parts: int
) -> Tensor:
    """One micro-batch's share of an optimizer step's loss; the shares of all micro-batches add up.

    losses, mask [B, T]. step_tokens, step_sequences: totals over the optimizer step (over all
    micro-batches). parts: number of micro-batches. `how` as in Config.loss_normalisation.
    """
    total = (losses * mask).sum()
    if how == "token":
        return total / step_tokens
    if how == "sequence-sum":
        return total / step_sequences
    return total / mask.sum().clamp_min(1) / parts
