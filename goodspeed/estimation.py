"""What is known of a stream: its acceptance rate, and its smoothed goodput.

The ratio rule shows what `min(1, p/q)` is on average at every drafted position, so equation (3) of the paper applies;
a server hardens it against agents that choose what they send. The coupled rule shows less: hit or miss, up to the first
miss.

No estimate locks in. A round with a budget of 0 shows nothing, and equation (3) would keep the rate it has for ever.
Here `optimistic`, which is what the scheduler is given, rises with every such round and reaches `ALPHA_MAX` after
`patience` of them, so that drafting is tried again unless no rate at all would earn a token; and what is seen then
weighs the more, the longer nothing was seen. A rising guess buys its first token as soon as it is worth the price of
capacity, so a probe costs about one draft token, and hopeless drafters are probed the less the dearer capacity is.
"""

from __future__ import annotations

import math
from typing import Protocol

from goodspeed.verification import Judgement

__all__ = [
    "ALPHA_MAX",
    "PATIENCE",
    "PRIOR_ALPHA",
    "AcceptanceEstimator",
    "Goodput",
    "HitOrMiss",
    "RatioMean",
    "ReachedMean",
    "expected_tokens",
    "smooth_goodput",
]

ALPHA_MAX = 0.995
"""The theorem asks for alpha_hat <= alpha_max < 1."""
PRIOR_ALPHA = 0.6
"""What a drafter nobody has seen is given credit for."""
PATIENCE = 50
"""Rounds without a budget after which nothing is taken for granted."""


def expected_tokens(alpha: float, budget: int) -> float:
    """Expected tokens of one round, `mu(alpha, S) = (1 - alpha^(S+1)) / (1 - alpha)`."""
    return (1.0 - alpha ** (budget + 1)) / (1.0 - alpha) if alpha < 1.0 else budget + 1.0


def smooth_goodput(smoothed: float, tokens: float, beta: float) -> float:
    """Equation (4): `X <- (1 - beta) X + beta x`, in tokens per round."""
    return (1.0 - beta) * smoothed + beta * tokens


class Goodput:
    """Tokens per second, smoothed in time: `X <- exp(-dt / tau) X + (1 - exp(-dt / tau)) tokens / dt`.

    The sums of tokens and of seconds are discounted apart, so that the beginning is a plain mean and no guess.

    Args:
        now: when the stream began, seconds.
        prior: tokens per second, before anything is seen.
        tau_s: how long a token keeps most of its weight, seconds.
        prior_s: how many seconds the prior counts for.
    """

    def __init__(self, now: float, prior: float, *, tau_s: float = 5.0, prior_s: float = 0.2) -> None:
        self._tau_s = tau_s
        self._tokens = prior * prior_s
        self._seconds = prior_s
        self._at = now

    @property
    def rate(self) -> float:
        """`X`, tokens per second."""
        return self._tokens / self._seconds

    def observe(self, tokens: int, now: float) -> None:
        """Tokens have come; since the last call nothing did."""
        keep = math.exp(-max(now - self._at, 0.0) / self._tau_s)
        self._tokens = self._tokens * keep + tokens
        self._seconds = self._seconds * keep + self._tau_s * (1.0 - keep)
        self._at = now


class AcceptanceEstimator(Protocol):
    """Turns judgements into an acceptance rate."""

    @property
    def alpha(self) -> float:
        """The best guess at the acceptance rate."""

    @property
    def optimistic(self) -> float:
        """The highest rate that is still plausible: what is worth finding out is worth a little budget."""

    def observe(self, budget: int, judgement: Judgement) -> None:
        """Learn from one round.

        Args:
            budget: how many tokens the agent was to draft: what it was granted, or what it drafted until the price
                ended its draft. 0 teaches nothing. A draft that is shorter, or unusable, counts as a miss behind its
                last token: an agent with nothing to say makes no use of a budget.
            judgement: what became of the draft.
        """


