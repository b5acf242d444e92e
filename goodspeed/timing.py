"""What takes how long: a verification pass, and an agent's way from one verdict to its next draft.

Both are learnt from what was measured, and both answer questions about what has not happened yet: a pass with other
rows and tokens, a draft of another length.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EngineLoad", "EngineMeter", "Pace", "PassCost", "PassSample"]

Floats = NDArray[np.float64]

_SUPPORTS = np.array(list(itertools.product((False, True), repeat=3)))[1:]  # [supports, unknowns]
_RIDGE = 1e-10
"""Decides between costs that explain the passes equally well, where all passes were alike."""


@dataclass(frozen=True, slots=True)
class PassSample:
    """One measured pass."""

    rows: int
    tokens: int
    """New tokens of all rows together, `sum(S_i + 1)`."""
    seconds: float


class PassCost:
    """How long a pass takes: `T_v(rows, tokens) = fixed + rows * row + tokens * token`, none of them negative.

    Reading the weights is the fixed part, attention over a row's cache and its bookkeeping the second, arithmetic the
    third. Fitted by least squares on relative errors, since a pass of two rows matters as much as one of sixty. The
    samples of start-up, which cover the whole range, are never forgotten: what comes later may lie at one point for
    hours, where nothing can be learnt about slopes. What can be learnt there, that the machine is slower or faster than
    it was, is followed by a factor on the whole.

    Args:
        samples: passes measured at start-up.
        prior_weight: how many later passes those count for, together.
        memory: how many passes a later one keeps most of its weight.
        factor_memory: the same, for the factor.
    """

    def __init__(
        self,
        samples: Iterable[PassSample],
        *,
        prior_weight: float = 30.0,
        memory: float = 300.0,
        factor_memory: float = 20.0,
    ) -> None:
        measured = list(samples)
        assert measured, "a cost model starts from measurements"
        self._keep = math.exp(-1.0 / memory)
        self._factor_step = 1.0 - math.exp(-1.0 / factor_memory)
        self._log_factor = 0.0
        self._observed = 0
        self._prior = _Moments()
        for sample in measured:
            self._prior.add(sample, prior_weight / len(measured))
        self._seen = _Moments()
        self._coefficients: Floats | None = None

    def observe(self, sample: PassSample) -> None:
        """Learn from one more pass; one that took no time at all teaches nothing."""
        if sample.seconds <= 0 or sample.tokens <= 0:
            return
        shape_s = float(self._shape @ (1.0, sample.rows, sample.tokens))
        if shape_s > 0:
            # The first are averaged evenly. While the factor is not known yet, the shape would take its part.
            self._observed += 1
            step = max(self._factor_step, 1.0 / self._observed)
            self._log_factor += step * (math.log(sample.seconds / shape_s) - self._log_factor)
        factor = math.exp(self._log_factor)
        self._seen.scale(self._keep)
        self._seen.add(PassSample(sample.rows, sample.tokens, sample.seconds / factor), 1.0)
        self._coefficients = None

    @property
    def fixed_s(self) -> float:
        """Seconds of an empty pass."""
        return math.exp(self._log_factor) * float(self._shape[0])

    @property
    def row_s(self) -> float:
        """Seconds one more row adds."""
        return math.exp(self._log_factor) * float(self._shape[1])

    @property
    def token_s(self) -> float:
        """Seconds one more token adds."""
        return math.exp(self._log_factor) * float(self._shape[2])

    def seconds(self, rows: float, tokens: float) -> float:
        """Of a pass, expected."""
        return math.exp(self._log_factor) * float(self._shape @ (1.0, rows, tokens))

    @property
    def _shape(self) -> Floats:
        if self._coefficients is None:
            self._coefficients = _nonnegative_solution(
                self._prior.gram + self._seen.gram, self._prior.moment + self._seen.moment
            )
        return self._coefficients


class _Moments:
    """The normal equations of a weighted least-squares fit on relative errors."""

    def __init__(self) -> None:
        self.gram = np.zeros((3, 3))
        self.moment = np.zeros(3)

    def add(self, sample: PassSample, weight: float) -> None:
        features = np.array([1.0, sample.rows, sample.tokens]) / sample.seconds
        self.gram += weight * np.outer(features, features)
        self.moment += weight * features

    def scale(self, factor: float) -> None:
        self.gram *= factor
        self.moment *= factor


def _nonnegative_solution(gram: Floats, moment: Floats) -> Floats:
    """Minimise `x' gram x / 2 - moment' x` over `x >= 0`; with three unknowns, every support is tried, all at once."""
    scale = np.sqrt(np.diag(gram))
    unit = gram / np.outer(scale, scale) + _RIDGE * np.eye(len(scale))
    scaled = moment / scale
    systems = np.where(_SUPPORTS[:, :, None] & _SUPPORTS[:, None, :], unit, np.eye(len(scale)))
    tried = np.linalg.solve(systems, np.where(_SUPPORTS, scaled, 0.0)[..., None])[..., 0]  # [supports, unknowns]
    loss = ((tried @ unit) * tried).sum(-1) / 2 - tried @ scaled
    best: Floats = tried[np.where((tried < 0).any(-1), np.inf, loss).argmin()] / scale
    return best


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How the engine is doing, smoothed over the last passes."""

    cost: PassCost
    pass_s: float
    """How long a pass takes at present, seconds."""
    rows: float = 1.0
    """How many rows a pass has."""


