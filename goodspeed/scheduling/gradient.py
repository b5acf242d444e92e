"""GoodSpeed-Sched, the paper's gradient scheduler, solved exactly (arXiv 2512.09963, equation 5).

    max_S  sum_i omega_i U'(X_i) mu(alpha_i, S_i)    subject to  sum_i S_i <= C,  0 <= S_i <= limit_i,  S_i integer

The k-th token of stream `i` is worth `omega_i U'(X_i) alpha_i^k`, which falls with `k`: the objective is separable and
concave, and taking the `C` largest values is exact. All values above a threshold (the dual price of the capacity)
are counted in closed form, so the threshold is found by bisection over vectors; the few values that are left between
the last two thresholds are then ranked outright.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from goodspeed.scheduling.interface import Demand, Plan
from goodspeed.utility import AlphaFair

__all__ = ["LARGE", "GoodSpeedSched", "allocate"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_NEAR_ZERO = 1e-12
_BISECTIONS = 40
LARGE = 600.0
"""The logarithm of the highest price that is told; with a utility near max-min there is none too high."""


class GoodSpeedSched:
    """Budgets by gradient scheduling: the paper's choice with `log`, any alpha-fair utility otherwise.

    Args:
        utility: whose sum the schedule maximises in the long run.
    """

    def __init__(self, utility: AlphaFair | None = None) -> None:
        self._utility = utility or AlphaFair()

    def plan(self, demand: Demand, capacity: int) -> Plan:
        """Solve equation (5); O(streams) a bisection step, at most `_BISECTIONS` steps."""
        useful = (demand.alpha > _NEAR_ZERO) & (demand.weight > 0)
        limit = np.where(useful, demand.limit, 0)
        if capacity <= 0 or not limit.any():
            return Plan(np.zeros(len(demand), dtype=np.int64))
        if limit.sum() <= capacity:
            return Plan(limit)
        log_gradient = np.log(np.where(useful, demand.weight, 1.0)) + self._utility.log_gradient(demand.goodput)
        log_alpha = np.minimum(np.log(np.clip(demand.alpha, _NEAR_ZERO, 1.0)), -_NEAR_ZERO)
        return allocate(log_gradient, log_alpha, limit, capacity)


def allocate(log_gradient: Floats, log_alpha: Floats, limit: Ints, capacity: int) -> Plan:
    """Take the `capacity` largest of the values `gradient_i alpha_i^k`, `1 <= k <= limit_i`."""

    def above(log_price: float) -> Ints:
        """How many tokens of each stream are worth at least the price, [streams]."""
        count = np.floor((log_price - log_gradient) / log_alpha)
        return np.clip(count, 0, limit).astype(np.int64)

    drafting = limit > 0
    high = float((log_gradient + log_alpha)[drafting].max()) + 1.0
    low = float((log_gradient + log_alpha * limit)[drafting].min()) - 1.0
    few, many = above(high), above(low)
    for _ in range(_BISECTIONS):
        if (many - few).sum() <= len(limit):
            break
        middle = (low + high) / 2
        budgets = above(middle)
        if budgets.sum() <= capacity:
            high, few = middle, budgets
        else:
            low, many = middle, budgets
    between = many - few
    stream = np.repeat(np.arange(len(limit)), between)
    rank = np.arange(len(stream)) - np.repeat(between.cumsum() - between, between) + 1
    value = log_gradient[stream] + log_alpha[stream] * (few[stream] + rank)
    # A stable sort keeps a stream's equal values in order of k, so that no token is taken before the one it needs.
    order = np.argsort(-value, kind="stable")
    left = capacity - int(few.sum())
    budgets = few + np.bincount(stream[order[:left]], minlength=len(limit))
    price = float(np.exp(min(value[order[left]], LARGE))) if left < len(order) else 0.0
    return Plan(budgets.astype(np.int64), price)
