"""Where a stream goes when several servers of one target could take it: where its place costs everybody least.

Rounds roll, so that all streams of a server are in each of its passes. With budgets `S_i` a pass takes
`T_s = F_s + sum_i c_i`, of which a stream takes `c_i = r_s + token_s (1 + S_i)`, and it earns `x_i = m_i / T_s`, where
`m_i` are its expected tokens of a pass. Over placements and budgets together,

    max  sum_s sum_{i on s} omega_i log(m_i / T_s)

Two numbers say what a server is to others: `T_s`, and what a longer pass costs its streams, `p_s = W_s / T_s`, where
`W_s`, the sum of their weights, is the price of a second of the engine's time. A drafted token is verified while it
adds more than `p_s token_s`; and a stream adds to the sum

    omega_i log(m_i / T_s) - p_s c_i                               to first order in c_i
    omega_i log(m_i / (T_s + c_i)) - W_s log(1 + c_i / T_s)        with everybody else's budgets as they are

The negative of that, for each unit of weight, is the price of its place. A stream goes where that is lowest; at the
optimum no stream has a lower one elsewhere. See docs/servers.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from goodspeed.estimation import PRIOR_ALPHA

__all__ = [
    "Cost",
    "ServerLoad",
    "best_draft",
    "fair_counts",
    "lower_of_two",
    "lowest",
    "moving_pays_after_s",
    "place_price",
]

Floats = NDArray[np.float64]

_USUAL_LIMIT = 16
_BISECTIONS = 60


class Cost(Protocol):
    """What a pass takes, as `timing.PassCost` has learnt it."""

    @property
    def fixed_s(self) -> float:
        """Seconds of an empty pass."""

    @property
    def row_s(self) -> float:
        """Seconds one more row adds."""

    @property
    def token_s(self) -> float:
        """Seconds one more token adds."""


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What has to be known of a server to place a stream."""

    cost: Cost
    pass_s: float
    """How long a pass takes at present, seconds."""
    second: float
    """The price of a second of the engine's time, `W`: the sum of the weights of its streams."""

    @property
    def token_price(self) -> float:
        """What one more token in every pass would cost the server's streams, in utility."""
        return self.second * self.cost.token_s / self.pass_s


def best_draft(alpha: float, token_price: float, limit: int) -> tuple[float, float]:
    """The draft that maximises `log m - token_price S` where lengths may alternate from pass to pass.

    Args:
        alpha: the acceptance rate.
        token_price: of a verified token, in utility for each unit of the stream's weight.
        limit: the longest draft there can be.

    Returns:
        The mean length `S`, and the expected tokens `m` of a pass; `mu(alpha, S)`, or on the line between two of those.
    """
    length, tokens, survival = 0.0, 1.0, alpha
    for _ in range(limit):
        # In this stretch a token brings `survival`, and is worth `survival / m`.
        more = min(survival, survival / token_price - tokens) if token_price > 0 else survival
        if more <= 0:
            break
        length += more / survival
        tokens += more
        survival *= alpha
    return length, tokens


def place_price(load: ServerLoad, alpha: float = PRIOR_ALPHA, limit: int = _USUAL_LIMIT, weight: float = 1.0) -> float:
    """What it costs the sum of logarithms, for each unit of its weight, that a stream is on a server.

    Where it is lower by 0.01, a stream's own goodput, less what it takes from all others', is higher by 1%.

    Args:
        load: the server's.
        alpha: the stream's acceptance rate; by default, that of a drafter nobody has seen.
        limit: the longest draft it can use.
        weight: the stream's.
    """
    cost, others = load.cost, load.second / weight
    alone_s = load.pass_s + cost.row_s + cost.token_s
    length, tokens = best_draft(alpha, (others + 1.0) * cost.token_s / alone_s, limit)
    with_it_s = alone_s + cost.token_s * length
    return math.log(with_it_s / tokens) + others * math.log(with_it_s / load.pass_s)


def moving_pays_after_s(saved: float, there: ServerLoad, transcript: int, weight: float = 1.0) -> float:
    """How long a stream has to go on after a move until that has brought in what it costs to read its transcript again.

    Args:
        saved: by how much the price of its place is lower there.
        there: the server that it would move to.
        transcript: its prompt and what was written, tokens.
        weight: the stream's.

    Returns:
        Seconds; infinity where nothing is saved.
    """
    if saved <= 0:
        return math.inf
    return there.second * there.cost.token_s * transcript / (weight * saved)


def fair_counts(fixed_s: Floats, stream_s: Floats, streams: float) -> Floats:
    """How many streams each server has at the optimum, if all are alike and there are many: weights for a balancer.

    With `T = F + n c` the price of a place is `log T + 1 - F / T`, which rises with `n`. So the sum of logarithms is
    concave in the counts, and largest where all servers that have streams have one price.

    Args:
        fixed_s: seconds of an empty pass, [servers].
        stream_s: what a stream adds to a pass, with its budget, seconds, [servers].
        streams: how many there are in all.

    Returns:
        Counts, not rounded, [servers].
    """

    def counts(price: float) -> Floats:
        """At which the price of a place is this, [servers]."""
        low, high = np.zeros_like(fixed_s), np.full_like(fixed_s, max(0.0, price - float(np.log(fixed_s).min())))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2  # log(T / F)
            dear = np.log(fixed_s) + middle - np.expm1(-middle) > price
            low, high = np.where(dear, low, middle), np.where(dear, middle, high)
        return np.asarray(fixed_s * np.expm1(low) / stream_s)

    low = float(np.log(fixed_s).min())
    # No price is higher than where the first server has them all.
    high = float(np.log(fixed_s[0] + streams * stream_s[0])) + 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if counts(middle).sum() < streams else (low, middle)
    return counts(high)


def lowest(prices: Floats) -> int:
    """The server with the lowest price; infinity is nobody's choice."""
    return int(prices.argmin())


def lower_of_two(prices: Floats, servers: Sequence[int], random: Random) -> int:
    """The cheaper of two servers drawn at random: all need not be asked, nor prices be fresh.

    Args:
        prices: [servers].
        servers: which there are to choose from, at least one.
        random: draws them.
    """
    return min(random.sample(servers, min(2, len(servers))), key=prices.__getitem__)
