"""Theorem 1 without training a model: the optimum over free logits, and one gradient step at first order.

Free logits show what the arithmetic itself allows; the first-order change shows how far shared weights
let logits go where the theorem's free ones would.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .config import SeptError
from .margins import headline, prefix_statistics, rows_batch, visited_logits
from .policy import Policy
from .sampling import Rollouts


def fit_logits(old: Tensor, tau_s: float, tau_t: float, steps: int = 1000) -> tuple[Tensor, int]:
    """Minimise KL(softmax(old / tau_s) || softmax(z / tau_t)) over z [N, V], starting at old, in old's dtype.

    The capped, diagonally scaled Newton step of `tabular.fit_weights`. Stops when no token of more than
    1e-12 moves by more than 8 units in the last place, or after `steps`; returns z and the steps taken.
    """
    target = torch.softmax(old / tau_s, -1)
    u, taken = torch.log_softmax(old / tau_t, -1), 0
    limit, counted = 8 * torch.finfo(old.dtype).eps, target > 1e-12
    while taken < steps:
        taken += 1
        ratio = target / u.exp()
        step = torch.where(target > 0, ratio - 1, 0).nan_to_num(0.0, 1.0, 1.0).clamp_max(1.0)
        u = torch.log_softmax(u + step, -1)
        if (step * counted).abs().max() <= limit:
            break
    return tau_t * u, taken


def logit_floors(
    old: Any, policy: Policy, rollouts: Rollouts, tau_s: float, tau_t: float, prefixes: int = 256
) -> dict[str, Any]:
    """How exactly the optimum over free logits can be held at all: by dtype, in closed form and by fitting.

    At the first `prefixes` visited prefixes with spread. The headline is the closed form in float64; `floors`
    has a row per dtype and route: slope, slope_error (against the target), residual (q-weighted RMS
    distance of logits from the theorem's, nats) and steps.
    """
    kept: list[Tensor] = []
    owners: list[Tensor] = []
    for sequence, _, logits in visited_logits(old, rollouts, policy, 64):
        probs = torch.softmax(logits / tau_s, -1)
        spread = probs.amax(-1) < 0.999
        kept.append(logits[spread])
        owners.append(sequence[spread])
        if sum(map(len, kept)) >= prefixes:
            break
    z, owner = torch.cat(kept)[:prefixes], torch.cat(owners)[:prefixes]
    if not len(z):
        raise SeptError("margins: no visited prefix has any spread at this temperature; raise tau_s")
    exact, floors, top = z.double(), [], None
    q = torch.softmax(exact / tau_s, -1)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        held = z.to(dtype)
        fitted, steps = fit_logits(held, tau_s, tau_t)
        for route, new, taken in (("closed form", held * (tau_t / tau_s), 0), ("fitted", fitted, steps)):
            table = prefix_statistics(exact, new.double().clamp_min(-1e6), tau_s, tau_t)
            got = headline(table.assign(sequence=owner.numpy()))
            off = (new.double() - exact * (tau_t / tau_s)).nan_to_num(0.0, 0.0, 0.0)
            off = off - (q * off).sum(-1, keepdim=True)
            residual = (q * off.square()).sum(-1).mean().sqrt().item()
            error = got["slope"] - tau_t / tau_s
            name = str(dtype).removeprefix("torch.")
            floors.append({"dtype": name, "route": route, "slope": got["slope"], "slope_error": error})
            floors[-1] |= {"residual": residual, "steps": taken}
            top = top or got
    return {**(top or {}), "other": None, "trajectory": [], "floors": floors}


def first_order(
    policy: Policy, rollouts: Rollouts, tau_s: float, tau_t: float, rates: Sequence[float]
) -> list[dict[str, float]]:
    """One plain gradient step of each size against the exact first-order change of the logits, in float64.

    The loss is equation 1 with Proposition 1's soft targets at the visited prefixes of `rollouts`. Its
    gradient g changes logits z at first order by -rate J g, J the Jacobian in the weights, which is exact by
    forward-mode differentiation. Rows: rate; error (q-weighted RMS of the change per rate against -J g,
    relative; falls with the rate down to where float32 inside transformers shows); alignment (median over
    prefixes of the q-weighted correlation of -J g with Equation 2's q - softmax(z / tau_t), the change if
    logits were free: 1 if weights were not shared).
    """
    model = copy.deepcopy(policy.model).double().eval()
    model.set_attn_implementation("eager")  # the fused kernels have no forward-mode derivative
    batch = rows_batch(policy, rollouts, list(range(len(rollouts))))
    weights = {k: v.detach() for k, v in model.named_parameters()}

    def logits(values: dict[str, Tensor]) -> Tensor:
        inputs = {"input_ids": batch.ids, "attention_mask": batch.attention}
        inputs |= {"position_ids": batch.positions}
        out = torch.func.functional_call(model, values, (), {**inputs, "use_cache": False}).logits
        out = out.gather(1, batch.sources[..., None].expand(-1, -1, out.shape[-1]))
        return out[batch.mask][:, : policy.vocab]

    with torch.no_grad():
        z = logits(weights)
        q = torch.softmax(z / tau_s, -1)

    def loss(values: dict[str, Tensor]) -> Tensor:
        return -(q * torch.log_softmax(logits(values) / tau_t, -1)).sum() / len(rollouts)

    gradient = torch.func.grad(loss)(weights)
    downhill = {k: -v for k, v in gradient.items()}
    exact: Tensor = torch.func.jvp(logits, (weights,), (downhill,))[1]
    exact = exact - (q * exact).sum(-1, keepdim=True)  # margins know no constant
    free = q - torch.softmax(z / tau_t, -1)
    free = free - (q * free).sum(-1, keepdim=True)
    norms = (q * exact.square()).sum(-1), (q * free.square()).sum(-1)
    along = (q * exact * free).sum(-1) / (norms[0] * norms[1]).sqrt()
    spread = norms[1] > 1e-8
    rows = []
    for rate in rates:
        with torch.no_grad():
            moved = (logits({k: v - rate * gradient[k] for k, v in weights.items()}) - z) / rate
        off = moved - (q * moved).sum(-1, keepdim=True) - exact
        error = ((q * off.square()).sum() / norms[0].sum()).sqrt().item()
        rows.append({"rate": rate, "error": error, "alignment": along[spread].median().item()})
    return rows
