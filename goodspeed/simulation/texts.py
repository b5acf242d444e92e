"""What users ask for: when, behind which prompts, and for how long."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

__all__ = ["Asking", "Length", "Texts", "Written"]

Length: TypeAlias = Callable[[np.random.Generator], int]
"""Draws a number of tokens."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What one agent's user asks for, one text at a time; what is asked for meanwhile waits at the agent."""

    prompt_tokens: Length
    new_tokens: Length
    rate: Callable[[float], float] | None = None
    """Texts a second, at a time: a Poisson process. None is a closed loop: the next when the last is there."""
    peak_rate: float = 0.0
    """The most that `rate` ever is."""
    think_s: float = 0.0
    """In a closed loop: the mean of an exponential pause between texts."""


@dataclass(frozen=True, slots=True)
class Written:
    """A text that was asked for and is complete; seconds, on the agent's side."""

    agent: int
    asked_at: float
    first_at: float
    """When the first token came."""
    done_at: float
    tokens: int


class Asking:
    """One user at it.

    Args:
        texts: what is asked for.
        random: this user's own, so that what is asked for is the same whatever becomes of it.
    """

    def __init__(self, texts: Texts, random: np.random.Generator) -> None:
        self._texts = texts
        self._random = random

    def lengths(self) -> tuple[int, int]:
        """Of the next text: tokens of its prompt, and of the text."""
        return self._texts.prompt_tokens(self._random), max(1, self._texts.new_tokens(self._random))

    @property
    def waits(self) -> bool:
        """Whether it is a closed loop."""
        return self._texts.rate is None

    def first_at(self, now: float) -> float:
        """When the first text is asked for, by a user who has just come."""
        return now if self.waits else self.next_at(now)

    def next_at(self, now: float) -> float:
        """When the next text is asked for, behind the last arrival, or in a closed loop behind the last text's end."""
        rate, peak = self._texts.rate, self._texts.peak_rate
        if rate is None:
            return now + self._texts.think_s * float(self._random.standard_exponential())
        # Thinning: arrivals at the peak rate, of which so many stay as the rate is a share of it.
        while peak > 0:
            now += float(self._random.standard_exponential()) / peak
            if self._random.random() * peak <= rate(now):
                return now
        return math.inf
