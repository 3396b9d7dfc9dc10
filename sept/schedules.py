"""The sampling temperature as a function of training progress."""

import math


def tau_s_at(done: float, start: float, end: float, schedule: str, anneal_share: float = 2 / 3) -> float:
    """tau_s when the share `done` of all rounds lies behind: round / rounds, round counted from 0.

    Linear: start + (end - start) * done / anneal_share, then `end` (the paper's B.1, updated
    every step: two of three epochs of annealing are anneal_share = 2/3). Cosine: the same with half a
    cosine wave in place of the line. Constant: start.
    """
    if schedule == "constant":
        return start
    progress = min(1.0, done / anneal_share)
    if schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return end if progress == 1.0 else start + (end - start) * progress
