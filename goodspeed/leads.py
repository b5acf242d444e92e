"""How far an agent has to guess ahead where the server does not wait for it, and when it is asked only to be known.

While guesses are on their way the server decodes on, a token a pass at least, and overtakes the first of them. What
lies beyond is of use if all that were overtaken are right. Whoever guesses more slowly than the server decodes, or is
so far away that so many guesses in a row are hardly ever right, need not guess at all.

Nothing is learnt of an agent that does not guess. But the text is fixed by the noise both sides share, so a guess that
comes late can be held against what was committed meanwhile, and says just as much. So such agents are asked for a few
guesses every now and then, and nobody waits. Under the ratio rule the target's distributions at those positions are
gone, and a late guess does not say how likely it was to be accepted; but whether it is the very token that was
committed is what decides about those behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from goodspeed.timing import Pace

__all__ = ["PROBE_EVERY_S", "PROBE_GIVE_UP_S", "PROBE_TOKENS", "Probing", "overtaken"]

PROBE_TOKENS = 4
"""The length of a draft that is asked for to see what it is worth."""
PROBE_EVERY_S = 0.5
"""Seconds between what came of one and the next."""
PROBE_GIVE_UP_S = 10.0
"""Seconds after which one that was not answered is forgotten."""
_LEAST_CHANCE = 0.05
"""That anything of a chain of guesses is of use; below that it is not worth the agent's energy."""


def overtaken(pace: Pace, pass_s: float, chance: float) -> int | None:
    """How many guesses the server overtakes before the first that is of use; None if none is ever likely to be.

    Guess `k` is here after `turnaround + k draft` seconds. Guess `m + 1` is in time for the pass that follows `m`
    plain ones if it is here after no more than `m` passes.

    Args:
        pace: the agent's.
        pass_s: how long a pass takes.
        chance: that a guess is right, if all before it are.
    """
    if pace.draft_s >= pass_s:
        return None
    count = math.ceil((pace.turnaround_s + pace.draft_s) / (pass_s - pace.draft_s))
    return count if chance ** (count + 1) >= _LEAST_CHANCE else None


@dataclass(slots=True)
class Probing:
    """When one stream's agent is asked for guesses that no pass will verify."""

    next_at: float = 0.0
    since: float | None = None
    """When it was asked, while it has not answered."""

    def wanted(self, now: float) -> bool:
        """Whether guesses are wanted now, of an agent that is not asked for any."""
        if self.since is not None and now - self.since > PROBE_GIVE_UP_S:
            self.answered(now)
        if self.since is None and now >= self.next_at:
            self.since = now
        return self.since is not None

    def answered(self, now: float) -> None:
        """Something was learnt."""
        if self.since is not None:
            self.since, self.next_at = None, now + PROBE_EVERY_S
