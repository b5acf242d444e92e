"""What has been guessed beyond a stream's committed tokens: what a draft is cut from, and what outlives its verdict.

A draft is the beginning of what is guessed. A verdict that accepts all of it, and appends the very token that was
guessed next, leaves the rest standing as the beginning of the next draft; any other makes the guesses start anew. So
drafting ahead is going on guessing, and nothing else: under the coupled rule a guess is a function of the tokens before
it, of the seed and of the position, and a model's draft is the same whether its tokens were guessed early or late.

An early stop is decided by confidences, and a confidence is known before its token is drawn. So whether a token is
sent does not depend on which token it is: the ratio rule stays lossless (any other stop would bend its output), and
the coupled rule is whatever is sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from goodspeed.messages import DraftEnd
from goodspeed.rules import rule_named
from goodspeed.verification import Rule
from goodspeed_agent.ahead import Ahead
from goodspeed_agent.drafters.interface import DraftSession, Guess
from goodspeed_agent.steps import Steps

__all__ = ["Calibration", "Lookahead", "Wanted"]

_BINS = 10


class Calibration:
    """How often guesses of a given confidence have come true, by tenths of confidence.

    Args:
        prior_weight: how many guesses the belief counts for that a confidence is what it says.
        memory: how many guesses of a tenth one keeps most of its weight.
    """

    def __init__(self, *, prior_weight: float = 4.0, memory: float = 500.0) -> None:
        self._prior_weight = prior_weight
        self._keep = 1.0 - 1.0 / memory
        self.restart()

    def restart(self) -> None:
        """Forget what was seen: the drafter is another."""
        self._trials = [self._prior_weight] * _BINS
        self._hits = [self._prior_weight * (index + 0.5) / _BINS for index in range(_BINS)]

    def chance(self, confidence: float) -> float:
        """That a guess of this confidence comes true, if those before it do."""
        index = _bin(confidence)
        return self._hits[index] / self._trials[index]

    def observe(self, confidence: float, right: bool) -> None:
        """A guess was held against the target's token."""
        index = _bin(confidence)
        self._hits[index] = self._hits[index] * self._keep + right
        self._trials[index] = self._trials[index] * self._keep + 1.0


def _bin(confidence: float) -> int:
    return min(int(confidence * _BINS), _BINS - 1)


class Wanted(NamedTuple):
    """What a server that does not wait asks of a stream."""

    lead: int
    """How far ahead of the transcript to guess, tokens."""
    price: float = 0.0
    """As in `Lookahead.draft`."""
    overtaken: int = 0
    """How many of the guesses will be overtaken, and not verified: it is the ones behind that have a price."""


