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

An agent promises nothing: it may let everybody wait, round by round, for guesses that never come. So guesses count only
as far as there is `Patience` left with the holder of their stream.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Generic, TypeVar

from goodspeed.rounds.interface import Prospect
from goodspeed.rounds.patience import Patience
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


@dataclass(frozen=True, slots=True)
class _Due:
    at: float
    late_at: float
    budget: int
    prospect: Prospect
    """Of the guesses that are not here."""
    here: int = 0
    """How many have come."""

    def guesses(self, now: float, token_s: float) -> Iterator[tuple[float, float]]:
        """When each further guess is likely to be here, and how many seconds waiting for it gains: the first first."""
        first = self.at if self.at > now else (now + self.late_at) / 2
        worth_s = self.prospect.worth_s
        for number in range(self.budget - self.here):
            worth_s *= self.prospect.chance
            yield first + number * self.prospect.every_s, SHARE * max(0.0, worth_s - token_s)


class Rolling(Generic[StreamT]):
    """Rounds without a barrier.

    Args:
        load: how the engine is doing at present; asked at every decision.
        holder: whose a stream is, over all its links; what rounds wait in vain is held against all streams of a holder.
    """

    def __init__(self, *, load: Callable[[], EngineLoad], holder: Callable[[StreamT], Hashable]) -> None:
        self._load = load
        self._patience = Patience(holder=holder, pass_s=lambda: load().pass_s)
        self._ready: dict[StreamT, int] = {}  # with what they may bring, in order of arrival
        self._due: dict[StreamT, _Due] = {}
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
            self._due[stream] = _Due(now + prospect.due_s, now + prospect.due_s * (1 + _GRACE), budget, prospect)

    def arrive(self, stream: StreamT, now: float, drafted: int, *, more: bool = False) -> bool:
        """So many guesses of the stream are here, and more may come; whether they were waited for."""
        due = self._due.pop(stream, None)
        if due is None:
            return False
        fresh, prospect = max(0, drafted - due.here), due.prospect
        gained_s = sum(gain_s for _, gain_s in islice(due.guesses(now, self._load().cost.token_s), fresh))
        self._patience.kept(stream, gained_s, now)
        if not fresh and more:
            self._due[stream] = due
        elif more and drafted < due.budget:
            left = prospect._replace(worth_s=prospect.worth_s * prospect.chance**fresh)
            late_at = now + prospect.every_s * (1 + _GRACE)
            self._due[stream] = replace(due, at=now + prospect.every_s, late_at=late_at, prospect=left, here=drafted)
        return True

    def leave(self, stream: StreamT) -> None:
        """The stream has ended, or its agent has gone."""
        self._forget(stream)

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
            self._patience.wait_for({}, now)
            return []
        if self._opened_at is None:
            self._opened_at = now
        wait_until, pledged_s = (now, {}) if prompts else self._worth_waiting_until(now, self._opened_at)
        if wait_until > now:
            self._patience.wait_for(pledged_s, now)
            self._closes_at = wait_until
            return []
        batch = list(self._ready)
        self._patience.round_over(now)
        self._ready.clear()
        self._due.clear()
        self._opened_at = None
        return batch

    def _forget(self, stream: StreamT) -> None:
        self._ready.pop(stream, None)
        self._due.pop(stream, None)

    def _worth_waiting_until(self, now: float, opened_at: float) -> tuple[float, Mapping[StreamT, float]]:
        """Until when to wait, and what the guesses gain that are to come by then, seconds by stream."""
        if not self._due or len(self._ready) > _CROWD:
            return now, {}
        self._patience.charge(now)
        engine = self._load()
        latest, token_s = opened_at + engine.pass_s, engine.cost.token_s
        gained_s = best_s = 0.0
        best_until = now
        coming = heapq.merge(*(self._guesses(stream, now, token_s) for stream in self._due), key=lambda guess: guess[0])
        looked_at = list(islice(coming, _HORIZON))
        for at, gain_s, _ in looked_at:
            if at > latest:
                break
            gained_s += gain_s
            if gained_s - (at - now) > best_s:
                best_s, best_until = gained_s - (at - now), at
        pledged_s: dict[StreamT, float] = defaultdict(float)
        for at, gain_s, stream in looked_at:
            if at <= best_until:
                pledged_s[stream] += gain_s
        return best_until, pledged_s

    def _guesses(self, stream: StreamT, now: float, token_s: float) -> Iterator[tuple[float, float, StreamT]]:
        """As `_Due.guesses`, while they gain anything, and as far as there is patience with the stream's holder."""
        due, until = self._due[stream], now + self._patience.left_s(stream)
        if due.late_at > now:
            for at, gain_s in due.guesses(now, token_s):
                if at > until or not gain_s:
                    break
                yield at, gain_s, stream
