"""Whether drafted tokens come of the distributions that are claimed for them, under the ratio rule.

Where an agent says what it drew a token from, it can say what it likes. A tiny claim `q(x)` for a token `x` that it
means to have makes `p/q` large, and the token stands whatever the target thinks of it. A flat `q` about a token that
the target likes does the same and looks less odd. Neither can be seen in one token. Over many tokens both can, since
honesty is a statement about chances: given all that came before and `q`, the token is distributed as `q` is.

*A test martingale.* A gambler bets on every token, at fair odds if the agent is honest: a stake is multiplied by
`r(x)/q(x)`, where `r` is a distribution that is fixed before `x` is known. Its expectation under `q` is one. Some
gamblers bet that tokens are unlikelier, or likelier, than is claimed,

    r(x) = q(x)^(1-l) / sum_y q(y)^(1-l),        that is a factor of  q(x)^(-l) / sum_y q(y)^(1-l),

for several `l`: above 0 on unlikely tokens, below on likely ones (who sends its likeliest token and claims to have
drawn it). Others bet that tokens are what the target likes, a share of the stake on `p` and the rest kept: `1 - m + m
p(x)/q(x)`. Its expectation is at most one, since `sum_y p(y)` over what `q` covers is. That bet is on the very thing
which a lie gains.

Each gambler has a purse, and puts a share of it down at every token: `1/(t (t+1))` of all it brought at the `t`-th. So
whenever a lie begins, money that has not lost anything yet is on it (a sum over the times at which it may begin, with
a prior, in the manner of Shiryaev and Roberts; the prior makes it a martingale and not only a sum). What all
purses hold together, over what they held first, is a supermartingale that starts at one. By Ville's inequality it ever
reaches `1/d` with a chance of `d` at most, over the whole life of an account, however often one looks, and whatever
`q`s an honest agent has: of any temperature, of any top-k, however peaked. `z`, the sum of surprises over its standard
deviation, is shown to people and decides nothing: of peaked distributions, it is far from normal.

A lie of which one bet gains `k` nats a token on average is found after about `(log(gamblers/d) + log(t (t+1))) / k`
tokens, if it began at the `t`-th: see `CAUGHT_WITHIN`. Nothing can be had for nothing in between: as long as no alarm
is raised, all that was ever gained by any of these bets is bounded by the same sum.

A point mass at the drafted token is honest, and lossless: a token that was settled without the server's coins is a
draw from it, it stands with the chance `p(x)`, and `norm(max(p - q, 0))` makes up for the rest. Every bet on it pays
exactly one (those on `p`: `p(x)`), so a drafter that looks its tokens up never gains or loses by what it is.

What honesty asks of an agent is that its draws are independent of all that the server was shown before. So `Ratio`
draws with noise that is used once. The stream's seed would not do: two texts with one seed, or one position that is
drafted twice, would show the same draw twice, and the evidence of one token would count as that of two.

(Ville 1939; Ramdas, Grunwald, Vovk and Shafer, "Game-theoretic statistics and safe anytime-valid inference",
arXiv 2210.01948.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from goodspeed.verification import DraftDistribution

__all__ = ["CAUGHT_WITHIN", "FALSE_ALARM", "Audit"]

Floats = NDArray[np.float64]

FALSE_ALARM = 1e-9
"""`d`: the chance that an honest account is ever distrusted."""
CAUGHT_WITHIN = 64
"""Drafted tokens within which claims that gain a nat a token are found out on average, after a million honest ones."""
_TILTS = np.array([-1.0, 0.5, 1.0, 2.0, 4.0])
"""`l` of the bets on what is claimed alone; the largest finds a few absurd claims, the smallest many mild ones."""
_STAKES = np.array([0.1, 0.5, 0.9])
"""`m` of the bets on the target; below one, so that no token takes all of a purse."""
_ROUNDING = 1e-5
"""By so much the target's odds are taken to be worse: its probabilities are float32, and errors must not add up."""
_GAMBLERS = len(_TILTS) + len(_STAKES)


