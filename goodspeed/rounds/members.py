"""Who is part of the rounds: what every way of closing them keeps."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Asked", "Members"]

StreamT = TypeVar("StreamT", bound=Hashable)


class Asked(NamedTuple):
    """A draft that an agent owes."""

    budget: int
    since: float


class Members(Generic[StreamT]):
    """Who is drafting, and who is ready.

    Args:
        overdue_s: how long a stream may owe a draft before it goes on without; it may still come, and is stale then.
        max_streams: how many streams one round may take; the longest ready go first.
    """

    def __init__(self, *, overdue_s: float, max_streams: int | None) -> None:
        self._overdue_s = overdue_s
        self._max_streams = max_streams
        self._drafting: dict[StreamT, Asked] = {}  # the one asked first comes first
        self._ready: dict[StreamT, int] = {}  # with what they bring, in order of arrival
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

    def owes(self, stream: StreamT) -> bool:
        """Whether a draft of the stream is awaited."""
        return stream in self._drafting

    def expect(self, stream: StreamT, budget: int, now: float, due_s: float = 0.0) -> None:
        """The agent of `stream` has been told to draft `budget` tokens, due in `due_s`; with 0 nothing is awaited."""
        if stream in self:
            self.leave(stream)
        if budget > 0:
            self._drafting[stream] = Asked(budget, now)
        else:
            self._ready[stream] = 0

    def arrive(self, stream: StreamT, now: float, drafted: int | None = None) -> float:
        """The draft of `stream` is here, by default as long as was granted; returns the seconds since it was asked for.

        Raises:
            KeyError: no draft of this stream is awaited.
        """
        asked = self._drafting.pop(stream)
        self._ready[stream] = asked.budget if drafted is None else drafted
        return now - asked.since

    def leave(self, stream: StreamT) -> None:
        """The stream has ended, or its agent has gone; nobody waits for it any more."""
        self._drafting.pop(stream, None)
        self._ready.pop(stream, None)

    def _go_on_without_the_overdue(self, now: float) -> None:
        while self._drafting:
            stream, asked = next(iter(self._drafting.items()))
            if now - asked.since < self._overdue_s:
                return
            self.arrive(stream, now, drafted=0)

    def _take_batch(self, most: int | None = None) -> list[StreamT]:
        """Close the round over whoever is ready, or over the first few of them."""
        batch = list(self._ready)[: self._max_streams][:most]
        for stream in batch:
            del self._ready[stream]
        self._opened_at = None
        return batch
