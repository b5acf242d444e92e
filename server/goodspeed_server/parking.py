"""Streams whose link has gone without a word: out of the rounds, with what is cached of them kept for a while.

An agent that comes back opens its streams anew from its own transcript. Where the row of one is still here, only what
the row does not hold has to go through the target again: no prompt does. Whatever the server had committed and the
agent never heard of is rolled back with it; under the coupled rule it is drawn again as it was.

A parked row is in nobody's way. It counts as free: whoever needs one is given the row that was parked first, and the
stream has a place in the queue instead.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from goodspeed.estimation import AcceptanceEstimator, HitOrMiss
from goodspeed.prefixes import common_length
from goodspeed.stream import ServedStream
from goodspeed.timing import Pace
from goodspeed_server.live import LiveStream, RowUse, Session

__all__ = ["Parked", "ParkedKey", "Parking", "name_of"]

ParkedKey: TypeAlias = tuple[Session, int]
"""The session of a link, and the number of a stream there."""


@dataclass(frozen=True, slots=True, eq=False)
class Parked:
    """What is kept of a stream."""

    key: ParkedKey
    row: int
    use: RowUse
    tokens: list[int]
    """All that was committed, prompt included."""
    prompt_tokens: int
    cached: int
    """How many of them stand in the row."""
    agent: str
    drafter: str
    """Whose the three that follow are."""
    estimator: AcceptanceEstimator
    matching: HitOrMiss
    pace: Pace
    prior_alpha: float
    """Where the agent's further streams begin."""
    since: float
    """When it was parked, seconds."""

    @classmethod
    def of(cls, live: LiveStream, session: Session, now: float) -> Parked:
        """What to keep of a stream whose link has just gone."""
        if live.fresh is not None:
            # The draft that was still the old drafter's is void.
            live.start_afresh()
        return cls(
            key=(session, live.number),
            row=live.row,
            use=live.use,
            tokens=live.stream.tokens,
            prompt_tokens=live.stream.prompt_tokens,
            cached=live.stream.cached,
            agent=live.account.name,
            drafter=live.account.drafter,
            estimator=live.estimator,
            matching=live.matching,
            pace=live.pace,
            prior_alpha=live.account.prior_alpha,
            since=now,
        )

    @property
    def name(self) -> Hashable:
        """By which the text is known when nothing is parked of it any more."""
        return _text_name(self.key, self.tokens[: self.prompt_tokens])

    def begins_as(self, tokens: list[int], prompt_tokens: int) -> bool:
        """Whether this is a text upon the same prompt."""
        return tokens[:prompt_tokens] == self.tokens[: self.prompt_tokens]

    def cached_of(self, tokens: list[int]) -> int:
        """How many tokens of a transcript need not go through the target again; its last one always has to."""
        return min(common_length(self.tokens, tokens), self.cached, len(tokens) - 1)

    def hand_over(self, live: LiveStream) -> None:
        """Let a stream that has just been given the row go on with what is cached there and was learned.

        The pass that was at the row when the link went may still be: it writes behind what is cached, and nobody reads
        there before having written it anew.
        """
        assert live.row == self.row
        live.use = self.use
        live.stream.cached = self.cached_of(live.stream.tokens)
        account = live.account
        if account.drafter == self.drafter:
            live.estimator, live.matching, live.pace = self.estimator, self.matching, self.pace
            account.prior_alpha, account.pace = self.prior_alpha, self.pace.copy()


class Parking:
    """The parked streams of all sessions.

    Args:
        keep_s: for how long nobody has to come back for one.
    """

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._parked: dict[ParkedKey, Parked] = {}  # in order of parking

    def __len__(self) -> int:
        return len(self._parked)

    @property
    def expires_at(self) -> float | None:
        """When the first of them has been here for too long; None if there is none."""
        return next((parked.since + self._keep_s for parked in self._parked.values()), None)

    def park(self, parked: Parked) -> None:
        """Keep a stream; of one session and number there is never another."""
        assert parked.key not in self._parked
        self._parked[parked.key] = parked

    def find(self, key: ParkedKey) -> Parked | None:
        """The stream, if it is still here."""
        return self._parked.get(key)

    def take(self, parked: Parked) -> None:
        """Keep it no longer: whoever takes it has its row."""
        del self._parked[parked.key]

    def reclaim(self) -> Parked | None:
        """The one that was parked first, for its row; None if a pass is at every row that is parked."""
        parked = next((parked for parked in self._parked.values() if not parked.use.in_pass), None)
        if parked is not None:
            self.take(parked)
        return parked

    def expire(self, now: float) -> list[Parked]:
        """Those that nobody came back for in time."""
        over = [parked for parked in self._parked.values() if parked.since + self._keep_s <= now]
        for parked in over:
            self.take(parked)
        return over


def name_of(session: Session | None, number: int, stream: ServedStream) -> Hashable:
    """By which a stream is known when its agent is back; None if it is not."""
    return None if session is None else _text_name((session, number), stream.tokens[: stream.prompt_tokens])


def _text_name(key: ParkedKey, prompt: Sequence[int]) -> Hashable:
    """Names a stream and its prompt: another text under the same number is another."""
    return key, hash(tuple(prompt))