class HitOrMiss:
    """For the coupled rule: discounted counts of hits and trials, started off by a prior.

    A round with S drafted tokens shows `accepted` hits and, where `accepted < S`, one miss; what lies behind the
    first miss was drafted on a wrong prefix and shows nothing. Under a constant rate this is the maximum-likelihood
    estimate of a geometric distribution censored at S.

    Args:
        prior: the rate before anything is seen.
        prior_weight: how many observations the prior counts for.
        memory: how many rounds an observation keeps most of its weight.
        patience: how many rounds without a budget make `optimistic` rise to `ALPHA_MAX`.
    """

    _LEAST_TRIALS = 0.5
    """Forgetting ends here, so that there is always something to guess from."""

    def __init__(
        self,
        prior: float = PRIOR_ALPHA,
        *,
        prior_weight: float = 2.0,
        memory: float = 40.0,
        patience: int = PATIENCE,
    ) -> None:
        self._hits = prior * prior_weight
        self._trials = prior_weight
        self._keep = math.exp(-1.0 / memory)
        self._patience = patience
        self._idle = 0

    @property
    def alpha(self) -> float:
        """The discounted share of hits."""
        return min(self._hits / self._trials, ALPHA_MAX)

    @property
    def optimistic(self) -> float:
        """One standard deviation above `alpha`, and higher with every round that showed nothing."""
        spread = math.sqrt(self.alpha * (1.0 - self.alpha) / (self._trials + 1.0))
        return _rise(self.alpha + spread, self._idle / self._patience)

    def observe(self, budget: int, judgement: Judgement) -> None:
        """Count the hits, and the miss that ended them."""
        if self._trials > self._LEAST_TRIALS:
            self._hits *= self._keep
            self._trials *= self._keep
        self._hits += judgement.accepted
        self._trials += judgement.accepted + (judgement.accepted < budget)
        self._idle = 0 if budget else self._idle + 1


class RatioMean:
    """For the ratio rule: equation (3), `alpha <- (1 - eta) alpha + eta mean_j min(1, p_j/q_j)`, as the paper has it.

    Without a draft the equation divides by zero; here such a round leaves the estimate alone, and makes the next
    step longer than `eta`: after `patience` of them, what is seen replaces what was believed.

    Args:
        prior: the rate before anything is seen.
        eta: the step.
        patience: how many rounds without a budget make `optimistic` rise to `ALPHA_MAX`.
    """

    def __init__(self, prior: float = PRIOR_ALPHA, *, eta: float = 0.1, patience: int = PATIENCE) -> None:
        self._alpha = prior
        self._eta = eta
        self._patience = patience
        self._idle = 0

    @property
    def alpha(self) -> float:
        """The smoothed mean."""
        return min(self._alpha, ALPHA_MAX)

    @property
    def optimistic(self) -> float:
        """The smoothed mean, and higher with every round that showed nothing."""
        return _rise(self.alpha, self._idle / self._patience)

    def observe(self, budget: int, judgement: Judgement) -> None:
        """Take one step."""
        if budget == 0:
            self._idle += 1
            return
        ratios, budget = _ratios(judgement, budget)
        mean = sum(ratios) / (len(ratios) + (len(ratios) < budget))
        self._alpha += self._step() * (mean - self._alpha)
        self._idle = 0

    def _step(self) -> float:
        return self._eta + (1.0 - self._eta) * min(1.0, self._idle / self._patience)


class ReachedMean(RatioMean):
    """Equation (3) among agents that may lie: what a server goes by.

    An agent chooses its tokens, so what it is credited for must not depend on a choice. In place of `min(1, p/q)` of
    the chosen token stands its mean over `q` (`Judgement.ratios`). And in place of all drafted positions stand those
    that were reached, the first rejection included: behind a token that was meant to be rejected anything can be
    drafted, a word over and over, say, of which the target is as sure as the draft. Where all draws are honest and all
    positions alike, neither changes the mean. Sums of ratios and of positions are smoothed apart, since a round that
    was cut short by a bad position shows fewer: a mean of means would count that position double. The prior counts for
    as many positions as the first round shows.
    """

    _positions = 0.0
    """In a round, smoothed; 0 before the first."""

    def observe(self, budget: int, judgement: Judgement) -> None:
        """Take one step."""
        if budget == 0:
            self._idle += 1
            return
        ratios, budget = _ratios(judgement, budget)
        reached = ratios[: judgement.accepted + 1]
        positions = len(reached) + (judgement.accepted >= len(ratios) and len(ratios) < budget)
        step = self._step()
        before = self._positions or positions
        self._positions = (1.0 - step) * before + step * positions
        self._alpha = ((1.0 - step) * before * self._alpha + step * sum(reached)) / self._positions
        self._idle = 0


def _ratios(judgement: Judgement, budget: int) -> tuple[tuple[float, ...], int]:
    """The ratios, and how many were asked for; of a rule that knows none, what stood, and the first that did not."""
    if judgement.ratios is not None:
        return judgement.ratios, budget
    ratios = (1.0,) * judgement.accepted + (0.0,) * (judgement.accepted < budget)
    return ratios, len(ratios)


def _rise(alpha: float, idle_share: float) -> float:
    """Part of the way from `alpha` to `ALPHA_MAX`."""
    alpha = min(alpha, ALPHA_MAX)
    return alpha + (ALPHA_MAX - alpha) * min(1.0, idle_share)
