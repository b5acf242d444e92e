"""Streams of which not even one token fits into memory: kept for a while, since memory that is gone may come back.

Each is tried again with a single token, at first soon and then more and more rarely; all others go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["KEEP_S", "Shortage"]

StreamT = TypeVar("StreamT", bound=Hashable)

KEEP_S = 10.0
"""For how long a stream is tried again."""
_FIRST_S = 0.05
_LONGEST_S = 1.0


@dataclass(slots=True)
class _Lack:
    since: float
    """When it first found no memory, seconds."""
    wait_s: float
    """Before its next attempt."""
    retry_at: float
    rests: bool = True
    """Whether that attempt is still to come, and the stream in no pass before."""


class Shortage(Generic[StreamT]):
    """Who lacks the memory for one token, and when it is tried again.

    Args:
        keep_s: for how long.
    """

    def __init__(self, keep_s: float = KEEP_S) -> None:
        self._keep_s = keep_s
        self._lacks: dict[StreamT, _Lack] = {}

    def __contains__(self, stream: object) -> bool:
        return stream in self._lacks

    @property
    def next_at(self) -> float | None:
        """When the next attempt is due, seconds; None if nobody rests."""
        return min((lack.retry_at for lack in self._lacks.values() if lack.rests), default=None)

    def rests(self, stream: StreamT) -> bool:
        """Whether it is in no pass for now."""
        return stream in self._lacks and self._lacks[stream].rests

    def failed(self, stream: StreamT, now: float) -> bool:
        """Not even one token of it fitted; whether it is kept, and not to be given up."""
        lack = self._lacks.setdefault(stream, _Lack(now, _FIRST_S, now))
        over_at = lack.since + self._keep_s
        if now >= over_at:
            del self._lacks[stream]
            return False
        # The last attempt is made when the time is over, and not before.
        lack.retry_at, lack.rests = min(now + lack.wait_s, over_at), True
        lack.wait_s = min(2 * lack.wait_s, _LONGEST_S)
        return True

    def due(self, now: float) -> list[StreamT]:
        """Those whose next attempt is due: they rest no more."""
        due = [stream for stream, lack in self._lacks.items() if lack.rests and lack.retry_at <= now]
        for stream in due:
            self._lacks[stream].rests = False
        return due

    def over(self, stream: StreamT) -> None:
        """It was in a pass that fitted, or has gone."""
        self._lacks.pop(stream, None)
