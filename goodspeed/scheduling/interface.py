"""What a scheduler is given, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from goodspeed.timing import EngineLoad

__all__ = ["Demand", "Plan", "Scheduler", "Timing"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Timing:
    """The same streams on the clock, and the engine; one element a stream in every array, [streams]."""

    rate: Floats
    """Smoothed goodputs, tokens per second."""
    draft_s: Floats
    """Seconds an agent takes for one drafted token."""
    turnaround_s: Floats
    """Seconds between a verdict and the next draft that are not drafting: both ways through the network."""
    engine: EngineLoad


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
    timing: Timing | None = None
    """What schedulers in seconds ask for; those that count rounds make no use of it."""

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
