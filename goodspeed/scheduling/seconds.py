"""A scheduler in seconds: the paper's gradient scheduling carried over to continuous time.

A stream with budget `S >= 1` goes round in `c(S) = turnaround + d S + wait + T(S)`: the network, drafting, waiting for
the engine, the pass. With budget 0 the server decodes it in every pass, `c(0) = T(0)`. It earns `mu(alpha, S) / c(S)`
tokens a second and takes `l(S) = row + token (S + 1)` of the engine's seconds each time. Maximising

    sum_i g_i mu_i(S_i) / c_i(S_i)        g_i = omega_i U'(X_i),  X_i the goodput smoothed in time

subject to passes being as long as what they carry, `T = fixed + sum_i (T / c_i) l_i(S_i)`, with a multiplier for that
constraint, falls apart into a problem for each stream and one price `lam`:

    S_i = argmax (g_i mu_i(S) - lam l_i(S)) / c_i(S)

    lam = sum_i (T / c_i) g_i (mu_i / c_i) k_i / (1 - busy (1 - fixed / T) + sum_i (T / c_i) k_i l_i / c_i)

The second line says that the derivative with respect to `T` vanishes; `k_i = d c_i / d T` is 1, and more where the
wait for the engine grows with the pass. In words: a second of the engine's time costs what it costs all those who
share the pass to be held up for a second. A stream is in a pass with probability `T / c_i`, so the sums over all
streams are expectations of sums over the streams of one pass, which are just those that need a new budget after it:
the price is found by stochastic approximation, one step a pass, and a plan takes time linear in those streams alone.

The first line is a concave function over an affine one. Dinkelbach's iteration (1967) takes `v` for its maximum,
solves `max_S g mu(S) - lam l(S) - v c(S)` in closed form, and takes the ratio there for the next `v`; it converges
faster than linearly, for all streams at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from goodspeed.scheduling.interface import Demand, Plan, Timing
from goodspeed.utility import AlphaFair

__all__ = ["SecondsSched"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_NEAR_ZERO = 1e-12
_NOTHING = 1e-300
_ITERATIONS = 12
_PRICE_STEP = 0.1
"""How far one pass moves the price towards what it would be by this pass alone."""
_HALVINGS = 24
MARGIN = 0.03
"""A draft must promise so much more than the server's decoding alone: an estimate that is high by chance gets a stream
to draft, one that is low does not, and streams that come to draft together hold each other up."""


class SecondsSched:
    """Budgets that maximise the utility of tokens per *second*.

    Args:
        utility: whose sum the schedule maximises in the long run.
    """

    needs_no_capacity = True

    def __init__(self, utility: AlphaFair | None = None) -> None:
        self._utility = utility or AlphaFair()
        self._price: float | None = None
        """`lam`: utility a second, for each second of the engine's time in a second."""

    def plan(self, demand: Demand, capacity: int) -> Plan:
        """Choose budgets of which no more than `capacity` is drafted, and move the price one step.

        Raises:
            ValueError: the demand has no timing.
        """
        if demand.timing is None:
            raise ValueError("a scheduler in seconds needs the streams' timing")
        if not len(demand):
            return Plan(np.zeros(0, dtype=np.int64), self._price or 0.0)
        problem = _Problem.of(demand, demand.timing, self._utility)
        decoding_alone, own = problem.price(np.zeros(len(demand), dtype=np.int64))
        if self._price is None:
            self._price = decoding_alone
        worth = np.maximum(self._price - own, 0.0)
        budgets = problem.best(worth)
        price, _ = problem.price(budgets)
        self._price += _PRICE_STEP * (price - self._price)
        least_chance = problem.least_chance(budgets, worth)
        if budgets.sum() > capacity:
            budgets = _within(problem, worth, budgets, capacity)
        return Plan(budgets, self._price, least_chance)


def _within(problem: _Problem, price: Floats, most: Ints, capacity: int) -> Ints:
    """The best budgets, none above `most`, that sum to no more than `capacity`.

    A second price, on each drafted token, is found by bisection; a stream that has the same budget at both ends of the
    interval drops out of it.
    """
    undecided = np.flatnonzero(most)
    choices = np.arange(int(most.max(initial=0)) + 1)[:, None]
    values = problem.only(most > 0).value(np.minimum(most[undecided], choices), price[undecided])  # [choices, streams]
    low, high = 0.0, float(values.max() - values.min()) + _NEAR_ZERO  # nobody drafts at `high`
    few, many = np.zeros_like(most), most
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        budgets = few.copy()
        budgets[undecided] = np.minimum((values - middle * choices).argmax(0), most[undecided])
        if budgets.sum() > capacity:
            low, many = middle, budgets
        else:
            high, few = middle, budgets
        apart = few[undecided] != many[undecided]
        undecided, values = undecided[apart], values[:, apart]
    return few


