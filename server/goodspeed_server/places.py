"""Who is told when where it stands in the queue."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from goodspeed_server.pacing import Bucket

__all__ = ["Places"]

KeyT = TypeVar("KeyT", bound=Hashable)

_NEVER = (0, -math.inf)
_TOLD_EVERY_S = 0.25
_TOLD_AT_ONCE = 32
"""A few milliseconds of the event loop's time."""
_TELLING = 32
"""How many requests are looked at in the time that it takes to tell one its place."""
_LOOKED_AT_ONCE, _LOOKED_AT_PER_S = 10_000, 40_000.0
"""Requests that wait: each is looked at whenever anybody comes or goes, and a flood may do both. A tenth of the event
loop's time."""


class Places(Generic[KeyT]):
    """Who is to be told where it stands: everybody at first, and again when that has changed, but not all the time."""

    def __init__(self) -> None:
        self._told: dict[KeyT, tuple[int, float]] = {}
        self._looks = Bucket(_LOOKED_AT_ONCE, _LOOKED_AT_PER_S)
        self.next_at: float | None = None
        """When somebody whose place has changed may be told so, seconds; None if nobody's has."""

    def due_at(self, now: float, *, moved: bool) -> float | None:
        """When to look who is due, seconds; None for not before somebody comes or goes; `moved`: whether one has."""
        due_at = now if moved else self.next_at
        return None if due_at is None else max(due_at, now + self._looks.lacking_s(now))

    def forget(self, key: KeyT) -> None:
        """Whoever comes under this key is told its place as if nobody had been."""
        self._told.pop(key, None)

    def due(self, order: Sequence[KeyT], now: float) -> list[tuple[KeyT, int]]:
        """Who is to be told its place now: of many, those who have not been told for longest.

        Args:
            order: all who wait, the next one first.
            now: seconds.
        """
        told = {key: self._told.get(key, _NEVER) for key in order}
        moved = ((at, place, key) for place, (key, (known, at)) in enumerate(told.items(), start=1) if known != place)
        # No two places are alike: keys are never compared.
        longest = heapq.nsmallest(_TOLD_AT_ONCE + 1, moved)
        chosen = [(key, place) for at, place, key in longest[:_TOLD_AT_ONCE] if now >= at + _TOLD_EVERY_S]
        left = longest[len(chosen) :]
        self.next_at = max(now, left[0][0] + _TOLD_EVERY_S) if left else None
        self._told = told | {key: (place, now) for key, place in chosen}
        self._looks.take(now, len(told) + _TELLING * len(chosen))
        return chosen
