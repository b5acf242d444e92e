"""Every distance against its definition in numpy and against finite differences; block goodput against real rounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from goodspeed.tuning import objectives
from goodspeed.tuning.objectives import Divergence, acceptance, block_goodput, passing

Floats = NDArray[np.float64]


def log_probs(seed: int, *shape: int, spread: float = 1.5) -> Tensor:
    """Random distributions: float64, normalised over the last axis."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * spread).log_softmax(-1)


def kl(p: Floats, q: Floats) -> float:
    return math.fsum(p[v] * math.log(p[v] / q[v]) for v in range(len(p)))


def overlap(p: Floats, q: Floats) -> float:
    return math.fsum(min(p[v], q[v]) for v in range(len(p)))


def lk(p: Floats, q: Floats) -> float:
    share = math.exp(-3 * overlap(p, q))
    return share * kl(p, q) + (1 - share) * (1 - overlap(p, q))


DEFINITIONS: list[tuple[Divergence, Callable[[Floats, Floats], float]]] = [
    (objectives.forward_kl, kl),
    (objectives.reverse_kl, lambda p, q: kl(q, p)),
    (objectives.jensen_shannon, lambda p, q: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2),
    (objectives.total_variation, lambda p, q: float(np.abs(p - q).sum() / 2)),
    (objectives.neg_log_acceptance, lambda p, q: -math.log(overlap(p, q))),
    (objectives.lk_mixture, lk),
]
names = [divergence.__name__ for divergence, _ in DEFINITIONS]


@pytest.mark.parametrize(("divergence", "definition"), DEFINITIONS, ids=names)
def test_distances_are_what_their_definitions_say(
    divergence: Divergence, definition: Callable[[Floats, Floats], float]
) -> None:
    log_p, log_q = log_probs(1, 3, 2, 7), log_probs(2, 3, 2, 7)
    found = divergence(log_p, log_q)
    assert found.shape == (3, 2)
    for row in range(3):
        for place in range(2):
            expected = definition(log_p[row, place].exp().numpy(), log_q[row, place].exp().numpy())
            assert float(found[row, place]) == pytest.approx(expected, abs=1e-12)
    assert divergence(log_p, log_p).abs().max() < 1e-12


@pytest.mark.parametrize("divergence", [divergence for divergence, _ in DEFINITIONS[:-1]], ids=names[:-1])
def test_gradients_are_those_of_finite_differences(divergence: Divergence) -> None:
    log_p = log_probs(3, 4, 6)
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: divergence(log_p, x.log_softmax(-1)), logits)


def test_the_mixture_holds_its_share_fixed() -> None:
    """Its gradient is that of the same sum with the share as a constant, and not that of the whole expression."""
    log_p = log_probs(3, 4, 6)
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    p, q = log_p.exp(), logits.softmax(-1)
    share = torch.exp(-3 * torch.minimum(p, q).sum(-1)).detach()

    def frozen(x: Tensor) -> Tensor:
        log_q = x.log_softmax(-1)
        return (share * (p * (log_p - log_q)).sum(-1) + (1 - share) * (p - log_q.exp()).abs().sum(-1) / 2).sum()

    assert torch.autograd.gradcheck(frozen, logits)
    (ours,) = torch.autograd.grad(objectives.lk_mixture(log_p, logits.log_softmax(-1)).sum(), logits)
    (expected,) = torch.autograd.grad(frozen(logits), logits)
    torch.testing.assert_close(ours, expected)


def test_logarithms_at_the_floor_leave_everything_finite() -> None:
    log_p = torch.tensor([[0.0, objectives.LOG_FLOOR]], dtype=torch.float64)
    for divergence, _ in DEFINITIONS:
        log_q = log_p.flip(-1).requires_grad_()
        loss = divergence(log_p, log_q).sum()
        (gradient,) = torch.autograd.grad(loss, log_q)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(1, 11))
def test_merged_outcomes_can_only_agree_better(seed: int, outcomes: int, merged: int) -> None:
    """What the coarse distributions of a shard rest on."""
    log_p, log_q = log_probs(seed, outcomes), log_probs(seed + 1, outcomes)
    kept = max(1, outcomes - merged)

    def merge(log: Tensor) -> Tensor:
        return torch.cat([log[:kept], log[kept:].logsumexp(0, keepdim=True)])

    assert acceptance(merge(log_p), merge(log_q)) >= acceptance(log_p, log_q) - 1e-12
    for divergence in (objectives.forward_kl, objectives.reverse_kl, objectives.jensen_shannon):
        assert divergence(merge(log_p), merge(log_q)) <= divergence(log_p, log_q) + 1e-12


def test_passing_is_the_ratio_the_other_way_round() -> None:
    p, q = torch.tensor([0.5, 0.1, 0.2]), torch.tensor([0.25, 0.4, 0.2])
    assert passing(p.log(), q.log()).tolist() == pytest.approx([0.5, 1.0, 1.0])


