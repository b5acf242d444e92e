"""An agent that guesses while the server decodes on: what is where at any moment follows from when it began."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Guessing"]


@dataclass(slots=True)
class Guessing:
    """One stream's guesses, from the verdict upon which they began to the one that breaks them."""

    under_way: bool = False
    lead: int = 0
    """How far beyond the committed tokens the agent guesses."""
    _told_at: float = 0.0
    _began_at: float = 0.0
    """One token's time before the first guess is at the server."""
    _every_s: float = 1.0
    _run: int = 0
    """So many of the guesses are right."""
    _passed: int = 0
    """So many positions are committed since it began."""
    _judged: int = 0
    _seen: bool = False

    def begin(self, now: float, began_at: float, every_s: float, run: int) -> None:
        """The agent was told, `run` guesses will be right, and the first is here a token's time after `began_at`."""
        self.under_way, self._seen = True, False
        self._told_at, self._began_at, self._every_s = now, began_at, every_s
        self._run, self._passed, self._judged = run, 0, 0

    def here(self, now: float) -> int:
        """How many guesses have come, the overtaken ones included."""
        if not self.under_way:
            return 0
        return max(0, min(math.floor((now - self._began_at) / self._every_s + 1e-9), self._passed + self.lead))

    def beyond(self, most: int, now: float) -> int:
        """How many lie beyond the committed tokens."""
        return max(0, min(self.here(now) - self._passed, most))

    def accepted(self, budget: int) -> int:
        """How many of the next so many are right."""
        return min(budget, self._run - self._passed) if self.under_way else 0

    def next_at(self, now: float) -> float | None:
        """When the first beyond the committed tokens is here; None if one is, or none is to come."""
        if not self.under_way or not self.lead or self.here(now) > self._passed:
            return None
        return self._began_at + (self._passed + 1) * self._every_s

    def first_here(self, now: float) -> float | None:
        """How long the first guess took, once, when it has come."""
        if self._seen or not self.here(now):
            return None
        self._seen = True
        return self._began_at + self._every_s - self._told_at

    def overtake(self, committed: int, now: float) -> tuple[int, bool]:
        """So many tokens were committed: how many more guesses are known to be right, and whether one was wrong."""
        if not self.under_way:
            return 0, False
        here = self.here(now)
        self._passed += committed
        known = min(here, self._passed)
        right = max(0, min(known, self._run) - self._judged)
        self._judged += right
        broken = self._passed > self._run
        if broken or not self.lead:
            self.under_way = False
        return right, broken and known > self._run
