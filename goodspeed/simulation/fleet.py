"""Many servers and very many streams, as a fluid: what each stream gets in expectation, step by step.

Where `world` follows every pass of one server, here a server's passes are all alike for the length of a step, with the
budgets that its scheduler settles on; rates are known, and boxes are as fast as the longest draft they can use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from goodspeed.placement import ServerLoad
from goodspeed.simulation.scenery import Engine

__all__ = ["Fleet", "drafts"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NOWHERE = -1


def drafts(alpha: Floats, token_price: Floats, limit: Ints) -> tuple[Floats, Floats]:
    """`placement.best_draft` of many streams, each at its price; everything is [streams].

    Returns:
        Mean lengths, and expected tokens a pass.
    """
    length, tokens, survival = np.zeros_like(alpha), np.ones_like(alpha), alpha.copy()
    with np.errstate(divide="ignore", over="ignore"):
        worth = 1.0 / token_price
    for position in range(int(limit.max(initial=0))):
        more = np.clip(survival * worth - tokens, 0.0, survival)
        more[position >= limit] = 0.0
        if not more.any():
            break
        tokens += more
        length += more / survival
        survival *= alpha
    return length, tokens


class Fleet:
    """Servers and their streams, all of weight 1.

    Args:
        engines: of the servers.
        alpha: acceptance rates, in (0, 1), [streams].
        limit: the longest draft each stream can use, [streams].
        at: the server of each stream, [streams].
    """

    def __init__(self, engines: Sequence[Engine], alpha: Floats, limit: Ints, at: Ints) -> None:
        self.engines = tuple(engines)
        self.alpha, self.limit, self.at = alpha, limit, at
        self.count = np.bincount(at, minlength=len(engines))
        """Streams of each server, [servers]."""
        self.up = np.ones(len(engines), dtype=np.bool_)
        """Which servers live, [servers]."""
        self.fixed_s, self.row_s, self.token_s = (
            np.array([getattr(engine, name) for engine in engines]) for name in ("fixed_s", "row_s", "token_s")
        )
        self.pass_s = self.fixed_s + self.count * (self.row_s + self.token_s)
        """How long a pass of each server takes, [servers]."""
        self.goodput = np.zeros(len(alpha))
        """Tokens per second of each stream, [streams]."""
        self.settle(30)

    def settle(self, rounds: int = 2) -> None:
        """Let every server's budgets follow the price of its tokens, and that price its budgets, a few times.

        From where it was left, two are enough.
        """
        for _ in range(rounds):
            length, tokens = drafts(self.alpha, (self.count * self.token_s / self.pass_s)[self.at], self.limit)
            taken_s = self.row_s[self.at] + self.token_s[self.at] * (1.0 + length)
            self.pass_s = self.fixed_s + np.bincount(self.at, taken_s, minlength=len(self.engines))
        self.goodput = tokens / self.pass_s[self.at]

    def load(self, server: int) -> ServerLoad:
        """What a server says of itself."""
        return ServerLoad(self.engines[server], float(self.pass_s[server]), float(self.count[server]))

    def leave(self, streams: Ints) -> None:
        """Take streams off their servers, until they are placed again: passes get shorter by their mean share."""
        gone = np.bincount(self.at[streams], minlength=len(self.engines))
        share = np.divide(gone, self.count, out=np.zeros(len(gone)), where=self.count > 0)
        self.pass_s -= (self.pass_s - self.fixed_s) * share
        self.count -= gone
        self.at[streams] = NOWHERE

    def place(self, stream: int, server: int, length: float) -> None:
        """Put a stream that is nowhere on a server, whose next passes verify a draft this long of it."""
        self.at[stream] = server
        self.count[server] += 1
        self.pass_s[server] += self.row_s[server] + self.token_s[server] * (1.0 + length)
