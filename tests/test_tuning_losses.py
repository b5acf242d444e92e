"""Every loss against a plain restatement in numpy: its value, and its gradient by finite differences.

What a loss holds fixed by design, the restatement is given as a constant: the share of `lk`, the weights by goodput.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from goodspeed.errors import InvalidRequest
from goodspeed.tuning.clients import Client, UtilityGuide
from goodspeed.tuning.lessons import Lesson, collate, cut
from goodspeed.tuning.losses import KL_SHARE, LOSSES, make_loss
from goodspeed.tuning.passages import Passage
from goodspeed.utility import AlphaFair

VOCAB = 9
FAIRNESS = 2.0
CLIENTS = (
    Client("a", 3, weight=2.0, goodput=1.8, rounds_per_s=4.0),
    Client("b", 1, rounds_per_s=0.5),
)

Floats = NDArray[np.float64]


def lesson_of(*, clients: str = "aab", known: int = 6) -> Lesson:
    """Rows of 8 tokens, and the target's three likeliest tokens at the last `known` of them."""
    passages = []
    for seed, client in enumerate(clients):
        rng = np.random.default_rng(seed)
        p = rng.dirichlet(np.ones(VOCAB), known)
        support = np.argsort(-p, axis=-1)[:, :3]
        log_p = np.log(np.take_along_axis(p, support, -1))
        tokens = rng.integers(VOCAB, size=8).astype(np.int32)
        passages.append(Passage(tokens, 8 - known, support.astype(np.int32), log_p.astype(np.float16), client=client))
    return collate(cut(passages, 8))


def logits_of(lesson: Lesson, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*lesson.known.shape, VOCAB, generator=generator, dtype=torch.float64)


def guide() -> UtilityGuide:
    return UtilityGuide(CLIENTS, AlphaFair(FAIRNESS))


@dataclass
class Restated:
    """The losses again, position by position; what is fixed is computed once, at the first logits."""

    lesson: Lesson
    shares: list[float] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)

    def value(self, name: str, logits: Floats) -> float:
        pairs = self._pairs(logits)
        overlaps = {place: float(np.minimum(p, q).sum()) for place, (p, q) in pairs.items()}
        kl = float(np.mean([(p * np.log(p / q)).sum() for p, q in pairs.values()]))
        if name == "cross-entropy":
            tokens = self.lesson.tokens.numpy()
            return float(np.mean([-math.log(self._q(logits, *at)[tokens[at[0], at[1] + 1]]) for at in pairs]))
        if name == "forward-kl":
            return kl
        if name == "reverse-kl":
            return float(np.mean([(q * np.log(q / p)).sum() for p, q in pairs.values()]))
        if name == "jsd":
            halves = [[(x * np.log(2 * x / (p + q))).sum() / 2 for x in (p, q)] for p, q in pairs.values()]
            return float(np.sum(halves) / len(pairs))
        if name == "tv":
            return float(np.mean([np.abs(p - q).sum() / 2 for p, q in pairs.values()]))
        if name == "neg-log-alpha":
            return float(np.mean([-math.log(a) for a in overlaps.values()]))
        if name == "lk":
            self.shares = self.shares or [math.exp(-3 * a) for a in overlaps.values()]
            terms = zip(self.shares, pairs.values(), overlaps.values(), strict=True)
            return float(np.mean([s * (p * np.log(p / q)).sum() + (1 - s) * (1 - a) for s, (p, q), a in terms]))
        goodput = self._goodput(overlaps)
        if name == "block":
            return KL_SHARE * kl - float(np.mean(list(goodput.values())))
        self.weights = self.weights or self._weights(goodput)
        if name == "utility":
            return KL_SHARE * kl - math.fsum(self.weights[client] * x for client, x in goodput.items())
        assert name == "inverse-goodput"
        total = sum(self.weights.values())
        means = {
            client: float(np.mean([-math.log(a) for at, a in overlaps.items() if self.lesson.clients[at[0]] == client]))
            for client in goodput
        }
        return math.fsum(self.weights[client] / total * means[client] for client in goodput)

    @staticmethod
    def _q(logits: Floats, row: int, at: int) -> Floats:
        exponents = np.exp(logits[row, at])
        return np.asarray(exponents / exponents.sum())

    def _pairs(self, logits: Floats) -> dict[tuple[int, int], tuple[Floats, Floats]]:
        pairs = {}
        for row, at in self.lesson.known.nonzero().tolist():
            support = self.lesson.support[row, at].numpy()
            p = np.exp(self.lesson.log_p[row, at].numpy().astype(np.float64))
            q = self._q(logits, row, at)[support]
            pairs[row, at] = (np.append(p, 1 - p.sum()), np.append(q, 1 - q.sum()))
        return pairs

    def _goodput(self, overlaps: dict[tuple[int, int], float]) -> dict[str, float]:
        goodput = {}
        for client in CLIENTS:
            blocks = []
            for row, at in overlaps:
                block = [overlaps.get((row, at + j), math.nan) for j in range(client.budget)]
                if self.lesson.clients[row] == client.name and not np.isnan(block).any():
                    blocks.append(1 + np.cumprod(block).sum())
            if blocks:
                goodput[client.name] = float(np.mean(blocks))
        return goodput

    @staticmethod
    def _weights(goodput: dict[str, float]) -> dict[str, float]:
        slopes, x = {}, {}
        for client in CLIENTS:
            if client.name in goodput:
                seen = goodput[client.name]
                x[client.name] = 0.9 * (client.goodput or seen) + 0.1 * seen
                slopes[client.name] = client.weight * client.rounds_per_s * (x[client.name] * client.rounds_per_s) ** -2
        scale = math.fsum(slopes[name] * x[name] for name in x)
        return {name: slope / scale for name, slope in slopes.items()}


