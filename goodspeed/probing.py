"""Finding out what a draft would be worth without waiting for it.

A stream that the server decodes alone shows nothing of its drafter. To ask for a draft and wait for it would cost the
stream a whole cycle each time. But the text is fixed by the noise both sides share: a draft that comes late can be
held against what was committed meanwhile, and says just as much. So such streams are asked for a draft on the side
every now and then, nobody waits, and what comes back is a few hits and perhaps a miss. (Under the ratio rule this
cannot be done: the target's distributions at those positions are gone.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from goodspeed.verification import Judgement

__all__ = ["PROBE_EVERY_S", "PROBE_GIVE_UP_S", "PROBE_TOKENS", "Probe"]

PROBE_TOKENS = 4
"""The usual length of a draft on the side; what lies behind the first miss says nothing."""
PROBE_EVERY_S = 0.5
"""Seconds between the answer to one and the next."""
PROBE_GIVE_UP_S = 10.0
"""Seconds after which one that was not answered is forgotten."""


@dataclass(slots=True)
class Probe:
    """A draft on the side, asked for and perhaps here already."""

    base: int
    """The committed length it was asked upon."""
    asked_at: float
    size: int = PROBE_TOKENS
    drafted: Sequence[int] | None = None

    def judge(self, tokens: Sequence[int]) -> Judgement | None:
        """Hold it against the transcript.

        Args:
            tokens: everything that is committed.

        Returns:
            How many tokens in a row were right; None while that is not decided yet.
        """
        if self.drafted is None:
            return None
        committed = tokens[self.base : self.base + len(self.drafted)]
        for accepted, (guess, truth) in enumerate(zip(self.drafted, committed, strict=False)):
            if guess != truth:
                return Judgement(accepted, truth)
        if len(tokens) <= self.base + len(self.drafted):
            return None
        return Judgement(len(self.drafted), tokens[self.base + len(self.drafted)])
