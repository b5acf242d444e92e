"""Who is gone from the queue and may be back: where it stood, and for how many tokens there is to be room."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Absences", "Absent"]

NameT = TypeVar("NameT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Absent:
    """A place that is kept."""

    arrival: int
    """Of the request that stood there, in ticks of the queue."""
    tokens: int
    """That it held."""
    since: float
    """When it went, seconds."""


class Absences(Generic[NameT]):
    """The places that are kept, each under the name by which whoever comes back is known.

    Args:
        keep_s: for how long; 0 keeps none.
    """

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._absent: dict[NameT, Absent] = {}  # who went first comes first
        self.tokens = 0
        """For which room is kept."""

    def __len__(self) -> int:
        return len(self._absent)

    @property
    def expires_at(self) -> float | None:
        """When the first of them is given up, seconds; None if there is none."""
        return next((absent.since + self._keep_s for absent in self._absent.values()), None)

    def held(self, name: NameT) -> int | None:
        """How many tokens the request held whose place is kept; None if there is none of that name."""
        absent = self._absent.get(name)
        return None if absent is None else absent.tokens

    def leave(self, name: NameT, absent: Absent) -> None:
        """Keep a place; one that is kept under the name is given up."""
        self.back(name)
        if self._keep_s > 0:
            self._absent[name] = absent
            self.tokens += absent.tokens

    def back(self, name: NameT) -> Absent | None:
        """Keep a place no longer; None if there is none of that name."""
        absent = self._absent.pop(name, None)
        if absent is not None:
            self.tokens -= absent.tokens
        return absent

    def make_room(self, streams: int, tokens: int) -> None:
        """Give up places until at most so many are left, with at most so many tokens: who went first goes first."""
        while self._absent and (len(self._absent) > streams or self.tokens > tokens):
            self.back(next(iter(self._absent)))

    def expire(self, now: float = math.inf) -> None:
        """Give up the places to which nobody has come back in time."""
        while (expires_at := self.expires_at) is not None and expires_at <= now:
            self.back(next(iter(self._absent)))