class EngineMeter:
    """Watches the engine and says how it is doing.

    Args:
        cost: the cost model, which learns from every pass.
        memory: how many passes one keeps most of its weight.
    """

    def __init__(self, cost: PassCost, *, memory: float = 20.0) -> None:
        self._cost = cost
        self._step = 1.0 - math.exp(-1.0 / memory)
        self._seen = 0
        self._pass_s = cost.seconds(1, 1)
        self._rows = 1.0
        self.load = self._at_present()
        """At present."""

    def observe(self, sample: PassSample) -> None:
        """Learn from one pass."""
        self._cost.observe(sample)
        # The first passes are averaged evenly: what stands there before is nobody's measurement.
        self._seen += 1
        step = max(self._step, 1.0 / self._seen)
        self._pass_s += step * (sample.seconds - self._pass_s)
        self._rows += step * (sample.rows - self._rows)
        self.load = self._at_present()

    def _at_present(self) -> EngineLoad:
        return EngineLoad(self._cost, self._pass_s, self._rows)


class Pace:
    """How fast one agent is: seconds a drafted token, and everything else between a verdict and the next draft.

    An agent says with each draft how long it computed. It cannot gain by a lie: what it claims is held between
    nothing and what the server itself saw pass, so that only the split between the two parts is its own to tell.

    Args:
        draft_s: seconds a token, before anything is seen.
        turnaround_s: round trip and waiting, before anything is seen.
        memory: how many drafts one keeps most of its weight.
    """

    def __init__(self, draft_s: float = 0.01, turnaround_s: float = 0.05, *, memory: float = 10.0) -> None:
        self._step = 1.0 - math.exp(-1.0 / memory)
        self._seen = 0
        self.draft_s = draft_s
        self.turnaround_s = turnaround_s

    def copy(self) -> Pace:
        """Another that starts where this one is."""
        return copy.copy(self)

    def observe(self, drafted: int, elapsed_s: float, computed_s: float) -> None:
        """Learn from one draft.

        Args:
            drafted: its length; an empty one teaches only about the turnaround.
            elapsed_s: from the verdict to its arrival, as the server saw it.
            computed_s: how long the agent says it drafted.
        """
        computed_s = min(max(computed_s, 0.0), elapsed_s) if drafted else 0.0
        # The first drafts are averaged evenly: the prior is nobody's measurement.
        self._seen += 1
        step = max(self._step, 1.0 / self._seen)
        if drafted:
            self.draft_s += step * (computed_s / drafted - self.draft_s)
        self.turnaround_s += step * (elapsed_s - computed_s - self.turnaround_s)

    def observe_more(self, drafted: int, elapsed_s: float, computed_s: float) -> None:
        """Learn from a further piece of a draft, so long after the one before; it says nothing about the turnaround."""
        self.draft_s += self._step * (min(max(computed_s, 0.0), elapsed_s) / drafted - self.draft_s)
