"""Which drafted tokens are accepted, by any rule, where target and draft agree to the degree alpha."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from goodspeed.rules import VerificationRule, checked_judgement, faults_named
from goodspeed.verification import Judgement

__all__ = ["hits_in_a_row", "judge_by_ratio", "judge_by_rule"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TOKENS = 8
"""Of a draft's distribution, where a rule of one's own judges; the target's has as many more."""
_SEEDS = 2**31
_BELOW_ONE = 1.0 - 1e-9
_CONCENTRATION = 2.0
"""Of the beta distribution of `min(1, p/q)` about its mean: flat at a rate of a half."""


def hits_in_a_row(alpha: Floats | float, random: np.random.Generator) -> Ints:
    """How many tokens would be accepted, were the drafts long enough, [streams]."""
    return np.asarray(random.geometric(1.0 - alpha * _BELOW_ONE) - 1)


def judge_by_ratio(alpha: Floats, budgets: Sequence[int], random: np.random.Generator) -> list[Judgement]:
    """Judge drafts by ratios `min(1, p/q)` that are drawn about alpha, each stream's at every drafted position."""
    rate = np.clip(alpha, 1.0 - _BELOW_ONE, _BELOW_ONE)[:, None]
    shape = (len(alpha), max(budgets, default=0))
    ratios = random.beta(_CONCENTRATION * rate, _CONCENTRATION * (1.0 - rate), shape)  # [streams, drafted]
    stands = random.random(shape) <= ratios
    accepted = np.cumprod(stands, axis=1)  # up to and without the first rejection
    return [
        Judgement(int(accepted[row, :budget].sum()), 0, tuple(ratios[row, :budget].tolist()))
        for row, budget in enumerate(budgets)
    ]


def judge_by_rule(
    rule: VerificationRule, alpha: Floats, budgets: Sequence[int], random: np.random.Generator
) -> list[Judgement]:
    """Let a rule itself draw and judge, over distributions that overlap by alpha: `1 - TV(p, q)`.

    The draft's is over a few tokens; the target gives each of them alpha times as much, and the rest to as many others.
    Needs torch, since judging does.

    Raises:
        RuleFault: the rule fails, or judges what cannot be.
    """
    import torch

    judgements = []
    vocab = 2 * _TOKENS
    for rate, budget in zip(alpha.tolist(), budgets, strict=True):
        seed, q = int(random.integers(_SEEDS)), -np.sort(-random.dirichlet(np.ones(_TOKENS), budget + 1))
        with faults_named(rule):
            drawn = [
                rule.draw(np.arange(_TOKENS), (row / row[0]).astype(np.float32), seed, place)
                for place, row in enumerate(q[:budget])
            ]
            drafted = [token for token, _ in drawn]
            evidence = rule.read(b"".join(sent for _, sent in drawn), drafted, vocab)
        p = np.concatenate([rate * q, (1.0 - rate) * q], axis=1)
        log_p = torch.from_numpy(np.log(np.maximum(p, 1e-30))).float()
        judgements.append(checked_judgement(rule, log_p, drafted, evidence, seed, 0))
    return judgements
