"""The schedules to compare with: fixed lengths, random lengths, throughput alone, and no speculation at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from goodspeed.errors import InvalidRequest
from goodspeed.scheduling.gradient import GoodSpeedSched
from goodspeed.scheduling.interface import Demand, Plan
from goodspeed.utility import AlphaFair

__all__ = ["FixedS", "PlainDecoding", "RandomS", "ThroughputSched"]


class FixedS:
    """The paper's Fixed-S: `C / N` tokens each.

    The remainder of the division is spread, one token more for some, and moves on every round, so that nobody is
    favoured and no capacity is lost but what a stream's own limit forbids; `floor(C / N)` alone would flatter
    whoever is compared with it.

    Args:
        length: the same length for everybody, instead of `C / N`.

    Raises:
        InvalidRequest: the length is negative.
    """

    def __init__(self, length: int | None = None) -> None:
        if length is not None and length < 0:
            raise InvalidRequest(f"a fixed draft length of {length}: it must be 0 (plain decoding) or above")
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
        self._turn += remainder
        return Plan(np.minimum(budgets, demand.limit))


class RandomS:
    """The paper's Random-S: random lengths whose sum is at most `C`.

    Every length is a uniform number below `2 C / N + 1`, rounded down, and random tokens are taken away again while
    the sum is too large.

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
        wanted = np.floor(self._random.random(len(demand)) * (2 * mean + 1))
        budgets = np.where(drafting, np.minimum(wanted, demand.limit), 0).astype(np.int64)
        if budgets.sum() > capacity:
            budgets = self._random.multivariate_hypergeometric(budgets, capacity)
        return Plan(budgets)


class ThroughputSched:
    """The most tokens a round, whoever gets them: the `C` largest survival products `alpha_i^k` over all streams.

    That is how adaptive verification spends a budget in vLLM. It is equation (5) where every gradient is 1: no
    weights, and a utility that is linear.
    """

    def __init__(self) -> None:
        self._linear = GoodSpeedSched(AlphaFair(0.0))

    def plan(self, demand: Demand, capacity: int) -> Plan:
        """Take the tokens that are likeliest to be accepted; the price is how likely the next one is."""
        return self._linear.plan(replace(demand, weight=np.ones(len(demand))), capacity)


class PlainDecoding:
    """No speculation: every budget is 0, and the server decodes everybody in one batch."""

    def plan(self, demand: Demand, capacity: int) -> Plan:
        """Nobody drafts."""
        return Plan(np.zeros(len(demand), dtype=np.int64))