# Blocks


def plain_goodput(accepted: Floats, known: NDArray[np.bool_], budget: int, passed: Floats | None) -> float | None:
    """The definition, block by block."""
    totals = []
    for row in range(len(accepted)):
        for begin in range(accepted.shape[1] - budget + 1):
            if not known[row, begin : begin + budget].all():
                continue
            total = 1.0
            for k in range(budget):
                before = accepted if passed is None else passed
                total += math.prod(before[row, begin : begin + k].tolist()) * accepted[row, begin + k]
            totals.append(total)
    return float(np.mean(totals)) if totals else None


@given(st.integers(0, 2**32), st.integers(0, 6), st.floats(0, 1), st.booleans())
def test_block_goodput_is_its_double_loop(seed: int, budget: int, share_known: float, with_passed: bool) -> None:
    rng = np.random.default_rng(seed)
    accepted, passed = rng.random((2, 3, 5))
    known = rng.random((3, 5)) < share_known
    found = block_goodput(
        torch.from_numpy(accepted), torch.from_numpy(known), budget, torch.from_numpy(passed) if with_passed else None
    )
    expected = 1.0 if budget == 0 else plain_goodput(accepted, known, budget, passed if with_passed else None)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert float(found) == pytest.approx(expected)


def test_what_is_not_known_counts_for_nothing() -> None:
    accepted = torch.tensor([[0.5, 0.5, 9.0, 0.25, 0.25]], dtype=torch.float64)
    known = torch.tensor([[True, True, False, True, True]])
    assert block_goodput(accepted, known, 2) == pytest.approx(1 + (0.5 + 0.25 + 0.25 + 0.0625) / 2)
    assert block_goodput(accepted, known, 3) is None
    assert block_goodput(accepted, known, 6) is None
    assert block_goodput(accepted, ~known, 1) == pytest.approx(10.0)


@pytest.mark.parametrize("with_passed", [False, True])
def test_block_goodput_has_the_gradient_of_its_value(with_passed: bool) -> None:
    rng = np.random.default_rng(5)
    accepted = torch.from_numpy(rng.random((2, 6))).requires_grad_()
    known = torch.from_numpy(rng.random((2, 6)) < 0.9)
    passed = torch.from_numpy(rng.random((2, 6))) if with_passed else None

    def goodput(rates: Tensor) -> Tensor:
        value = block_goodput(rates, known, 3, passed)
        assert value is not None
        return value

    assert torch.autograd.gradcheck(goodput, accepted)


STATES = 5
BUDGET = 3


def chain(seed: int) -> Floats:
    """A Markov chain: the next state's distribution by the present one, [states, states]."""
    return np.asarray(np.random.default_rng(seed).dirichlet(np.full(STATES, 0.4), STATES))


def walk(transitions: Floats, begin: NDArray[np.int64], steps: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Many walks at once, [walks, 1 + steps]."""
    states = [begin]
    for _ in range(steps):
        uniform = rng.random(len(begin))[:, None]
        states.append(np.minimum((transitions[states[-1]].cumsum(-1) < uniform).sum(-1), STATES - 1))
    return np.stack(states, 1)


def test_with_passing_it_is_what_real_rounds_commit() -> None:
    """A draft that is far off where its own drafts lead: without `passed` the estimate would be another number."""
    target, draft = chain(1), chain(9)
    rng = np.random.default_rng(4)
    text = walk(target, rng.integers(STATES, size=2000), 40, rng)  # what the target writes

    # Rounds of the ratio rule: the draft writes ahead of each position, coin by coin until the first rejection.
    begins = text[:, : 40 - BUDGET + 1].reshape(-1)
    ahead = walk(draft, begins, BUDGET, rng)
    here, there = ahead[:, :-1], ahead[:, 1:]
    stands = rng.random(here.shape) * draft[here, there] <= target[here, there]
    committed = 1 + stands.cumprod(-1).sum(-1)
    by_text = committed.reshape(len(text), -1).mean(-1)  # texts are independent, positions of one are not

    here, there = text[:, :-1], text[:, 1:]
    accepted = torch.from_numpy(np.minimum(target, draft).sum(-1)[here])
    passed = passing(torch.from_numpy(target[here, there]).log(), torch.from_numpy(draft[here, there]).log())
    values = []
    for row in range(len(text)):
        value = block_goodput(
            accepted[row : row + 1], torch.ones(1, 40, dtype=torch.bool), BUDGET, passed[row : row + 1]
        )
        assert value is not None
        values.append(float(value))
    difference = np.array(values) - by_text
    error = difference.std() / math.sqrt(len(text))
    assert error < 0.01
    assert abs(difference.mean()) < 3 * error
    without = block_goodput(accepted, torch.ones(accepted.shape, dtype=torch.bool), BUDGET)
    assert without is not None
    assert abs(float(without) - by_text.mean()) > 6 * error
