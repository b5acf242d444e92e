"""The paper's barrier, with a deadline: a round closes when nobody is drafting any more.

When the deadline passes, the round closes over whoever is ready. A late draft is not lost: the stream becomes ready
when it arrives and is verified in the next round. Until then the rounds do not wait for it again, so that an agent that
hangs costs everybody else one deadline, not one a round; and once its draft is overdue the stream is ready without one,
so that nobody holds a row for ever by never drafting.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TypeVar

from goodspeed.rounds.members import Members

__all__ = ["Barrier"]

StreamT = TypeVar("StreamT", bound=Hashable)


class Barrier(Members[StreamT]):
    """Rounds behind a barrier with a deadline.

    Args:
        timeout_s: how long an open round waits for a draft, and how long any one draft is waited for.
        overdue_s: how long a stream may owe a draft before it goes on without; it may still come, and is stale then.
        max_streams: how many streams one round may take; the longest ready go first.
    """

    def __init__(self, *, timeout_s: float, overdue_s: float = math.inf, max_streams: int | None = None) -> None:
        super().__init__(overdue_s=overdue_s, max_streams=max_streams)
        self._timeout_s = timeout_s

    def leave(self, stream: StreamT) -> None:
        """The stream has ended, or its agent has gone; nobody waits for it any more."""
        super().leave(stream)
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

    def close(self, now: float) -> list[StreamT]:
        """Close the round if it is time; the server calls this as soon as it could verify, and again at every event.

        The first call after a batch opens the next round: the time the server was busy with the batch is nobody's
        waiting time.

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
        return self._take_batch()