@dataclass(frozen=True, slots=True)
class _Problem:
    """One plan's streams; every array [streams]."""

    log_gradient: Floats
    gradient: Floats  # g
    log_alpha: Floats
    miss: Floats  # 1 - alpha
    limit: Ints
    cycle_s: Floats  # c(S) = cycle_s + per_token_s * S, for S >= 1
    per_token_s: Floats
    alone_s: float  # c(0)
    row_s: float
    token_s: float
    pass_s: float
    fixed_s: float
    busy: float
    held_up: float  # k, for S >= 1

    @classmethod
    def of(cls, demand: Demand, timing: Timing, utility: AlphaFair) -> _Problem:
        engine = timing.engine
        token_s, row_s, fixed_s = engine.cost.token_s, engine.cost.row_s, engine.cost.fixed_s
        # A pass without the tokens of the one stream that is looked at.
        others_s = max(engine.pass_s - token_s * engine.row_tokens, fixed_s, _NEAR_ZERO)
        useful = (demand.alpha > _NEAR_ZERO) & (demand.weight > 0)
        log_gradient = np.log(np.maximum(demand.weight, _NEAR_ZERO)) + utility.log_gradient(timing.rate)
        log_alpha = np.minimum(np.log(np.clip(demand.alpha, _NEAR_ZERO, 1.0)), -_NEAR_ZERO)
        return cls(
            log_gradient=log_gradient,
            gradient=np.exp(log_gradient),
            log_alpha=log_alpha,
            miss=-np.expm1(log_alpha),
            limit=np.where(useful, demand.limit, 0),
            cycle_s=timing.turnaround_s + engine.wait_s + others_s + token_s,
            per_token_s=timing.draft_s + token_s,
            alone_s=others_s + token_s,
            row_s=row_s,
            token_s=token_s,
            pass_s=engine.pass_s,
            fixed_s=fixed_s,
            busy=engine.busy,
            held_up=1.0 + engine.wait_s / max(engine.pass_s, _NEAR_ZERO),
        )

    def mu(self, budgets: Ints) -> Floats:
        """`(1 - alpha^(S+1)) / (1 - alpha)`."""
        return np.asarray(-np.expm1(self.log_alpha * (budgets + 1)) / self.miss)

    def load_s(self, budgets: Ints) -> Floats:
        """`l(S)`."""
        return np.asarray(self.row_s + self.token_s * (budgets + 1.0), dtype=np.float64)

    def cycle(self, budgets: Ints) -> Floats:
        """`c(S)`, with the server decoding alone where the budget is 0."""
        cycle: Floats = np.where(budgets > 0, self.cycle_s + self.per_token_s * budgets, self.alone_s)
        return cycle

    def best(self, price: Floats) -> Ints:
        """The budgets that are best at a price for each stream; 0 where no draft promises enough."""
        budgets = np.zeros_like(self.limit)
        value = self.value(budgets, price) + MARGIN * self.gradient / self.alone_s
        part, climbing = self, np.arange(len(budgets))
        for _ in range(_ITERATIONS):
            tried = part._best_at(value[climbing], price[climbing])
            reached = part.value(tried, price[climbing])
            higher = reached > value[climbing]
            part, climbing = part.only(higher), climbing[higher]
            if not len(climbing):
                break
            budgets[climbing], value[climbing] = tried[higher], reached[higher]
        return budgets

    def only(self, some: Bools) -> _Problem:
        """The same for some of the streams."""
        return replace(
            self,
            log_gradient=self.log_gradient[some],
            gradient=self.gradient[some],
            log_alpha=self.log_alpha[some],
            miss=self.miss[some],
            limit=self.limit[some],
            cycle_s=self.cycle_s[some],
            per_token_s=self.per_token_s[some],
        )

    def _best_at(self, value: Floats, price: Floats) -> Ints:
        """Where `g mu(S) - lam l(S) - v c(S)` is largest: the last `k` with `g alpha^k` above what a token costs."""
        cost = np.maximum(self._token_cost(value, price), _NOTHING)
        count = (np.log(cost) - self.log_gradient) / self.log_alpha
        return np.minimum(np.clip(count, 1, self.limit.max(initial=1)).astype(np.int64), self.limit)

    def least_chance(self, budgets: Ints, price: Floats) -> Floats:
        """The `alpha^k` at which `g mu(S) - lam l(S) - v c(S)` stops growing, `v` being what the budgets are worth."""
        cost = self._token_cost(self.value(budgets, price), price)
        return np.clip(cost / np.maximum(self.gradient, _NEAR_ZERO), 0.0, 1.0)

    def _token_cost(self, value: Floats, price: Floats) -> Floats:
        """What a drafted token costs: the engine's time at its price, and the stream's own time at what it is worth."""
        return price * self.token_s + value * self.per_token_s

    def value(self, budgets: Ints, price: Floats) -> Floats:
        """What is maximised, by stream."""
        return (self.gradient * self.mu(budgets) - price * self.load_s(budgets)) / self.cycle(budgets)

    def price(self, budgets: Ints) -> tuple[float, Floats]:
        """The price by this pass alone, and each stream's own part of it: what it costs itself, it knows already."""
        cycle, load = self.cycle(budgets), self.load_s(budgets)
        held_up = np.where(budgets > 0, self.held_up, 1.0)
        delay = self.gradient * self.mu(budgets) / cycle * held_up
        stretch = 1.0 - self.busy * (1.0 - self.fixed_s / max(self.pass_s, _NEAR_ZERO)) + (held_up * load / cycle).sum()
        own: Floats = delay / stretch
        return float(own.sum()), own
