"""Who is in a world, as the server sees them: an agent over all its texts, and the text that is being written."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from goodspeed.estimation import PRIOR_ALPHA, Goodput, HitOrMiss, RatioMean
from goodspeed.leads import Probing
from goodspeed.simulation.guessing import Guessing
from goodspeed.simulation.scenery import Agent
from goodspeed.simulation.texts import Asking, Reading, Script, User
from goodspeed.timing import Pace

__all__ = ["Box", "Stream", "user_of"]


@dataclass(slots=True, eq=False)
class Box:
    """An agent, over all its texts."""

    number: int
    agent: Agent
    asking: User | None
    prior_alpha: float = PRIOR_ALPHA
    pace: Pace = field(default_factory=Pace)
    asked: deque[float] = field(default_factory=deque)
    """When the texts were asked for that are not complete yet, the one that is being written first."""
    stream: Stream | None = None
    gone: bool = False


@dataclass(slots=True, eq=False)
class Stream:
    """A text that is being written, and what the server knows of it."""

    box: Box
    agent: Agent
    estimator: HitOrMiss | RatioMean
    pace: Pace
    rate: Goodput
    opened_at: float
    per_round: float = 1.0
    budget: int = 0
    drafted: int = 0
    """How much of it its agent drafts; behind the barrier."""
    arrived_at: float = 0.0
    head_start_s: float = 0.0
    """For how long its agent has drafted ahead on a guess that came true; behind the barrier."""
    computed_s: float = 0.0
    guessing: Guessing = field(default_factory=Guessing)
    """In rolling rounds."""
    prompt_left: int = 0
    """Tokens of the prompt that the engine has still to see."""
    left: float = math.inf
    """Tokens that are still to be written."""
    runs: NDArray[np.int64] | None = None
    """How many guesses in a row are right from each of its tokens on; None leaves it to chance."""
    longest: NDArray[np.int64] | None = None
    """How much its agent has to say at most from each of its tokens on; None for as much as is wanted."""
    written: int = 0
    first_at: float = 0.0
    probing: Probing = field(default_factory=Probing)

    def said(self, wanted: int) -> int:
        """How many of so many tokens its agent has to say here."""
        return wanted if self.longest is None else min(wanted, int(self.longest[self.written]))


def user_of(agent: Agent, random: np.random.Generator) -> User | None:
    """Who asks an agent for texts; None if it has one without an end."""
    if agent.texts is None:
        return None
    return Reading(agent.texts) if isinstance(agent.texts, Script) else Asking(agent.texts, random)
