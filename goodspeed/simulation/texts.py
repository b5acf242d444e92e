"""What users ask for: when, behind which prompts, and for how long."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Asking", "Length", "Reading", "Script", "Span", "Text", "Texts", "User", "Written"]

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
class Text:
    """One text, laid down beforehand."""

    asked_at: float
    """When it is asked for, seconds."""
    pause_s: float
    """Between the end of the text before it and asking for it; of the first, since the beginning."""
    prompt_tokens: int
    new_tokens: int
    hits: NDArray[np.bool_]
    """Which of its tokens its agent guesses right, given those before, [new_tokens]."""
    longest: NDArray[np.int64] | None = None
    """How much its agent has to say at most from each of its tokens on, [new_tokens]; None where that is no matter."""


@dataclass(frozen=True, slots=True)
class Script:
    """Texts in the order in which they are asked for, laid down beforehand."""

    texts: Sequence[Text]
    closed_loop: bool = False
    """Whether they are asked for behind each other's ends, rather than at their times."""


@dataclass(frozen=True, slots=True)
class Span:
    """For how long the server had a text of an agent's to write, seconds."""

    agent: int
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Written:
    """A text that was asked for and is complete; seconds, on the agent's side."""

    agent: int
    asked_at: float
    first_at: float
    """When the first token came."""
    done_at: float
    tokens: int


class User(Protocol):
    """Who asks for texts."""

    @property
    def waits(self) -> bool:
        """Whether it is a closed loop."""

    def lengths(self) -> tuple[int, int]:
        """Of the next text: tokens of its prompt, and of the text."""

    def runs(self) -> NDArray[np.int64] | None:
        """Of that text: how many guesses in a row are right from each token on; None leaves it to chance."""

    def longest(self) -> NDArray[np.int64] | None:
        """Of that text: how much its agent has to say at most from each token on; None for as much as is wanted."""

    def first_at(self, now: float) -> float:
        """When the first text is asked for, by a user who has just come."""

    def next_at(self, now: float) -> float:
        """When the next text is asked for, behind the last arrival, or in a closed loop behind the last text's end."""


class Asking:
    """One user at it, by chance.

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

    def runs(self) -> NDArray[np.int64] | None:
        """By chance."""
        return None

    def longest(self) -> NDArray[np.int64] | None:
        """As much as is wanted."""
        return None

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


class Reading:
    """One user at it, by a script.

    Args:
        script: what is asked for.
    """

    def __init__(self, script: Script) -> None:
        self._texts = script.texts
        self.waits = script.closed_loop
        self._asked = self._opened = 0

    def lengths(self) -> tuple[int, int]:
        """Of the next text: tokens of its prompt, and of the text."""
        text = self._texts[self._opened]
        self._opened += 1
        return text.prompt_tokens, text.new_tokens

    def runs(self) -> NDArray[np.int64]:
        """Of that text: how many guesses in a row are right from each token on."""
        hits = self._texts[self._opened - 1].hits
        places = np.arange(len(hits))
        # The first miss at or behind each token: the least of those places, looked at from the end.
        miss_at = np.minimum.accumulate(np.where(hits, len(hits), places)[::-1])[::-1]
        return np.asarray(miss_at - places)

    def longest(self) -> NDArray[np.int64] | None:
        """Of that text: how much its agent has to say at most from each token on; None for as much as is wanted."""
        return self._texts[self._opened - 1].longest

    def first_at(self, now: float) -> float:
        """When the first text is asked for."""
        return self._next(now)

    def next_at(self, now: float) -> float:
        """When the next is, behind the last arrival, or in a closed loop behind the last text's end."""
        return self._next(now)

    def _next(self, now: float) -> float:
        if self._asked == len(self._texts):
            return math.inf
        text = self._texts[self._asked]
        self._asked += 1
        return now + text.pause_s if self.waits else max(now, text.asked_at)
