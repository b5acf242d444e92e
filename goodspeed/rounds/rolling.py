"""Rolling rounds: a round closes as soon as the engine is free, unless somebody is worth waiting for.

Nobody has to be waited for: every stream is in every round, with what its agent has guessed by then, or with nothing,
and is decoded plainly. Guesses that come while a pass runs are in the next round. An engine that is free waits only
where that brings more than it costs everybody. The streams with nothing here are due at times that their agents' paces
foretell; the k-th guess of stream `i` adds `a_i^k` tokens to the pass, each worth `w_i` seconds of everybody's time,
and costs the time it takes to verify. The round closes at the instant `t`, of those at which a guess is due, that
maximises

    share sum_i sum_{k here by t} max(0, w_i a_i^k - token)  -  (t - now)

or at once, if no wait is worth anything. Only a share of what guesses bring is a gain, since those that are not waited
for are not lost: if the token decoded in place of the first agrees with it, the others are in the next round. Take one
stream whose agent drafts in no time. Waiting `r` after every miss makes cycles of `1/(1-a)` tokens in `r + T` seconds,
not waiting ones of `1/(a (1-a))` tokens in `T (1+a) / a`: it pays if `r < a T`, where the guesses bring `a (1+a) T`. So
the share is `1 / (1+a)`; we take a half, for what is foretold of agents errs.

Streams that have guesses here when the engine falls free are not waited for: what else their agents guess while the
pass runs is not lost. Guesses that do not come when they are due are waited for a little longer, and no round is held
open for longer than one pass.

An agent promises nothing: it may let everybody wait, round by round, for guesses that never come. So of a stream that
kept a round waiting in vain the next ones count for half their worth, and for more again as rounds go by.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from goodspeed.rounds.interface import Prospect
from goodspeed.timing import EngineLoad

__all__ = ["SHARE", "Rolling"]

StreamT = TypeVar("StreamT", bound=Hashable)

_HORIZON = 64
"""So many of the next guesses are looked at."""
_CROWD = 64
"""Among so many streams nobody is waited for: a single one cannot be worth everybody's time."""
SHARE = 0.5
"""So much of what guesses bring to a pass would be lost if they were not waited for."""
_GRACE = 0.25
"""Guesses are waited for beyond the moment they are due for this share of the time they were to take."""
_IN_VAIN, _KEPT, _FORGOTTEN = 0.7, 1.25, 1.015
"""What belief in a stream's prospects is multiplied by: where a round has waited for it in vain, where what was due has
come, and with every other round. So who never keeps a promise makes one round in 24 wait for it at most."""
_LEAST_BELIEF = 1e-3


@dataclass(frozen=True, slots=True)
class _Due:
    at: float
    late_at: float
    budget: int
    prospect: Prospect
    here: int = 0
    """How many of the guesses have come."""

    def guesses(self, now: float) -> Iterator[tuple[float, float]]:
        """When each guess is likely to be here, and how many seconds it is worth: the first first."""
        first = self.at if self.at > now else (now + self.late_at) / 2
        worth_s = self.prospect.worth_s
        for number in range(self.budget):
            worth_s *= self.prospect.chance
            yield first + number * self.prospect.every_s, worth_s


