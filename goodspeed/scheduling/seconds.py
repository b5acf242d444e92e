"""A scheduler in seconds: the paper's gradient scheduling carried over to continuous time.

Rounds roll, and nobody is waited for: every stream is in every pass, with what its agent has guessed by then, or with
nothing, which is plain decoding. So a budget costs a stream no time of its own, neither drafting nor the network, and
what is left to decide is which guesses a pass shall verify. A pass with `S_i` tokens of each stream takes `T(S)` and
earns `G(S)`,

    T(S) = T(0) + sum_i token S_i,    G(S) = sum_i g_i mu(alpha_i, S_i),    g_i = omega_i U'(X_i),

`X_i` being the goodput smoothed in time, `X <- exp(-dt/tau) X + ...`. In the long run the engine earns
`v = sum_i g_i X_i` a second, and by the theory of renewal rewards the best pass is the one that maximises
`G(S) - v T(S)`. That falls apart into streams: the k-th token is verified if

    g_i alpha_i^k >= v token

`v` is the price of a second of the engine's time, which is everybody's. It needs no search, since it is known from the
goodputs themselves; under `log` it is the sum of the weights. A capacity is a second price on tokens: equation (5) of
the paper, with these budgets for limits.

The formulation in which a stream waits for its own draft, with the rate `mu(alpha, S) / (rtt + d S + wait + T)`, is
dominated by this one: the passes that such a stream sits out cost it a token each, and its draft is no better for it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from goodspeed.scheduling.gradient import LARGE, allocate
from goodspeed.scheduling.interface import Demand, Plan
from goodspeed.utility import AlphaFair

__all__ = ["SecondsSched"]

Floats = NDArray[np.float64]

_NEAR_ZERO = 1e-12


class SecondsSched:
    """Budgets that maximise the utility of tokens per *second*.

    Behind a barrier everybody waits for the slowest draft; what that costs is not counted here.

    Args:
        utility: whose sum the schedule maximises in the long run.
    """

    needs_no_capacity = True

    def __init__(self, utility: AlphaFair | None = None) -> None:
        self._utility = utility or AlphaFair()

    def plan(self, demand: Demand, capacity: int) -> Plan:
        """Choose what the next pass verifies, no more than `capacity`; O(streams).

        Raises:
            ValueError: the demand has no timing.
        """
        if demand.timing is None:
            raise ValueError("a scheduler in seconds needs the streams' timing")
        if not len(demand):
            return Plan(np.zeros(0, dtype=np.int64))
        engine, rate = demand.timing.engine, np.maximum(demand.timing.rate, _NEAR_ZERO)
        log_gradient = np.log(np.maximum(demand.weight, _NEAR_ZERO)) + self._utility.log_gradient(rate)
        # Streams that are planned alone, since they are new, will share the pass with as many as there are.
        sharing = max(1.0, engine.rows / len(demand))
        log_second = float(np.logaddexp.reduce(log_gradient + np.log(rate))) + np.log(sharing)
        worth_s = np.where(demand.weight > 0, np.exp(log_gradient - log_second), 0.0)
        useful = (demand.alpha > _NEAR_ZERO) & (worth_s > 0)
        log_alpha = np.minimum(np.log(np.clip(demand.alpha, _NEAR_ZERO, 1.0)), -_NEAR_ZERO)
        pays = np.floor((np.log(max(engine.cost.token_s, _NEAR_ZERO)) + log_second - log_gradient) / log_alpha)
        budgets = np.where(useful, np.clip(pays, 0, demand.limit), 0).astype(np.int64)
        second = float(np.exp(min(log_second, LARGE)))
        price = second * engine.cost.token_s
        if budgets.sum() <= capacity:
            return Plan(budgets, price, worth_s)
        if capacity <= 0:
            return Plan(np.zeros_like(budgets), price, worth_s)
        within = allocate(log_gradient - log_second, log_alpha, budgets, capacity)
        return Plan(within.budgets, within.price * second, worth_s)
