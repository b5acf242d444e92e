"""Rolling rounds: a round closes when the engine is free and whoever is worth waiting for is in.

The engine is free at `now`, `ready` streams could be verified, and others are due at `t_1 <= t_2 <= ...`. Closing at
`t_k` instead of at once brings the first `k` of those into this pass, which else would have had to wait for the
next one, at `now + T`; but it holds everybody else up by `t_k - now`. A stream whose cycle takes `c_i` seconds loses
the share `delay / c_i` of its goodput, so under proportional fairness the round closes at the `t_k` that maximises

    sum_{j <= k} (now + T - t_k) / c_j  -  (t_k - now) (sum_{ready} 1 / c_i + sum_{k < j, t_j < now + T} 1 / c_j)

or at once, if no wait is worth it. A draft that does not come when it is due is not waited for again. Nobody is
passed over: whoever has been ready longest is verified first, and no wait is longer than one pass.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Rolling"]

StreamT = TypeVar("StreamT", bound=Hashable)

_HORIZON_STREAMS = 64
"""So many of the next arrivals are looked at; a batch that is larger than that gains nothing by one more."""
_GRACE = 0.25
"""A draft is waited for beyond the moment it is due for this share of the time it was to take."""


@dataclass(slots=True)
class _Drafting:
    budget: int
    since: float
    due_at: float
    late_at: float
    number: int


@dataclass(slots=True)
class _Ready:
    budget: int
    urgency: float
    """`1 / c`: the share of its goodput that a second of waiting costs."""


class Rolling(Generic[StreamT]):
    """Rounds without a barrier.

    Args:
        pass_s: how long a pass takes at present, seconds; asked at every decision.
        overdue_s: how long a stream may owe a draft before it goes on without; it may still come, and is stale then.
        max_streams: how many streams one round may take; the longest ready go first.
    """

    def __init__(
        self, *, pass_s: Callable[[], float], overdue_s: float = math.inf, max_streams: int | None = None
    ) -> None:
        self._pass_s = pass_s
        self._overdue_s = overdue_s
        self._max_streams = max_streams
        self._drafting: dict[StreamT, _Drafting] = {}
        self._due: list[tuple[float, int, StreamT]] = []  # of those who are drafting, the next first
        self._ready: dict[StreamT, _Ready] = {}  # in order of arrival
        self._numbers = itertools.count()
        self._opened_at: float | None = None
        self._closes_at: float | None = None

    def __len__(self) -> int:
        return len(self._drafting) + len(self._ready)

    def __contains__(self, stream: StreamT) -> bool:
        return stream in self._drafting or stream in self._ready

    @property
    def outstanding(self) -> int:
        """The draft tokens that have been granted and are still to be verified, drafted already or not."""
        return sum(entry.budget for entry in self._drafting.values()) + sum(e.budget for e in self._ready.values())

    @property
    def drafting(self) -> tuple[StreamT, ...]:
        """Who owes a draft."""
        return tuple(self._drafting)

    @property
    def ready(self) -> tuple[StreamT, ...]:
        """Who can be verified, the longest ready first."""
        return tuple(self._ready)

    def expect(self, stream: StreamT, budget: int, now: float, due_s: float = 0.0) -> None:
        """The agent of `stream` has been told to draft `budget` tokens, due in `due_s`; with 0 nothing is awaited."""
        self.leave(stream)
        if budget > 0:
            number = next(self._numbers)
            self._drafting[stream] = _Drafting(budget, now, now + due_s, now + due_s * (1 + _GRACE), number)
            bisect.insort(self._due, (now + due_s, number, stream))
        else:
            self._ready[stream] = _Ready(0, 1.0 / max(self._pass_s(), 1e-9))

    def owes(self, stream: StreamT) -> bool:
        """Whether a draft of the stream is awaited."""
        return stream in self._drafting

    def arrive(self, stream: StreamT, now: float) -> float:
        """The draft of `stream` is here; returns the seconds since it was asked for.

        Raises:
            KeyError: no draft of this stream is awaited.
        """
        entry = self._take(stream)
        elapsed_s = now - entry.since
        self._ready[stream] = _Ready(entry.budget, 1.0 / max(elapsed_s + self._pass_s(), 1e-9))
        return elapsed_s

    def leave(self, stream: StreamT) -> None:
        """The stream has ended, or its agent has gone; nobody waits for it any more."""
        if stream in self._drafting:
            self._take(stream)
        self._ready.pop(stream, None)

    def closes_at(self) -> float | None:
        """When to call `close` again, if nothing happens before; None while there is nothing to close."""
        if self._closes_at is not None and self._ready:
            return self._closes_at
        if not self._drafting or self._overdue_s == math.inf:
            return None
        return next(iter(self._drafting.values())).since + self._overdue_s

    def close(self, now: float) -> list[StreamT]:
        """Close the round if nobody is worth waiting for; else `closes_at` says until when to wait."""
        self._give_up_on_the_overdue(now)
        if not self._ready:
            self._opened_at = self._closes_at = None
            return []
        if self._opened_at is None:
            self._opened_at = now
        wait_until = self._worth_waiting_until(now)
        if wait_until > now:
            self._closes_at = wait_until
            return []
        batch = list(self._ready)[: self._max_streams]
        for stream in batch:
            del self._ready[stream]
        self._opened_at = self._closes_at = None
        return batch

    def _worth_waiting_until(self, now: float) -> float:
        assert self._opened_at is not None
        pass_s = self._pass_s()
        latest = min(now, self._opened_at) + pass_s
        coming = [
            (
                entry.due_at if entry.due_at > now else (now + entry.late_at) / 2,
                entry.late_at,
                1.0 / max(entry.due_at - entry.since + pass_s, 1e-9),
            )
            for entry in map(self._drafting.__getitem__, self._next_due())
            if entry.late_at > now and entry.due_at < latest
        ]
        held_up = sum(entry.urgency for entry in self._ready.values()) + sum(urgency for _, _, urgency in coming)
        best, best_until, in_time = 0.0, now, 0.0
        for due_at, late_at, urgency in coming:
            held_up -= urgency
            in_time += urgency
            gain = in_time * (now + pass_s - due_at) - held_up * (due_at - now)
            if gain > best:
                best, best_until = gain, min(late_at, latest)
        return best_until

    def _next_due(self) -> list[StreamT]:
        return [stream for _, _, stream in self._due[:_HORIZON_STREAMS]]

    def _give_up_on_the_overdue(self, now: float) -> None:
        while self._drafting:
            stream, entry = next(iter(self._drafting.items()))  # the one asked first
            if now - entry.since < self._overdue_s:
                return
            self.arrive(stream, now)

    def _take(self, stream: StreamT) -> _Drafting:
        entry = self._drafting.pop(stream)
        place = bisect.bisect_left(self._due, (entry.due_at, entry.number))
        del self._due[place]
        return entry