class Rolling(Generic[StreamT]):
    """Rounds without a barrier.

    Args:
        load: how the engine is doing at present; asked at every decision.
    """

    def __init__(self, *, load: Callable[[], EngineLoad]) -> None:
        self._load = load
        self._ready: dict[StreamT, int] = {}  # with what they may bring, in order of arrival
        self._due: dict[StreamT, _Due] = {}
        self._belief: dict[StreamT, float] = {}
        """In the prospects of streams that have kept a round waiting in vain, below 1."""
        self._opened_at: float | None = None
        self._closes_at: float | None = None

    def __len__(self) -> int:
        return len(self._ready)

    def __contains__(self, stream: StreamT) -> bool:
        return stream in self._ready

    @property
    def outstanding(self) -> int:
        """The draft tokens that the next pass may verify."""
        return sum(self._ready.values())

    @property
    def drafting(self) -> tuple[StreamT, ...]:
        """Nobody: no draft is owed."""
        return ()

    @property
    def ready(self) -> tuple[StreamT, ...]:
        """Everybody."""
        return tuple(self._ready)

    def expect(self, stream: StreamT, budget: int, now: float, prospect: Prospect | None = None) -> None:
        """The stream can be verified; its agent was told to guess, and has nothing here if it has a prospect."""
        self._forget(stream)
        self._ready[stream] = budget
        if budget and prospect:
            prospect = prospect._replace(worth_s=prospect.worth_s * self._belief.get(stream, 1.0))
            self._due[stream] = _Due(now + prospect.due_s, now + prospect.due_s * (1 + _GRACE), budget, prospect)

    def arrive(self, stream: StreamT, now: float, drafted: int, *, more: bool = False) -> bool:
        """So many guesses of the stream are here, and more may come; whether they were waited for."""
        due = self._due.pop(stream, None)
        if due is None:
            return False
        if drafted and not due.here:
            self._believe(stream, _KEPT)
        fresh = max(0, drafted - due.here)
        prospect, left = due.prospect, due.budget - fresh
        if more and left > 0:
            worth_s = prospect.worth_s * prospect.chance**fresh
            late_at = now + prospect.every_s * (1 + _GRACE)
            self._due[stream] = _Due(now + prospect.every_s, late_at, left, prospect._replace(worth_s=worth_s), drafted)
        return True

    def leave(self, stream: StreamT) -> None:
        """The stream has ended, or its agent has gone."""
        self._forget(stream)
        self._belief.pop(stream, None)

    def closes_at(self) -> float | None:
        """When to call `close` again, if nothing happens before; None while there is nothing to close."""
        return self._closes_at if self._ready else None

    def close(self, now: float, *, prompts: bool = False) -> list[StreamT]:
        """Close the round if nobody is worth waiting for; else `closes_at` says until when to wait.

        Prompts are not worked on meanwhile, but in the same pass: so with them there is no waiting.
        """
        self._closes_at = None
        if not self._ready:
            self._opened_at = None
            return []
        if self._opened_at is None:
            self._opened_at = now
        wait_until = now if prompts else self._worth_waiting_until(now, self._opened_at)
        if wait_until > now:
            self._closes_at = wait_until
            return []
        batch = list(self._ready)
        self._look_back(now, self._opened_at)
        self._ready.clear()
        self._due.clear()
        self._opened_at = None
        return batch

    def _forget(self, stream: StreamT) -> None:
        self._ready.pop(stream, None)
        self._due.pop(stream, None)

    def _look_back(self, now: float, opened_at: float) -> None:
        """See who has kept the round that closes now waiting in vain."""
        for stream in self._ready:
            due = self._due.get(stream)
            if due is not None and not due.here and opened_at < due.at <= now:
                self._belief[stream] = max(_LEAST_BELIEF, _IN_VAIN * self._belief.get(stream, 1.0))
            else:
                self._believe(stream, _FORGOTTEN)

    def _believe(self, stream: StreamT, factor: float) -> None:
        """Believe a stream more than it was, if it was believed less than others."""
        belief = factor * self._belief.pop(stream, 1.0)
        if belief < 1.0:
            self._belief[stream] = belief

    def _worth_waiting_until(self, now: float, opened_at: float) -> float:
        if not self._due or len(self._ready) > _CROWD:
            return now
        engine = self._load()
        latest, token_s = opened_at + engine.pass_s, engine.cost.token_s
        coming = heapq.merge(*(due.guesses(now) for due in self._due.values() if due.late_at > now))
        gained = best = 0.0
        best_until = now
        for _, (at, worth_s) in zip(range(_HORIZON), coming, strict=False):
            if at > latest:
                break
            gained += SHARE * max(0.0, worth_s - token_s)
            if gained - (at - now) > best:
                best, best_until = gained - (at - now), at
        return best_until