class Lookahead:
    """The guesses of one stream. Whatever asks the drafter does so in steps; see `Steps`.

    Args:
        session: the drafter's.
        rule: the server's. Under the coupled rule a guess that was not sent is as good a witness as one that was, since
            it is drawn with the noise of the token that is committed in its place. Under the ratio rule it is none.
        calibration: of that drafter; learns from every token that is committed over a guess.
        ahead: is told whether what was guessed beyond a draft stood when its verdict came.
    """

    def __init__(self, session: DraftSession, rule: Rule, calibration: Calibration, ahead: Ahead) -> None:
        self._session = session
        self._coupled = rule_named(rule).shares_noise
        self._calibration = calibration
        self._ahead = ahead
        self._guesses: list[Guess] = []
        self._base = 0
        """The committed length that they build upon."""
        self._sent = 0
        """How many of them the last draft held."""
        self._asked = 0
        """How many of them a server that does not wait has asked for."""
        self._handed = 0
        """How many of them it is sent."""
        self._doomed = 0
        """How many of those it was expected to overtake when they were handed out: it verifies none of them."""
        self._chain = 0
        """Names the guesses that continue each other."""
        self._more: Iterator[Guess] = iter(())
        self._ended = True
        """Whether the drafter has nothing more to say from where it began."""

    @property
    def spare(self) -> int:
        """How many tokens are guessed beyond the last draft, or beyond what the server asked for."""
        return max(0, len(self._guesses) - max(self._sent, self._asked))

    def draft(self, tokens: Sequence[int], budget: int, price: float = 0.0) -> Steps[tuple[list[Guess], DraftEnd]]:
        """Guess what follows the transcript.

        Args:
            tokens: the transcript.
            budget: how many tokens at most.
            price: the draft ends before the first token whose chance to be accepted, all before it included, is lower.
                Under the ratio rule the first token is sent at any price: its fate is all there is to learn from.

        Returns:
            The draft, and what ended it.
        """
        self._follow(tokens)
        self._handed = self._doomed = 0
        kept = len(self._guesses)
        chance, self._sent = 1.0, 0
        while self._sent < budget:
            if self._sent == len(self._guesses) and not (yield from self.extend()):
                if self._sent > kept or not kept:
                    return self._guesses[: self._sent], DraftEnd.NOTHING_TO_SAY
                # What was kept came of a search from further back; from here there may be more to say.
                kept = 0
                self._begin(tokens)
                continue
            chance *= self._calibration.chance(self._guesses[self._sent].confidence)
            if chance < price and (self._coupled or self._sent):
                return self._guesses[: self._sent], DraftEnd.PRICED_OUT
            self._sent += 1
        return self._guesses[: self._sent], DraftEnd.FAR_ENOUGH

    @property
    def handed(self) -> int:
        """How many of the guesses beyond the transcript were handed out by `further`."""
        return self._handed

    def follow(self, tokens: Sequence[int], lead: int, *, anew: bool = False) -> int:
        """Where the server does not wait: hold the guesses against the transcript, and keep those that still stand.

        Args:
            tokens: the transcript.
            lead: how far ahead of it the server asks for guesses.
            anew: whether it holds nothing of what was sent before.

        Returns:
            The name of the chain: while that stays the same, what is handed out continues what was.
        """
        if anew:
            self._handed = self._doomed = 0
        self._follow(tokens)
        self._asked = lead
        return self._chain

    def further(self, wanted: Wanted) -> Steps[Guess | DraftEnd]:
        """Where the server does not wait: hand out the next guess to send, or say why there is none."""
        if self._handed >= wanted.lead:
            return DraftEnd.FAR_ENOUGH
        if self._handed == len(self._guesses) and not (yield from self.extend()):
            return DraftEnd.NOTHING_TO_SAY
        verified = self._guesses[wanted.overtaken : self._handed + 1]
        chance = math.prod(self._calibration.chance(guess.confidence) for guess in verified)
        if chance < wanted.price and (self._coupled or len(verified) > 1):
            return DraftEnd.PRICED_OUT
        self._handed += 1
        if not verified:
            self._doomed = self._handed
        return self._guesses[self._handed - 1]

    def extend(self) -> Steps[bool]:
        """Guess one more token; False if the drafter has nothing more to say."""
        yield self._session
        guess = next(self._more, None)
        if guess is None:
            self._ended = True
            return False
        self._guesses.append(guess)
        return True

    def _begin(self, tokens: Sequence[int]) -> None:
        """Let the drafter go on from the transcript and what is guessed already."""
        text = [*tokens, *(guess.token for guess in self._guesses)]
        self._more, self._ended = self._session.guesses(text), False
        self._chain += 1

    def _follow(self, tokens: Sequence[int]) -> None:
        """Hold the guesses against the tokens that were committed meanwhile, and keep those that still stand."""
        committed = tokens[self._base :]
        self._base = len(tokens)
        right = self._judge(committed)
        # A stream that the server decoded alone for a while has left everything behind, whatever it was worth.
        if 0 < len(committed) <= max(self._sent, self._asked) + 1 and self.spare:
            self._ahead.observe(stood=right)
        self._sent = self._asked = 0
        if right and not self._ended:
            del self._guesses[: len(committed)]
            # What the server has decoded itself is not continued by what comes behind it.
            self._chain += self._handed < len(committed)
            self._handed = max(0, self._handed - len(committed))
            self._doomed = max(0, self._doomed - len(committed))
        else:
            self._guesses, self._handed, self._doomed = [], 0, 0
            self._begin(tokens)

    def _judge(self, committed: Sequence[int]) -> bool:
        """Learn from what became of the guesses; says whether all that was committed had been guessed."""
        verified = range(self._doomed, max(self._sent, self._handed))
        for number, (guess, token) in enumerate(zip(self._guesses, committed, strict=False)):
            if self._coupled or number in verified:
                self._calibration.observe(guess.confidence, guess.token == token)
            if guess.token != token:
                return False
        return len(committed) <= len(self._guesses)
