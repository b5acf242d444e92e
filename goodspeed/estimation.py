"""What is known of a stream: its acceptance rate, and its smoothed goodput.

The ratio rule shows `min(1, p/q)` at every drafted position, so equation (3) of the paper applies as it stands. The
coupled rule shows less: hit or miss, up to the first miss. Both estimators forget while nothing is observed: with a
budget of 0 they drift back to the prior and their uncertainty grows, and `optimistic` (what the scheduler is given)
rises until drafting is tried again. That is what keeps an estimate from locking in.
"""

from __future__ import annotations

import math
from typing import Protocol

from goodspeed.verification import Judgement

__all__ = [
    "ALPHA_MAX",
    "PRIOR_ALPHA",
    "AcceptanceEstimator",
    "HitOrMiss",
    "RatioMean",
    "expected_tokens",
    "smooth_goodput",
]

ALPHA_MAX = 0.995
"""The theorem asks for alpha_hat <= alpha_max < 1."""
PRIOR_ALPHA = 0.6
"""What a drafter nobody has seen is given credit for."""


def expected_tokens(alpha: float, budget: int) -> float:
    """Expected tokens of one round, `mu(alpha, S) = (1 - alpha^(S+1)) / (1 - alpha)`."""
    return (1.0 - alpha ** (budget + 1)) / (1.0 - alpha) if alpha < 1.0 else budget + 1.0


def smooth_goodput(smoothed: float, tokens: int, beta: float) -> float:
    """Equation (4): `X <- (1 - beta) X + beta x`, in tokens per round."""
    return (1.0 - beta) * smoothed + beta * tokens


class AcceptanceEstimator(Protocol):
    """Turns judgements into an acceptance rate."""

    @property
    def alpha(self) -> float:
        """The best guess at the acceptance rate."""

    @property
    def optimistic(self) -> float:
        """The guess plus one standard error: what is worth finding out is worth a little budget."""

    def observe(self, drafted: int, judgement: Judgement) -> None:
        """Learn from one round; `drafted` may be 0, which teaches nothing and lets the estimate age."""


class HitOrMiss:
    """For the coupled rule: discounted counts of hits and misses, a Beta posterior around the prior.

    A round with S drafted tokens shows `accepted` hits and, where `accepted < S`, one miss; what lies behind the
    first miss was drafted on a wrong prefix and shows nothing. Under a constant rate this is the maximum-likelihood
    estimate of a geometric distribution censored at S.

    Args:
        prior: the rate before anything is seen.
        prior_weight: how many observations the prior counts for.
        memory: how many rounds an observation keeps most of its weight.
    """

    def __init__(self, prior: float = PRIOR_ALPHA, *, prior_weight: float = 2.0, memory: float = 40.0) -> None:
        self._prior_hits = prior * prior_weight
        self._prior_weight = prior_weight
        self._keep = math.exp(-1.0 / memory)
        self._hits = 0.0
        self._trials = 0.0

    @property
    def alpha(self) -> float:
        """The posterior mean."""
        return min((self._prior_hits + self._hits) / (self._prior_weight + self._trials), ALPHA_MAX)

    @property
    def optimistic(self) -> float:
        """The posterior mean plus its standard deviation."""
        mean = self.alpha
        spread = math.sqrt(mean * (1.0 - mean) / (self._prior_weight + self._trials + 1.0))
        return min(mean + spread, ALPHA_MAX)

    def observe(self, drafted: int, judgement: Judgement) -> None:
        """Count the hits, and the miss that ended them."""
        self._hits = self._keep * self._hits + judgement.accepted
        self._trials = self._keep * self._trials + judgement.accepted + (judgement.accepted < drafted)


class RatioMean:
    """For the ratio rule: equation (3), `alpha <- (1 - eta) alpha + eta mean_j min(1, p_j/q_j)`.

    With nothing drafted the equation divides by zero; here the estimate then moves towards the prior instead, and the
    uncertainty towards that of the prior, at the same pace.

    Args:
        prior: the rate before anything is seen.
        eta: the step.
        idle_eta: the step towards the prior in a round without a draft.
    """

    def __init__(self, prior: float = PRIOR_ALPHA, *, eta: float = 0.1, idle_eta: float = 0.02) -> None:
        self._prior = prior
        self._eta = eta
        self._idle_eta = idle_eta
        self._alpha = prior
        self._uncertainty = 1.0

    @property
    def alpha(self) -> float:
        """The smoothed mean."""
        return min(self._alpha, ALPHA_MAX)

    @property
    def optimistic(self) -> float:
        """The smoothed mean plus what the lack of observations leaves open."""
        return min(self._alpha + self._uncertainty * math.sqrt(self._alpha * (1.0 - self._alpha) / 3.0), ALPHA_MAX)

    def observe(self, drafted: int, judgement: Judgement) -> None:
        """Take one step."""
        if drafted and judgement.ratios:
            mean = sum(judgement.ratios) / len(judgement.ratios)
            self._alpha += self._eta * (mean - self._alpha)
            self._uncertainty *= 1.0 - self._eta
        else:
            self._alpha += self._idle_eta * (self._prior - self._alpha)
            self._uncertainty += self._idle_eta * (1.0 - self._uncertainty)
