"""What an agent has guessed beyond a stream's committed tokens, as the server holds it.

The server does not wait for guesses in rolling rounds: it decodes on, and what it commits meanwhile overtakes some of
them. Those are held against the transcript. As long as they were right, the ones behind them are a draft like any
other, since each was drawn upon the very tokens that are committed now; the first that was wrong takes all that follow
with it. Whether a guess is verified depends on tokens before it alone, so both rules stay lossless.

Guesses may come in pieces, each with the `offset` of its first token among those that began upon the same `base`. An
agent begins anew exactly when it hears of the commit that broke its guesses, so a piece that continues what is not
held any more is recognised by these two numbers, and is stale.

What became of a guess is counted once for each position of the transcript. Whoever says the same again, or begins anew
upon what it has been told long since, shows nothing new: it may have read it in the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Guesses", "Overtaken"]


_NOTHING = -1
"""Stands where a drafter had nothing to say; no token is that, so whatever is committed there was not guessed."""


class Overtaken(NamedTuple):
    """What became of guesses that were overtaken."""

    right: int
    missed: bool
    """Whether one was wrong; those behind it say nothing."""


class Guesses:
    """Of one stream."""

    def __init__(self) -> None:
        self._base = -1
        """The committed length that they began upon; -1: there are none."""
        self._tokens: list[int] = []
        self._q: list[Any] = []
        self._judged = 0
        self._counted = 0
        """The first position of the transcript of which no guess was counted yet."""

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def judged_to(self) -> int:
        """The first position of the transcript that they are still to be counted at."""
        return max(self._base + self._judged, self._counted)

    def continues(self, base: int, offset: int) -> bool:
        """Whether a piece follows what is here; one with an offset of 0 begins anew, and always may.

        Nothing follows what was said to be the end.
        """
        if offset == 0:
            return True
        return (base, offset) == (self._base, len(self._tokens)) and self._tokens[-1] != _NOTHING

    def take(
        self,
        base: int,
        offset: int,
        tokens: Sequence[int],
        q: Sequence[Any] = (),
        *,
        ended: bool = False,
    ) -> None:
        """Take a piece that continues what is here, or begins anew; `ended`: there is nothing to come behind it."""
        assert self.continues(base, offset)
        if offset == 0:
            self.drop()
            self._base = base
        self._tokens += tokens
        self._q += q
        if ended:
            self._tokens.append(_NOTHING)

    def drop(self) -> None:
        """Forget them."""
        self._base, self._tokens, self._q, self._judged = -1, [], [], 0

    def follow(self, committed: Sequence[int]) -> Overtaken:
        """Hold those that were overtaken, and were not judged yet, against the transcript; drop all if one is wrong."""
        if self._base < 0:
            return Overtaken(0, missed=False)
        first, wrong = self.judged_to, None
        end = min(len(self._tokens), len(committed) - self._base)
        for number in range(self._judged, end):
            if self._tokens[number] != committed[self._base + number]:
                wrong = self._base + number
                break
        self._judged = max(self._judged, end)
        judged_to = self._base + self._judged if wrong is None else wrong + 1
        self._counted = max(self._counted, judged_to)
        if wrong is not None:
            self.drop()
        missed = wrong is not None and wrong >= first
        return Overtaken(max(0, judged_to - first - missed), missed)

    def beyond(self, length: int, most: int) -> tuple[list[int], list[Any]]:
        """The draft upon a transcript of this length, which they were held against: at most so many tokens."""
        if self._base < 0:
            return [], []
        first = length - self._base
        tokens = self._tokens[first : first + most]
        if tokens and tokens[-1] == _NOTHING:
            tokens.pop()
        return tokens, self._q[first : first + len(tokens)]
