"""The sampling temperature as a function of training progress."""

import math


def tau_s_at(
    round: int, rounds: int, start: float, end: float, schedule: str, anneal_share: float
) -> float:
    """tau_s of round `round` (from 0) of `rounds`.

    Linear: start + (end - start) * round / (anneal_share * rounds), then `end` (the paper's B.1, updated
    every step: two of three epochs of annealing are anneal_share = 2/3). Cosine: the same with half a
    cosine wave in place of the line. Constant: start.
    """
    if schedule == "constant":
        return start
    progress = min(1.0, round / (anneal_share * rounds))
    if schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return end if progress == 1.0 else start + (end - start) * progress
