"""Which drafted tokens are accepted, by either rule, where a token is accepted with probability alpha."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from goodspeed.verification import Judgement

__all__ = ["hits_in_a_row", "judge_by_ratio"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BELOW_ONE = 1.0 - 1e-9
_CONCENTRATION = 2.0
"""Of the beta distribution of `min(1, p/q)` about its mean: flat at a rate of a half."""


def hits_in_a_row(alpha: Floats | float, random: np.random.Generator) -> Ints:
    """How many tokens would be accepted, were the drafts long enough, [streams]."""
    return np.asarray(random.geometric(1.0 - alpha * _BELOW_ONE) - 1)


def judge_by_ratio(alpha: Floats, budgets: Sequence[int], random: np.random.Generator) -> list[Judgement]:
    """Judge drafts by ratios `min(1, p/q)` that are drawn about alpha, each stream's at every drafted position."""
    rate = np.clip(alpha, 1.0 - _BELOW_ONE, _BELOW_ONE)[:, None]
    shape = (len(alpha), max(budgets, default=0))
    ratios = random.beta(_CONCENTRATION * rate, _CONCENTRATION * (1.0 - rate), shape)  # [streams, drafted]
    stands = random.random(shape) <= ratios
    accepted = np.cumprod(stands, axis=1)  # up to and without the first rejection
    return [
        Judgement(int(accepted[row, :budget].sum()), 0, tuple(ratios[row, :budget].tolist()))
        for row, budget in enumerate(budgets)
    ]
