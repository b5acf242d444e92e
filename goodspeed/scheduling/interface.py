"""What a scheduler is given, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Demand", "Plan", "Scheduler"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Demand:
    """Everything known of the streams that need a budget now; one element a stream in every array, [streams]."""

    alpha: Floats
    """Acceptance rates, in [0, 1]."""
    goodput: Floats
    """Smoothed goodputs `X`, tokens per round."""
    weight: Floats
    """Weights `omega`."""
    limit: Ints
    """The longest draft each stream can use: its drafter's, its remaining tokens, its room in the cache."""

    def __post_init__(self) -> None:
        assert len(self.alpha) == len(self.goodput) == len(self.weight) == len(self.limit)

    def __len__(self) -> int:
        return len(self.alpha)


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer."""

    budgets: Ints
    """How many tokens each stream shall draft, [streams]; 0 <= budget <= limit, summing to at most the capacity."""
    price: float = 0.0
    """What one more token of capacity would add to the objective: the dual price of `C`."""


class Scheduler(Protocol):
    """Allocates the capacity of one verification pass."""

    def plan(self, demand: Demand, capacity: int) -> Plan:
        """Choose the budgets.

        Args:
            demand: the streams.
            capacity: how many draft tokens the next verification may carry, `C`.
        """