class Audit:
    """Of one account, over all its streams and links; each drafted token that was verified is shown to it once.

    Args:
        false_alarm: the chance that it ever raises an alarm at an honest agent.
    """

    def __init__(self, false_alarm: float = FALSE_ALARM) -> None:
        assert 0 < false_alarm < 1
        self._log_bound = -math.log(false_alarm)
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self.tokens = 0
        """How many it was shown."""
        self.alarmed = False
        """Whether the evidence has ever reached the bound."""
        self._log_purses = np.full(_GAMBLERS, -np.inf)
        """What was put down and what became of it, in units of what each gambler brought: [gamblers]."""
        self._surprise = self._variance = 0.0

    @property
    def log_evidence(self) -> float:
        """The logarithm of the martingale: what all gamblers hold over what they brought."""
        return float(self._evidence(self._log_purses[None])[0])

    @property
    def z(self) -> float:
        """By how many standard deviations the drafted tokens are unlikelier than claimed; for people to look at."""
        return self._surprise / math.sqrt(self._variance) if self._variance > 0 else 0.0

    def observe(self, q: Sequence[DraftDistribution], drafted: Sequence[int], odds: Sequence[float] | None) -> bool:
        """Look at a draft, or at the part of one that was verified.

        Which tokens are shown may depend on anything but what they are: on how many a pass may verify and on what came
        before, but not on whether they were accepted.

        Args:
            q: what was claimed for each drafted token.
            drafted: the tokens, each in the support of its `q`.
            odds: `p/q` of each, the target's probability over the claimed one; None where it is not known.

        Returns:
            Whether this raises the alarm; once.
        """
        if not drafted:
            return False
        assert len(q) == len(drafted)
        log_q, log_drawn = _logarithms(q, drafted)
        self._learn_of_surprises(log_q, log_drawn)
        purses = self._after(_log_factors(log_q, log_drawn, odds))
        self.tokens += len(drafted)
        self._log_purses = purses[-1]
        was, self.alarmed = self.alarmed, self.alarmed or bool(self._evidence(purses).max() >= self._log_bound)
        return self.alarmed and not was

    def _after(self, factors: Floats) -> Floats:
        """What the purses hold behind each token: [S, gamblers].

        `purse <- (purse + put down) * factor`, for all tokens at once: over the product of all factors so far, a purse
        is a sum.
        """
        number = self.tokens + 1.0 + np.arange(len(factors))[:, None]
        products = factors.cumsum(0)
        put_down = -np.log(number * (number + 1)) - (products - factors)
        return products + np.logaddexp.accumulate(np.concatenate([self._log_purses[None], put_down]))[1:]

    def _evidence(self, purses: Floats) -> Floats:
        """Of the purses behind each of the last tokens: [S, gamblers] to [S]."""
        in_hand = -np.log(self.tokens + 1.0 - np.arange(len(purses))[::-1])  # of 1, after 1/(t (t+1)) for every token
        return np.asarray(np.logaddexp(np.logaddexp.reduce(purses, axis=-1) - math.log(_GAMBLERS), in_hand))

    def _learn_of_surprises(self, log_q: Floats, log_drawn: Floats) -> None:
        p = np.exp(log_q)
        surprises = np.where(p > 0, -log_q, 0.0)
        entropy = (p * surprises).sum(-1)
        self._surprise += float((-log_drawn - entropy).sum())
        self._variance += float((p * (surprises - entropy[:, None]) ** 2).sum())


def _logarithms(q: Sequence[DraftDistribution], drafted: Sequence[int]) -> tuple[Floats, Floats]:
    """`log q`, padded with `-inf`: [S, k]; and that of each drafted token: [S]."""
    shape = len(q), max(len(one.tokens) for one in q)
    tokens, weights = np.full(shape, -1), np.zeros(shape)
    for number, one in enumerate(q):
        tokens[number, : len(one.tokens)], weights[number, : len(one.tokens)] = one.tokens, one.weights
    with np.errstate(divide="ignore"):
        log_q = np.log(weights / weights.sum(-1, keepdims=True))
    return log_q, log_q[tokens == np.array(drafted)[:, None]]


def _log_factors(log_q: Floats, log_drawn: Floats, odds: Sequence[float] | None) -> Floats:
    """What a unit on each token becomes in each gambler's hands, as logarithms: [S, gamblers]."""
    there = (log_q > -np.inf)[:, None, :]
    # 16-bit weights leave probabilities of 1e-7 and more, whose powers are far from what a float64 can hold.
    powers = np.where(there, log_q[:, None, :], 0.0) * (1.0 - _TILTS)[:, None]  # [S, tilts, k]
    raised = np.exp(powers) * there
    totals = np.log(raised.sum(-1))  # [S, tilts]
    tilted = -_TILTS * log_drawn[:, None] - totals
    if odds is None:
        return np.concatenate([tilted, np.zeros((len(log_drawn), len(_STAKES)))], axis=1)
    paid = np.asarray(odds, dtype=np.float64)[:, None] / (1.0 + _ROUNDING)
    return np.concatenate([tilted, np.log1p(_STAKES * (paid - 1.0))], axis=1)
