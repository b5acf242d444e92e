"""The registry of those who claim what is not so, or draft what is no draft: what each sends when it is its turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from goodspeed.messages import MAX_DRAFT_TOKENS, AgentMessage, Draft, DraftEnd, Redraft
from goodspeed.stream import Transcript
from goodspeed.verification import DraftDistribution, pack_q

__all__ = ["CLAIMS", "Claim", "RuleName", "Seat"]

RuleName = Literal["ratio", "coupled"]


@dataclass(slots=True)
class Seat:
    """What an attacker knows when it is its turn."""

    stream: int
    transcript: Transcript
    budget: int
    told: list[int] = field(default_factory=list)
    """The tokens that the last verdict brought."""

    @property
    def base(self) -> int:
        """The committed length."""
        return self.transcript.length

    def draft(self, tokens: Sequence[int], q: bytes = b"") -> Draft:
        """A draft upon the committed length."""
        return Draft(self.stream, self.base, list(tokens), q=q)


Move = Callable[[Seat], Sequence[AgentMessage]]


@dataclass(frozen=True, slots=True)
class Claim:
    """One way not to play by the rules."""

    name: str
    rule: RuleName
    move: Move
    """What it sends when it is told what is committed, and what to draft."""


CLAIMS: dict[str, Claim] = {}
"""All of them, by name."""


def claim(name: str, rule: RuleName) -> Callable[[Move], Move]:
    """Enter a move into the registry."""

    def enter(move: Move) -> Move:
        CLAIMS[name] = Claim(name, rule, move)
        return move

    return enter


def _claimed(token: int, weights: Sequence[int]) -> bytes:
    """A claim about a token, the first weight being its own."""
    tokens = np.array([token, *(other for other in range(len(weights)) if other != token)][: len(weights)])
    return pack_q([DraftDistribution(tokens, np.array(weights))])


@claim("tiny q", "ratio")
def _tiny(seat: Seat) -> Sequence[AgentMessage]:
    """Repeats what was committed last, and claims that it was the unlikeliest of all."""
    tokens = [seat.transcript.tokens[-1]] * seat.budget
    return [seat.draft(tokens, b"".join(_claimed(token, [1, *[65535] * 31]) for token in tokens))]


@claim("forced token", "ratio")
def _forced(seat: Seat) -> Sequence[AgentMessage]:
    """Always the same token, whatever the target thinks of it."""
    return [seat.draft([7] * seat.budget, _claimed(7, [1, *[65535] * 31]) * seat.budget)]


@claim("flat q", "ratio")
def _flat(seat: Seat) -> Sequence[AgentMessage]:
    """The text's own continuation where it has been there before, with a claim that says nothing."""
    tokens = seat.transcript.tokens
    seen = next((place for place in range(len(tokens) - 2, 0, -1) if tokens[place] == tokens[-1]), 0)
    drafted = (tokens[seen + 1 :] * seat.budget)[: seat.budget]
    return [seat.draft(drafted, b"".join(_claimed(token, [1] * 32) for token in drafted))]


@claim("sure things behind junk", "ratio")
def _behind(seat: Seat) -> Sequence[AgentMessage]:
    """A first token that cannot stand, and behind it one that is repeated until everybody is sure of it."""
    tokens = [seat.transcript.tokens[-1] ^ 1, *[11] * seat.budget][: seat.budget]
    return [seat.draft(tokens, b"".join(_claimed(token, [1]) for token in tokens))]


@claim("q that is none", "ratio")
def _none(seat: Seat) -> Sequence[AgentMessage]:
    """Floats that are not numbers where weights should be, and a weight of zero."""
    bad = bytes([4]) + np.full(6, np.nan, dtype=np.float32).tobytes()
    return [seat.draft([5] * seat.budget, bad * seat.budget), seat.draft([5], bytes([1, 5, 0, 0, 0, 0, 0]))]


@claim("unnormalised q", "ratio")
def _unnormalised(seat: Seat) -> Sequence[AgentMessage]:
    """A token that is listed again and again, so that its chances add up to far more than one."""
    twice = pack_q([DraftDistribution(np.array([5] * 32), np.array([65535] * 32))])
    return [seat.draft([5] * seat.budget, twice * seat.budget)]


@claim("drafts sixteen times", "ratio")
def _replayed(seat: Seat) -> Sequence[AgentMessage]:
    """Everything sixteen times, and what was answered long ago again."""
    fresh = seat.draft([3] * seat.budget, _claimed(3, [1]) * seat.budget)
    old = Draft(seat.stream, seat.transcript.prompt_tokens, [3], q=_claimed(3, [1]))
    return [fresh, *[fresh, old] * 15]


@claim("copies of verdicts", "coupled")
def _copied(seat: Seat) -> Sequence[AgentMessage]:
    """Guesses late what it was told, and behind that whatever."""
    known = seat.told[-32:]
    return [Draft(seat.stream, seat.base - len(known), [*known, *[9] * (MAX_DRAFT_TOKENS - len(known))])]


@claim("redraft at will", "coupled")
def _redrafting(seat: Seat) -> Sequence[AgentMessage]:
    """Bad guesses, and a new drafter every time."""
    return [Redraft("another"), seat.draft([9] * seat.budget)]


@claim("nothing is worth its price", "coupled")
def _priced_out(seat: Seat) -> Sequence[AgentMessage]:
    """Is waited for, and sends nothing."""
    return [Draft(seat.stream, seat.base, [], end=DraftEnd.PRICED_OUT)]
