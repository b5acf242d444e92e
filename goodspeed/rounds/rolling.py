"""Rolling rounds: a round closes when the engine is free and whoever is worth waiting for is in.

The engine is free at `now`, `ready` streams could be verified, and others are due at `t_1 <= t_2 <= ...`. Closing at
`t_k` instead of at once brings the first `k` of those into this pass, which else would have had to wait for the
next one, at `now + T`; but it holds everybody else up by `t_k - now`. A stream whose cycle takes `c_i` seconds loses
the share `delay / c_i` of its goodput, so under proportional fairness the round closes at the `t_k` that maximises

    sum_{j <= k} (now + T - t_k) / c_j  -  (t_k - now) (sum_{ready} 1 / c_i + sum_{k < j, t_j < now + T} 1 / c_j)

or at once, if no wait is worth it. A draft that does not come when it is due is not waited for again. Nobody is
passed over: whoever has been ready longest is verified first, and no round is held open for longer than one pass.

Agents that were verified together draft at the same time, and come back together: a herd, for which the engine idles
and which then holds itself up in one long pass. So a batch may also be parted. Of a pass that takes `F + R_1 + R_2`,
fixed and for two groups of streams, the first group is through `R_2` earlier if the second has a pass of its own, and
the second `F` later; and as the engine is busy `F + R_2` longer, a first stream whose agent takes `a_i` until it is
back gains no more than `a_i - F`. Those who are still drafting are held up by `F` too, if the engine has no pause to
make up for it, which it has not for the share `rho` of the time that it is busy. The batch is parted where it is worth
most, if it is worth anything, by

    sum_first min(R_2, a_i - F) / c_i  -  F (sum_second 1 / c_i + rho sum_drafting 1 / c_i)
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import numpy as np

from goodspeed.rounds.members import Members
from goodspeed.timing import EngineLoad

__all__ = ["Rolling"]

StreamT = TypeVar("StreamT", bound=Hashable)

_HORIZON_STREAMS = 64
"""So many of the next arrivals are looked at; a batch that is larger than that gains nothing by one more."""
_PARTS = (2, 3, 4)
"""Into how many parts a batch may be parted."""
_GRACE = 0.25
"""A draft is waited for beyond the moment it is due for this share of the time it was to take."""


class _Due(NamedTuple):
    at: float
    late_at: float
    number: int
    takes_s: float


class Rolling(Members[StreamT]):
    """Rounds without a barrier.

    Args:
        load: how the engine is doing at present; asked at every decision.
        overdue_s: how long a stream may owe a draft before it goes on without; it may still come, and is stale then.
        max_streams: how many streams one round may take; the longest ready go first.
    """

    def __init__(
        self,
        *,
        load: Callable[[], EngineLoad],
        overdue_s: float = math.inf,
        max_streams: int | None = None,
    ) -> None:
        super().__init__(overdue_s=overdue_s, max_streams=max_streams)
        self._load = load
        self._due: dict[StreamT, _Due] = {}  # of those who are drafting
        self._next_due: list[tuple[float, int, StreamT]] = []  # the same, the next first
        self._urgency: dict[StreamT, float] = {}
        """Of those who are ready, `1 / c`: the share of its goodput that a second of waiting costs."""
        self._away_s: dict[StreamT, float] = {}
        """Of those who are ready, how long the agent took, `a`."""
        self._numbers = itertools.count()
        self._closes_at: float | None = None

    def expect(self, stream: StreamT, budget: int, now: float, due_s: float = 0.0) -> None:
        """The agent of `stream` has been told to draft `budget` tokens, due in `due_s`; with 0 nothing is awaited."""
        super().expect(stream, budget, now, due_s)
        if budget > 0:
            due = _Due(now + due_s, now + due_s * (1 + _GRACE), next(self._numbers), due_s)
            self._due[stream] = due
            bisect.insort(self._next_due, (due.at, due.number, stream))
        else:
            self._is_ready(stream, 0.0)

    def arrive(self, stream: StreamT, now: float, drafted: int | None = None) -> float:
        """The draft of `stream` is here, by default as long as was granted; returns the seconds since it was asked for.

        Raises:
            KeyError: no draft of this stream is awaited.
        """
        elapsed_s = super().arrive(stream, now, drafted)
        self._forget_due(stream)
        self._is_ready(stream, elapsed_s)
        return elapsed_s

    def leave(self, stream: StreamT) -> None:
        """The stream has ended, or its agent has gone; nobody waits for it any more."""
        super().leave(stream)
        self._forget_due(stream)
        self._urgency.pop(stream, None)
        self._away_s.pop(stream, None)

    def closes_at(self) -> float | None:
        """When to call `close` again, if nothing happens before; None while there is nothing to close."""
        if self._closes_at is not None and self._ready:
            return self._closes_at
        if not self._drafting or self._overdue_s == math.inf:
            return None
        return next(iter(self._drafting.values())).since + self._overdue_s

    def close(self, now: float) -> list[StreamT]:
        """Close the round if nobody is worth waiting for; else `closes_at` says until when to wait."""
        self._go_on_without_the_overdue(now)
        self._closes_at = None
        if not self._ready:
            self._opened_at = None
            return []
        if self._opened_at is None:
            self._opened_at = now
        wait_until = self._worth_waiting_until(now, self._opened_at)
        if wait_until > now:
            self._closes_at = wait_until
            return []
        batch = self._take_batch(self._first_part())
        for stream in batch:
            del self._urgency[stream], self._away_s[stream]
        return batch

    def _worth_waiting_until(self, now: float, opened_at: float) -> float:
        pass_s = self._load().pass_s
        latest = opened_at + pass_s
        coming = [
            (due.at if due.at > now else (now + due.late_at) / 2, due.late_at, self._share_of_cycle(due.takes_s))
            for due in (self._due[stream] for _, _, stream in self._next_due[:_HORIZON_STREAMS])
            if due.late_at > now and due.at < latest
        ]
        held_up = sum(self._urgency.values()) + sum(urgency for _, _, urgency in coming)
        best, best_until, in_time = 0.0, now, 0.0
        for due_at, late_at, urgency in coming:
            held_up -= urgency
            in_time += urgency
            gain = in_time * (now + pass_s - due_at) - held_up * (due_at - now)
            if gain > best:
                best, best_until = gain, min(late_at, latest)
        return best_until

    def _first_part(self) -> int:
        """How many of those who are ready go into the next pass."""
        count = len(self._ready) if self._max_streams is None else min(len(self._ready), self._max_streams)
        engine = self._load()
        fixed_s, row_s, token_s = engine.cost.fixed_s, engine.cost.row_s, engine.cost.token_s
        load_s = row_s + token_s * (1.0 + np.fromiter(self._ready.values(), float, count))  # [streams]
        if load_s.sum() <= fixed_s:
            return count
        urgency = np.fromiter(self._urgency.values(), float, count)
        away_s = np.fromiter(self._away_s.values(), float, count)
        best, most_gained = count, 0.0
        for parts in _PARTS:
            first = math.ceil(count / parts)
            second_s = load_s[first:].sum()
            early = (urgency[:first] * np.minimum(second_s, away_s[:first] - fixed_s)).sum()
            gained = float(early - fixed_s * urgency[first:].sum())
            if gained > most_gained:
                best, most_gained = first, gained
        if most_gained > 0.0:
            drafting = sum(self._share_of_cycle(due.takes_s) for due in self._due.values())
            most_gained -= fixed_s * engine.busy * drafting
        return best if most_gained > 0.0 else count

    def _is_ready(self, stream: StreamT, away_s: float) -> None:
        self._away_s[stream] = away_s
        self._urgency[stream] = self._share_of_cycle(away_s)

    def _share_of_cycle(self, agent_s: float) -> float:
        """What a second is of a cycle in which the agent takes so long."""
        return 1.0 / max(agent_s + self._load().pass_s, 1e-9)

    def _forget_due(self, stream: StreamT) -> None:
        due = self._due.pop(stream, None)
        if due is not None:
            del self._next_due[bisect.bisect_left(self._next_due, (due.at, due.number))]
