"""What a world is made of: edge boxes with their links, and the server's engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from goodspeed.simulation.texts import Script, Texts
from goodspeed.timing import PassSample

__all__ = ["Agent", "Engine"]


@dataclass(frozen=True, slots=True)
class Agent:
    """One edge box with one stream."""

    draft_s: float
    """Seconds for a drafted token."""
    latency_s: float
    """One way through the network, seconds."""
    alpha: float | Callable[[float], float]
    """How often a drafted token is accepted; may change with time."""
    jitter_s: float = 0.0
    """Mean of an exponential addition to every latency."""
    weight: float | Callable[[float], float] = 1.0
    """May change with time."""
    max_draft: int = 16
    undrafted: Callable[[float], bool] | None = None
    """Whether the server asks for no drafts of it, at a time."""
    joins_at: float = 0.0
    leaves_at: float = math.inf
    drafts_ahead: bool = False
    """Behind the barrier; in rolling rounds a box guesses on anyway, and only its guesses' arrival counts."""
    texts: Texts | Script | None = None
    """None: one text without an end, and without a prompt."""
    ways_s: tuple[float, ...] = ()
    """Both ways together, as they were measured, in order: drawn from instead of twice the latency and its jitter."""

    def alpha_at(self, now: float) -> float:
        """At a time."""
        return self.alpha(now) if callable(self.alpha) else self.alpha

    def weight_at(self, now: float) -> float:
        """At a time."""
        return self.weight(now) if callable(self.weight) else self.weight

    def max_draft_at(self, now: float) -> int:
        """At a time."""
        return 0 if self.undrafted is not None and self.undrafted(now) else self.max_draft

    def away_s(self, jitter: float) -> float:
        """Both ways together.

        Args:
            jitter: the sum of two standard exponentials.
        """
        if not self.ways_s:
            return 2 * self.latency_s + jitter * self.jitter_s
        # Of such a sum, the share of all that are smaller: uniform, so that it picks one of those measured.
        share = 1.0 - (1.0 + jitter) * math.exp(-jitter)
        return self.ways_s[min(int(share * len(self.ways_s)), len(self.ways_s) - 1)]


@dataclass(frozen=True, slots=True)
class Engine:
    """How long passes really take."""

    fixed_s: float
    row_s: float
    token_s: float
    noise: float = 0.0
    """Standard deviation of the logarithm."""
    between_s: float = 0.0
    """Between a pass and the next, for planning and committing; no part of what is measured of passes."""
    drafter: Engine | None = None
    """A draft model on the same machine, for co-located speculation: all streams of a pass draft in one batch before
    it, a token a step, and the engine is busy meanwhile."""

    def seconds(self, rows: int, tokens: int) -> float:
        """Of a pass, without noise and without drafting."""
        return self.fixed_s + rows * self.row_s + tokens * self.token_s

    def drafting_s(self, budgets: Sequence[int]) -> float:
        """Of drafting so many tokens a stream; a step carries the streams that draft that far, a token each."""
        if self.drafter is None:
            return 0.0
        steps = np.sort(budgets)[::-1]
        return sum(self.drafter.seconds(rows, rows) for rows in (int((steps > k).sum()) for k in range(steps[0])))

    def samples(self) -> list[PassSample]:
        """What a calibration at start-up would have measured."""
        shapes = [(rows, rows * each) for rows in (1, 2, 4, 8, 16, 32) for each in (1, 5)]
        return [PassSample(rows, tokens, self.seconds(rows, tokens)) for rows, tokens in shapes]
