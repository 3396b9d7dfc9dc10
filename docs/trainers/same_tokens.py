"""One optimizer step of another trainer and of `sept/steps.py` on the same tokens: their gradients."""

import torch

from sept.config import preset
from sept.distributed import Ranks
from sept.policy import Policy
from sept.sampling import Rollouts
from sept.steps import take_steps


def gradient(model) -> torch.Tensor:
    """All gradients of a model as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).clone()


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference of two gradients, relative to the norm of ours."""
    return float((ours - theirs).norm() / ours.norm())


def our_gradient(policy: Policy, rollouts: Rollouts, tau_t: float = 1.0, **fields) -> torch.Tensor:
    """Gradient of one step of this package's loop on all of `rollouts`; the weights stay as they are."""
    rows = len(rollouts)
    config = preset("sept", questions=rows, mini_batch=rows, grad_clip=0, **fields)
    weights = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer, kept = torch.optim.SGD(weights, lr=0.0), []
    optimizer.register_step_pre_hook(lambda *_: kept.append(gradient(policy.model)))
    version = policy.version
    take_steps(config, policy, optimizer, weights, rollouts, tau_t, torch.zeros(rows), Ranks())
    policy.version = version
    return kept[0]


def trl_step(trainer) -> tuple[Rollouts, torch.Tensor]:
    """A real step of a TRL trainer that draws: the answers that it was taken on, and its gradient.

    The trainer has to be made with max_grad_norm=0, or what is returned may be clipped.
    """
    from transformers import TrainerCallback

    seen, kept, inner = [], [], trainer.compute_loss

    def watched(model, inputs, *args, **kwargs):
        seen.append(inputs)
        return inner(model, inputs, *args, **kwargs)

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            kept.append(gradient(model))
            control.should_training_stop = True

    trainer.compute_loss = watched
    trainer.add_callback(Keep())
    trainer.train()
    prompts, answers = [], []
    for batch in seen:
        for kind, out in (("prompt", prompts), ("completion", answers)):
            ids, mask = batch[f"{kind}_ids"], batch[f"{kind}_mask"].bool()
            out += [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    return as_rollouts(prompts, answers), kept[0]


def as_rollouts(prompts: list[list[int]], answers: list[list[int]], tau: float = 0.6) -> Rollouts:
    """Answers of another sampler as this package's rollouts, without the log-probs they were drawn at."""
    lengths = torch.tensor([len(a) for a in answers])
    tokens = torch.zeros(len(answers), int(lengths.max()), dtype=torch.long)
    for row, answer in zip(tokens, answers, strict=True):
        row[: len(answer)] = torch.tensor(answer)
    unknown = torch.zeros(tokens.shape)
    return Rollouts(prompts, tokens, lengths, lengths > 0, unknown, tau, 0)
