"""The losses by name, each upon a whole lesson."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from goodspeed.errors import InvalidRequest
from goodspeed.tuning import objectives
from goodspeed.tuning.clients import UtilityGuide
from goodspeed.tuning.lessons import Lesson, accepted, coarse
from goodspeed.tuning.objectives import Divergence, block_goodput

__all__ = ["KL_SHARE", "LOSSES", "Loss", "make_loss"]

KL_SHARE = 0.2
"""How much forward KL stands beside a loss of blocks, which alone says little where a draft is far off."""

Loss = Callable[[Lesson, Tensor], Tensor]
"""A lesson and the draft's logits, [rows, length - 1, vocab], to a scalar."""

_DIVERGENCES: Mapping[str, Divergence] = {
    "forward-kl": objectives.forward_kl,
    "reverse-kl": objectives.reverse_kl,
    "jsd": objectives.jensen_shannon,
    "tv": objectives.total_variation,
    "neg-log-alpha": objectives.neg_log_acceptance,
    "lk": objectives.lk_mixture,
}

LOSSES = ("cross-entropy", *_DIVERGENCES, "block", "utility", "inverse-goodput")
"""`block` is block goodput unweighted; `inverse-goodput` weighs the token loss, which is the shortcut to avoid."""


def make_loss(name: str, guide: UtilityGuide) -> Loss:
    """Find a loss.

    Args:
        name: one of `LOSSES`.
        guide: the clients; the losses of tokens pay no heed to it.

    Raises:
        InvalidRequest: there is none by that name.
    """
    if name == "cross-entropy":
        return cross_entropy
    if name in _DIVERGENCES:
        return TokenLoss(_DIVERGENCES[name])
    if name == "block":
        return BlockLoss(guide, weighted=False)
    if name == "utility":
        return BlockLoss(guide, weighted=True)
    if name == "inverse-goodput":
        return InverseGoodputLoss(guide)
    raise InvalidRequest(f"there is no loss {name!r}: choose {', '.join(LOSSES)}")


def cross_entropy(lesson: Lesson, logits: Tensor) -> Tensor:
    """Of the text itself: hard labels, what tuning is to be better than."""
    known = lesson.known
    return F.cross_entropy(logits[known].float(), lesson.tokens[:, 1:][known])


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """The mean of a divergence over all known positions."""

    divergence: Divergence

    def __call__(self, lesson: Lesson, logits: Tensor) -> Tensor:
        """A scalar."""
        return self.divergence(*coarse(lesson, logits)).mean()


@dataclass(frozen=True, slots=True)
class BlockLoss:
    """Minus the goodput of blocks, by the clients' budgets, and a share of forward KL."""

    guide: UtilityGuide
    weighted: bool
    """By the utility; otherwise the sum of everybody's goodputs counts."""

    def __call__(self, lesson: Lesson, logits: Tensor) -> Tensor:
        """A scalar."""
        log_p, log_q = coarse(lesson, logits)
        kl = KL_SHARE * objectives.forward_kl(log_p, log_q).mean()
        goodput = goodput_by_client(lesson, accepted(lesson, log_p, log_q), self.guide)
        if not goodput:
            return kl
        if self.weighted:
            return self.guide.loss(goodput) + kl
        return kl - torch.stack(list(goodput.values())).mean()


@dataclass(frozen=True, slots=True)
class InverseGoodputLoss:
    """`-log a` with every client's tokens weighed by `1 / X`: the tempting shortcut, kept to be compared with."""

    guide: UtilityGuide

    def __call__(self, lesson: Lesson, logits: Tensor) -> Tensor:
        """A scalar."""
        log_p, log_q = coarse(lesson, logits)
        losses = torch.zeros(lesson.known.shape, dtype=log_q.dtype, device=log_q.device)
        losses[lesson.known] = objectives.neg_log_acceptance(log_p, log_q)
        goodput = goodput_by_client(lesson, accepted(lesson, log_p, log_q).detach(), self.guide)
        if not goodput:
            return losses[lesson.known].mean()
        self.guide.remember(goodput)
        weights = self.guide.weights(list(goodput))
        total = sum(weights.values())
        rows = rows_by_client(lesson)
        means = [weights[name] / total * losses[rows[name]][lesson.known[rows[name]]].mean() for name in goodput]
        return torch.stack(means).sum()


def goodput_by_client(lesson: Lesson, rates: Tensor, guide: UtilityGuide) -> dict[str, Tensor]:
    """Tokens per round of every client with rows in the lesson, a scalar each; who has no whole block is left out."""
    goodput = {}
    for name, rows in rows_by_client(lesson).items():
        value = block_goodput(rates[rows], lesson.known[rows], guide.clients[name].budget)
        if value is not None:
            goodput[name] = value
    return goodput


def rows_by_client(lesson: Lesson) -> dict[str, list[int]]:
    """Which rows of a lesson are whose."""
    rows: dict[str, list[int]] = {}
    for place, name in enumerate(lesson.clients):
        rows.setdefault(name, []).append(place)
    return rows
