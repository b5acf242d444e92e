"""Weighted alpha-fair utilities of goodput.

`U(x) = omega * x^(1 - gamma) / (1 - gamma)`, and `omega * log x` at `gamma = 1` (Mo and Walrand, 2000). `gamma = 0` is
throughput, 1 proportional fairness (the paper's choice), 2 minimum potential delay; towards infinity, max-min.
The field calls the exponent alpha; here alpha is the acceptance rate, so the exponent is `fairness`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goodspeed.errors import InvalidRequest

__all__ = ["MAX_FAIRNESS", "MIN_GOODPUT", "AlphaFair", "jain_index"]

Floats = NDArray[np.float64]

MIN_GOODPUT = 1e-6
"""Goodputs are held above this, so that logarithms stay finite."""
MAX_FAIRNESS = 1e6
_HUGE = 1e200


@dataclass(frozen=True, slots=True)
class AlphaFair:
    """The family `U`, with its exponent.

    Raises:
        InvalidRequest: the exponent is negative or beyond `MAX_FAIRNESS`.
    """

    fairness: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.fairness <= MAX_FAIRNESS:
            raise InvalidRequest(
                f"fairness is {self.fairness}: it must be 0 (throughput) to {MAX_FAIRNESS:g} (max-min, in effect); "
                "1 is proportional"
            )

    def value(self, goodput: Floats, weight: Floats | float = 1.0) -> Floats:
        """`omega U(x)` of each stream, [streams]; finite, so that it can be summed and shown."""
        x = np.maximum(goodput, MIN_GOODPUT)
        if self.fairness == 1.0:
            return np.asarray(weight * np.log(x))
        with np.errstate(over="ignore"):
            value = weight * x ** (1.0 - self.fairness) / (1.0 - self.fairness)
        return np.clip(value, -_HUGE, _HUGE)

    def log_gradient(self, goodput: Floats) -> Floats:
        """`log U'(x) = -gamma log x` of each stream, [streams]; no exponent is too large for it."""
        return np.asarray(-self.fairness * np.log(np.maximum(goodput, MIN_GOODPUT)))


def jain_index(goodput: Floats) -> float:
    """Jain's fairness index: 1 when all are equal, 1/n when one has everything; 1 for nobody at all."""
    largest = float(np.max(goodput, initial=0.0))
    if largest <= 0.0:
        return 1.0
    share = goodput / largest
    return float(np.sum(share) ** 2 / (len(share) * np.sum(share * share)))
