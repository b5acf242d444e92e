"""How long to wait before trying again: exponential, jittered, and not for ever."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

__all__ = ["Backoff", "Patience"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """The waiting times between attempts at something that keeps failing.

    The jitter is what keeps a thousand agents from coming back at the same moment after their server restarts.
    """

    first_s: float = 0.25
    """The longest first wait; it doubles with every further attempt."""
    longest_s: float = 5.0
    """So much later than its server an agent is back at worst, while its users wait."""
    give_up_after_s: float = 30.0
    """No attempt begins later than this after the first failure in a row, and one begins shortly before."""
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def wait_s(self, attempt: int, left_s: float = math.inf) -> float | None:
        """Draw the wait before the next attempt.

        Args:
            attempt: how many have failed so far, 1 or more.
            left_s: in how long there is to be no attempt any more.

        Returns:
            The wait, and None if it is time to give up.
        """
        if left_s < self.first_s:
            return None
        ceiling_s = min(self.longest_s, self.first_s * 2.0 ** min(attempt - 1, 32), left_s)
        return ceiling_s * self.rng.uniform(0.5, 1.0)


class Patience:
    """Counts the failures in a row of one thing, and says how long to wait after each.

    Args:
        backoff: the waiting times.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._since_s = 0.0
        self.failures = 0

    def succeeded(self) -> None:
        """It went well: the next failure is the first again."""
        self.failures = 0

    def failed(self, now_s: float, at_least_s: float = 0.0) -> float | None:
        """It failed (again).

        Args:
            now_s: the time, by any steady clock.
            at_least_s: what the other side asked for; the jitter comes on top.

        Returns:
            How long to wait before the next attempt; None if it is time to give up.
        """
        if self.failures == 0:
            self._since_s = now_s
        self.failures += 1
        left_s = self._since_s + self._backoff.give_up_after_s - now_s - at_least_s
        wait_s = self._backoff.wait_s(self.failures, left_s)
        return None if wait_s is None else at_least_s + wait_s
