"""The schedules to compare with: fixed lengths, random lengths, and no speculation at all."""

from __future__ import annotations

import numpy as np

from goodspeed.scheduling.interface import Demand, Plan

__all__ = ["FixedS", "PlainDecoding", "RandomS"]


class FixedS:
    """The paper's Fixed-S: `C / N` tokens each.

    The remainder of the division is spread, one token more for some, and moves on every round, so that nothing of
    the capacity is lost and nobody is favoured; `floor(C / N)` alone would flatter whoever is compared with it.

    Args:
        length: the same length for everybody, instead of `C / N`.
    """

    def __init__(self, length: int | None = None) -> None:
        self._length = length
        self._turn = 0

    def plan(self, demand: Demand, capacity: int) -> Plan:
        """Share the capacity out evenly among the streams that can draft."""
        budgets = np.zeros(len(demand), dtype=np.int64)
        drafting = np.flatnonzero(demand.limit > 0)
        if len(drafting) == 0 or capacity <= 0:
            return Plan(budgets)
        share, remainder = divmod(capacity, len(drafting))
        if self._length is not None and self._length <= share:
            share, remainder = self._length, 0
        budgets[drafting] = share
        lucky = (np.arange(remainder) + self._turn) % len(drafting)
        budgets[drafting[lucky]] += 1
        self._turn = (self._turn + remainder) % len(drafting)
        return Plan(np.minimum(budgets, demand.limit))


class RandomS:
    """The paper's Random-S: random lengths whose sum is at most `C`.

    Every length is uniform on 0 to `2 C / N`, and random tokens are taken away again while the sum is too large.

    Args:
        seed: of the generator.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)

    def plan(self, demand: Demand, capacity: int) -> Plan:
        """Draw the lengths."""
        drafting = demand.limit > 0
        if not drafting.any() or capacity <= 0:
            return Plan(np.zeros(len(demand), dtype=np.int64))
        mean = capacity / drafting.sum()
        wanted = self._random.integers(0, round(2 * mean) + 1, size=len(demand))
        budgets = np.where(drafting, np.minimum(wanted, demand.limit), 0)
        if budgets.sum() > capacity:
            budgets = self._random.multivariate_hypergeometric(budgets, capacity)
        return Plan(budgets.astype(np.int64))


class PlainDecoding:
    """No speculation: every budget is 0, and the server decodes everybody in one batch."""

    def plan(self, demand: Demand, capacity: int) -> Plan:
        """Nobody drafts."""
        return Plan(np.zeros(len(demand), dtype=np.int64))
