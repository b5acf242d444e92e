"""What came of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goodspeed.simulation.texts import Span, Written

__all__ = ["Record", "Result"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Record:
    """One pass, as it was seen."""

    at: float
    """When it ended, seconds."""
    seconds: float
    streams: Sequence[int]
    budgets: Sequence[int]
    committed: Sequence[int]
    smoothed: Sequence[float]
    """`X` of equation (4) behind it, tokens per round."""
    price: float


@dataclass(frozen=True, slots=True)
class Result:
    """Arrays over the agents, in their order."""

    tokens: Floats
    """Committed behind the warm-up."""
    seconds: Floats
    """For how long each was there behind the warm-up."""
    passes: int
    busy_s: float
    records: Sequence[Record]
    written: Sequence[Written] = ()
    """What was asked for behind the warm-up and is complete."""
    spans: Sequence[Span] = ()
    """When the server had texts of whom."""

    @property
    def goodput(self) -> Floats:
        """Tokens per second."""
        return self.tokens / np.maximum(self.seconds, 1e-9)

    @property
    def geometric_mean(self) -> float:
        """Of the goodputs: what the sum of logarithms maximises."""
        return float(np.exp(np.log(np.maximum(self.goodput, 1e-9)).mean()))
