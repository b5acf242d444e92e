"""The paper's barrier, with a deadline: a round closes when nobody is drafting any more.

When the deadline passes, the round closes over whoever is ready. A late draft is not lost: the stream becomes ready
when it arrives and is verified in the next round. Until then the rounds do not wait for it again, so that an agent that
hangs costs everybody else one deadline, not one a round; and once its draft is overdue the stream is ready without one,
so that nobody holds a row for ever by never drafting.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from goodspeed.rounds.interface import Prospect

__all__ = ["Barrier"]

StreamT = TypeVar("StreamT", bound=Hashable)


class _Asked(NamedTuple):
    """A draft that an agent owes."""

    budget: int
    since: float


class Barrier(Generic[StreamT]):
    """Rounds behind a barrier with a deadline.

    Args:
        timeout_s: how long an open round waits for a draft, and how long any one draft is waited for.
        overdue_s: how long a stream may owe a draft before it goes on without; it may still come, and is stale then.
    """

    def __init__(self, *, timeout_s: float, overdue_s: float = math.inf) -> None:
        self._timeout_s = timeout_s
        self._overdue_s = overdue_s
        self._drafting: dict[StreamT, _Asked] = {}  # the one asked first comes first
        self._ready: dict[StreamT, int] = {}  # with what they were granted, in order of arrival
        self._opened_at: float | None = None

    def __len__(self) -> int:
        return len(self._drafting) + len(self._ready)

    def __contains__(self, stream: StreamT) -> bool:
        return stream in self._drafting or stream in self._ready

    @property
    def outstanding(self) -> int:
        """The draft tokens that are still to be verified: what is here, and what has been granted and may yet come."""
        return sum(asked.budget for asked in self._drafting.values()) + sum(self._ready.values())

    @property
    def drafting(self) -> tuple[StreamT, ...]:
        """Who owes a draft."""
        return tuple(self._drafting)

    @property
    def ready(self) -> tuple[StreamT, ...]:
        """Who can be verified, the longest ready first."""
        return tuple(self._ready)

    def expect(self, stream: StreamT, budget: int, now: float, prospect: Prospect | None = None) -> None:
        """The agent of `stream` has been told to draft `budget` tokens; with 0 nothing is awaited."""
        if stream in self:
            self.leave(stream)
        if budget > 0:
            self._drafting[stream] = _Asked(budget, now)
        else:
            self._ready[stream] = 0

    def arrive(self, stream: StreamT, now: float, drafted: int, *, more: bool = False) -> bool:
        """The draft of `stream` is here; whether it was owed."""
        asked = self._drafting.pop(stream, None)
        if asked is None:
            return False
        self._ready[stream] = asked.budget
        return True

    def leave(self, stream: StreamT) -> None:
        """The stream has ended, or its agent has gone; nobody waits for it any more."""
        self._drafting.pop(stream, None)
        self._ready.pop(stream, None)
        if not len(self):
            self._opened_at = None

    def closes_at(self) -> float | None:
        """When the open round closes at the latest; None while that is nobody's to say, or no round is open."""
        if self._opened_at is None:
            return None
        if not self._drafting:
            return self._opened_at if self._ready else None
        asked_at = [entry.since for entry in self._drafting.values()]
        if not self._ready:
            overdue_at = min(asked_at) + self._overdue_s
            return overdue_at if overdue_at < math.inf else None
        return min(self._opened_at, max(asked_at)) + self._timeout_s

    def close(self, now: float, *, prompts: bool = False) -> list[StreamT]:
        """Close the round if it is time; the server calls this as soon as it could verify, and again at every event.

        The first call after a batch opens the next round: the time the server was busy with the batch is nobody's
        waiting time. A pass over prompts leaves the round open.

        Returns:
            The streams to verify, the longest ready first; empty when the round stays open. They are out of the
            rounds until `expect` is called for them again.
        """
        if self._opened_at is None and len(self):
            self._opened_at = now
        self._go_on_without_the_overdue(now)
        closes_at = self.closes_at()
        if closes_at is None or now < closes_at:
            return []
        batch = list(self._ready)
        self._ready.clear()
        self._opened_at = None
        return batch

    def _go_on_without_the_overdue(self, now: float) -> None:
        while self._drafting:
            stream, asked = next(iter(self._drafting.items()))
            if now - asked.since < self._overdue_s:
                return
            del self._drafting[stream]
            self._ready[stream] = 0
