"""The true optimum of the paper's model, by brute force and somebody else's solver.

A round's budgets give each stream `mu(alpha_i, S_i)` tokens in expectation; what can be achieved in the long run is the
convex hull of these vectors over all budgets that sum to the capacity. `x*` maximises the utility there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from goodspeed.estimation import expected_tokens
from goodspeed.utility import AlphaFair

__all__ = ["allocations", "true_optimum"]

Floats = NDArray[np.float64]


def allocations(limit: Sequence[int], capacity: int) -> Iterator[tuple[int, ...]]:
    """Every allocation there is."""
    for budgets in itertools.product(*(range(min(most, capacity) + 1) for most in limit)):
        if sum(budgets) <= capacity:
            yield budgets


def true_optimum(alpha: Sequence[float], weight: Sequence[float], capacity: int, utility: AlphaFair) -> Floats:
    """`x*`, [streams]: a mixture of allocations, found by sequential quadratic programming over their shares.

    Raises:
        RuntimeError: the solver gave up.
    """
    corners = np.array(
        [
            [expected_tokens(rate, budget) for rate, budget in zip(alpha, budgets, strict=True)]
            for budgets in allocations([capacity] * len(alpha), capacity)
            if sum(budgets) == capacity
        ]
    )  # [allocations, streams]
    weights = np.asarray(weight)

    def loss(shares: Floats) -> tuple[float, Floats]:
        goodput = shares @ corners
        slope = weights * np.exp(utility.log_gradient(goodput))
        return -float(utility.value(goodput, weights).sum()), -corners @ slope

    found = optimize.minimize(
        loss,
        np.full(len(corners), 1 / len(corners)),
        jac=True,
        bounds=[(0, 1)] * len(corners),
        constraints=optimize.LinearConstraint(np.ones((1, len(corners))), 1, 1),
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    if not found.success:
        raise RuntimeError(f"the optimum was not found: {found.message}")
    return np.asarray(found.x @ corners)