@pytest.mark.parametrize("clients", ["aab", "bb"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_the_value_and_the_gradient_of_its_restatement(name: str, clients: str) -> None:
    lesson = lesson_of(clients=clients)
    logits = logits_of(lesson).requires_grad_()
    loss = make_loss(name, guide())(lesson, logits)
    (gradient,) = torch.autograd.grad(loss, logits)
    restated, at = Restated(lesson), logits.detach().numpy()
    # Hard labels are read in single precision.
    tolerance = 1e-6 if name == "cross-entropy" else 1e-7
    assert float(loss.detach()) == pytest.approx(restated.value(name, at), abs=tolerance)
    rng, step = np.random.default_rng(0), 1e-5
    for _ in range(4):
        way = rng.normal(size=at.shape)
        slope = (restated.value(name, at + step * way) - restated.value(name, at - step * way)) / (2 * step)
        assert float((gradient.numpy() * way).sum()) == pytest.approx(slope, abs=1e-6)
    assert (gradient[~lesson.known] == 0).all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cross-entropy"])
def test_a_step_down_the_gradient_accepts_more(name: str) -> None:
    """Whatever the objective: each of them is about being accepted."""
    lesson = lesson_of()
    logits = logits_of(lesson).requires_grad_()
    restated = Restated(lesson)
    before = restated.value("tv", logits.detach().numpy())
    for _ in range(20):
        (gradient,) = torch.autograd.grad(make_loss(name, guide())(lesson, logits), logits)
        logits = (logits - 0.5 * gradient / gradient.norm()).detach().requires_grad_()
    assert restated.value("tv", logits.detach().numpy()) < before - 0.02


@pytest.mark.parametrize("name", ["block", "utility", "inverse-goodput"])
def test_rows_too_short_for_any_block_are_learned_from_all_the_same(name: str) -> None:
    lesson = lesson_of(clients="aa", known=2)
    logits = logits_of(lesson)
    loss = make_loss(name, guide())(lesson, logits)
    expected = Restated(lesson)
    if name == "inverse-goodput":
        assert float(loss) == pytest.approx(expected.value("neg-log-alpha", logits.numpy()), abs=1e-7)
    else:
        assert float(loss) == pytest.approx(KL_SHARE * expected.value("forward-kl", logits.numpy()), abs=1e-7)


def test_a_loss_of_utility_remembers_goodputs_and_one_of_tokens_does_not() -> None:
    lesson = lesson_of()
    for name in LOSSES:
        heeding = guide()
        make_loss(name, heeding)(lesson, logits_of(lesson))
        assert (set(heeding.goodput) == {"a", "b"}) == (name in {"utility", "inverse-goodput"})


def test_a_loss_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(InvalidRequest, match="there is no loss 'hinge': choose cross-entropy, forward-kl"):
        make_loss("hinge", guide())
