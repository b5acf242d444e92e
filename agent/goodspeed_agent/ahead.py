"""How far an agent drafts on while it waits for a verdict.

Ahead of a draft lie the bonus token and the next draft. They are of use if the whole draft is accepted and the bonus
token is the one that was guessed: under the coupled rule agent and server draw it with the same noise. Then the next
draft costs as much less time as was guessed in advance; else the work, and its energy, were for nothing.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

__all__ = ["Ahead", "AheadMode"]

AheadMode: TypeAlias = Literal["auto", "on", "off"]

_LEAST_HIT_RATE = 0.25
"""Four tokens of work for one that is used: below that `auto` saves the energy."""
_RETRY_AFTER = 16
"""So many drafts later it looks again, with one token."""
_TOSS_UP = 0.5
"""A token that a verdict interrupts saves half its time if the guess was right, and else costs that much."""


class Ahead:
    """Decides how far to draft ahead, by what came of it so far.

    Args:
        mode: `on` and `off` decide once and for all.
        memory: how many drafts one keeps most of its weight.
    """

    def __init__(self, mode: AheadMode = "auto", *, memory: float = 20.0) -> None:
        self.mode = mode
        self.hit_rate = 0.5
        """How often what was drafted ahead stood when the verdict came."""
        self._step = 1.0 - math.exp(-1.0 / memory)
        self._wait_s: float | None = None
        self._token_s: float | None = None
        self._skipped = 0

    def tokens(self, budget: int, room: int) -> int:
        """How many tokens to have guessed beyond a draft that is on its way.

        Args:
            budget: of the draft; the next one is likely to have as much.
            room: how many tokens the text can still grow by behind the draft.
        """
        if self.mode == "off":
            return 0
        if self.mode == "on" or self.hit_rate >= _LEAST_HIT_RATE:
            return min(budget + 1, room)
        self._skipped = (self._skipped + 1) % _RETRY_AFTER
        return min(int(self._skipped == 0), room)

    def starts(self, waited_s: float) -> bool:
        """Whether to start one more token, so long after the draft was sent.

        A verdict that comes meanwhile has its next draft wait for it, so `auto` starts none that is likely to be in
        the way.
        """
        if self.mode == "on" or self._wait_s is None or self._token_s is None or self.hit_rate >= _TOSS_UP:
            return True
        return waited_s + self._token_s <= self._wait_s

    def observe(self, *, stood: bool) -> None:
        """A verdict has come to a draft ahead of which something had been guessed."""
        self.hit_rate += self._step * (stood - self.hit_rate)

    def waited(self, wait_s: float) -> None:
        """A verdict has come, so long after its draft was sent."""
        self._wait_s = self._smoothed(self._wait_s, wait_s)

    def took(self, token_s: float) -> None:
        """A token was guessed ahead, in so long."""
        self._token_s = self._smoothed(self._token_s, token_s)

    def _smoothed(self, before: float | None, seen: float) -> float:
        return seen if before is None else before + self._step * (seen - before)
