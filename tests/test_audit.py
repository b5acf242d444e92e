"""The audit of claimed draft distributions: fair to who is honest, and quick to find who is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from goodspeed.audit import _ROUNDING, _STAKES, _TILTS, CAUGHT_WITHIN, FALSE_ALARM, Audit
from goodspeed.verification import DraftDistribution

Floats = NDArray[np.float64]
Weights = Sequence[int]
UNREACHED = 1e-300
"""No evidence in a test comes to that, so that it can be looked at to the end."""


def claim(weights: Weights) -> DraftDistribution:
    return DraftDistribution(np.arange(len(weights)), np.array(weights, dtype=np.int64))


def by_definition(q: Sequence[Weights], drafted: Sequence[int], p: Sequence[Sequence[float]] | None) -> float:
    """What all gamblers hold, purse by purse and beginning by beginning, with nothing but sums and products."""
    gamblers: list[list[float]] = []  # what each makes of a unit, token by token
    for tilt in _TILTS.tolist():
        gamblers.append([])
        for weights, token in zip(q, drafted, strict=True):
            total = sum(weights)
            bet = [(weight / total) ** (1 - tilt) for weight in weights]
            gamblers[-1].append(bet[token] / sum(bet) / (weights[token] / total))
    for stake in _STAKES.tolist():
        gamblers.append([])
        for place, (weights, token) in enumerate(zip(q, drafted, strict=True)):
            paid = 1.0 if p is None else p[place][token] * sum(weights) / weights[token] / (1 + _ROUNDING)
            gamblers[-1].append(1 - stake + stake * paid)
    size = len(drafted)
    held = 0.0
    for factors in gamblers:
        held += 1 / (size + 1)
        held += sum(math.prod(factors[begun:]) / ((begun + 1) * (begun + 2)) for begun in range(size))
    return held / len(gamblers)


def odds_of(q: Sequence[Weights], drafted: Sequence[int], p: Sequence[Sequence[float]] | None) -> list[float] | None:
    if p is None:
        return None
    return [row[x] * sum(weights) / weights[x] for weights, x, row in zip(q, drafted, p, strict=True)]


weights_lists = st.lists(st.integers(1, 65535) | st.just(65535), min_size=1, max_size=4)
EVENLY = [1 / 5] * 5


@settings(max_examples=40, deadline=None)
@given(
    st.lists(weights_lists.flatmap(lambda q: st.tuples(st.just(q), st.integers(0, len(q) - 1))), max_size=10),
    st.lists(st.lists(st.floats(0.001, 1), min_size=5, max_size=5), min_size=10, max_size=10) | st.none(),
    st.integers(1, 10),
)
def test_the_evidence_is_what_the_gamblers_hold(
    draws: list[tuple[list[int], int]], raw: list[list[float]] | None, piece: int
) -> None:
    """Held against the definition; and however the tokens were dealt out to drafts."""
    q, drafted = [weights for weights, _ in draws], [token for _, token in draws]
    p = None if raw is None else [[value / sum(row) for value in row] for row in raw[: len(q)]]
    audit = Audit(UNREACHED)
    odds = odds_of(q, drafted, p)
    for first in range(0, len(q), piece):
        part = slice(first, first + piece)
        audit.observe(list(map(claim, q[part])), drafted[part], None if odds is None else odds[part])
    assert audit.tokens == len(q)
    assert audit.log_evidence == pytest.approx(math.log(by_definition(q, drafted, p)), abs=1e-9)


Agent = Callable[[Sequence[int]], Weights]
"""What an honest agent claims next, from all that it drafted before."""


def adaptive(seed: int, *, tokens: int = 3) -> Agent:
    """One whose claims, and how many tokens it gives a chance, depend on everything before in ways nobody foresees."""

    def claims(before: Sequence[int]) -> Weights:
        random = np.random.default_rng([seed, *before, 7])
        count = int(random.integers(1, tokens + 1))
        return [int(weight) for weight in np.exp(random.uniform(0, 11, count)).astype(int)]

    return claims


def every_text(agent: Agent, length: int) -> Iterator[tuple[list[Weights], list[int], Fraction]]:
    """All that an honest agent can draft, each with its chance, exactly."""
    texts: list[tuple[list[Weights], list[int], Fraction]] = [([], [], Fraction(1))]
    for _ in range(length):
        texts = [
            ([*q, weights], [*drafted, token], chance * Fraction(weight, sum(weights)))
            for q, drafted, chance in texts
            for weights in (agent(drafted),)
            for token, weight in enumerate(weights)
        ]
    yield from texts


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_the_evidence_against_who_is_honest_is_one_on_average(seed: int, length: int) -> None:
    """The martingale itself, by brute force: over every text that can be drafted, at every length."""
    expected = chances = 0.0
    for q, drafted, chance in every_text(adaptive(seed), length):
        audit = Audit(UNREACHED)
        audit.observe(list(map(claim, q)), drafted, None)
        expected += float(chance) * math.exp(audit.log_evidence)
        chances += float(chance)
    assert chances == pytest.approx(1.0)
    assert expected == pytest.approx(1.0, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.booleans())
def test_so_it_is_whatever_the_target_thinks(seed: int, length: int, covered: bool) -> None:
    """And less, where the target likes tokens that the draft never draws."""
    expected = 0.0
    for q, drafted, chance in every_text(adaptive(seed), length):
        p = []
        for place, weights in enumerate(q):
            random = np.random.default_rng([seed, *drafted[:place], 8])
            p.append(random.dirichlet(np.ones(len(weights) if covered else 5)).tolist())
        audit = Audit(UNREACHED)
        audit.observe(list(map(claim, q)), drafted, odds_of(q, drafted, p))
        expected += float(chance) * math.exp(audit.log_evidence)
    assert expected <= 1.0 + 1e-12
    if covered:
        assert expected == pytest.approx(1.0, abs=2 * length * _ROUNDING)


def test_a_bet_that_is_unfair_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle can tell: without what makes a bet fair, expectation is not one."""
    from goodspeed import audit as module

    fair = module._log_factors
    monkeypatch.setattr(module, "_log_factors", lambda log_q, log_drawn, odds: fair(log_q, log_drawn, odds) + 0.01)
    with pytest.raises(AssertionError):
        test_the_evidence_against_who_is_honest_is_one_on_average.hypothesis.inner_test(3, 4)  # type: ignore[attr-defined]


def warped(random: np.random.Generator, temperature: float, top_k: int, rows: int) -> list[DraftDistribution]:
    """Distributions over random logits, quantised as they are sent."""
    logits = random.normal(0, 3, (rows, 64)) / temperature
    p = np.sort(np.exp(logits - logits.max(-1, keepdims=True)), -1)[:, ::-1][:, :top_k]
    weights = np.rint(p * 65535).astype(np.int64)
    return [DraftDistribution(np.flatnonzero(row), row[row > 0]) for row in weights]


def drawn(random: np.random.Generator, q: Sequence[DraftDistribution]) -> list[int]:
    return [int(random.choice(one.tokens, p=one.weights / one.weights.sum())) for one in q]


@pytest.mark.parametrize(("temperature", "top_k"), [(0.1, 32), (0.7, 2), (1.0, 32), (2.0, 8)])
def test_who_is_honest_hardly_ever_alarms_at_any_level(temperature: float, top_k: int) -> None:
    """At a level that is often enough reached to be counted: the bound holds over the whole of every life."""
    random = np.random.default_rng([int(10 * temperature), top_k])
    lives, level, alarms = 30, 0.1, 0
    for _ in range(lives):
        audit = Audit(level)
        for _ in range(10):
            q = warped(random, temperature, top_k, 10)
            alarms += audit.observe(q, drawn(random, q), None)
    # Beyond that, chance would have it once in ten thousand.
    assert alarms <= level * lives + 3.8 * math.sqrt(lives * level * (1 - level))


def test_a_long_honest_life_of_the_most_peaked_distributions() -> None:
    """Where a normal approximation raises the alarm at one improbable token in thousands."""
    random = np.random.default_rng(5)
    peaked = claim([65535, 8])
    largest_z, evidence = 0.0, -math.inf
    for _ in range(40):
        audit = Audit()
        for _ in range(10):
            assert not audit.observe([peaked] * 40, drawn(random, [peaked] * 40), None)
            largest_z, evidence = max(largest_z, audit.z), max(evidence, audit.log_evidence)
    assert largest_z > 6.0, "a threshold upon z of one in a billion would have been passed"
    assert evidence < -math.log(1e-3)


def test_a_long_honest_life() -> None:
    random = np.random.default_rng(6)
    audit = Audit()
    for _ in range(100):
        q = warped(random, float(random.choice([0.3, 0.7, 1.0, 1.5])), int(random.choice([1, 4, 32])), 40)
        p = random.dirichlet(np.ones(64), 40)
        tokens = drawn(random, q)
        odds = [
            float(p[row, token]) / one.probability(token)
            for row, (one, token) in enumerate(zip(q, tokens, strict=True))
        ]
        assert not audit.observe(q, tokens, odds)
    assert audit.tokens == 4_000
    assert abs(audit.z) < 4
    assert audit.log_evidence < math.log(1e3)


def test_a_drafter_that_settles_is_neither_suspect_nor_cleared() -> None:
    audit = Audit()
    for _ in range(200):
        assert not audit.observe([claim([1])] * 8, [0] * 8, None)
    assert audit.log_evidence == pytest.approx(0.0)
    assert audit.z == 0.0
    for _ in range(200):
        assert not audit.observe([claim([1])] * 8, [0] * 8, [1.0] * 8)
    assert audit.log_evidence < 1e-9, "nor where the target is as sure: what is sure cannot be a lie"


# Lies, each as (what is claimed, the token that is sent, the target's odds on it).
Lie = Callable[[np.random.Generator], tuple[list[int], int, float | None]]


def tiny(random: np.random.Generator) -> tuple[list[int], int, float | None]:
    """The smallest claim that can be made for the very token that is sent."""
    return [1] + [65535] * 31, 0, None


def doubtful(random: np.random.Generator) -> tuple[list[int], int, float | None]:
    """A token of which half of what it thinks is claimed, so that it stands twice as often."""
    q = random.dirichlet(np.full(8, 0.5))
    token = int(random.choice(8, p=q))
    claimed = np.maximum(1, np.rint(q / q.max() * 30000)).astype(int)
    claimed[token] = max(1, claimed[token] // 6)
    return claimed.tolist(), token, None


def likeliest(random: np.random.Generator) -> tuple[list[int], int, float | None]:
    """Greedy drafts, passed off as draws."""
    claimed = np.sort(np.rint(random.dirichlet(np.ones(6)) * 60000).astype(int) + 1)[::-1]
    return claimed.tolist(), 0, None


def flat(random: np.random.Generator) -> tuple[list[int], int, float | None]:
    """A claim that nothing can be read out of, about a token that the target likes."""
    return [1] * 32, int(random.integers(32)), float(random.uniform(0.3, 0.9)) * 32


def junk(random: np.random.Generator) -> tuple[list[int], int, float | None]:
    """What never stands, behind a claim that looks as good as the target: others' budgets are what it is after."""
    return [60000, 3000], 1, 0.0


@pytest.mark.parametrize("lie", [tiny, doubtful, likeliest, flat, junk])
@pytest.mark.parametrize("honest_before", [0, 1_000_000])
def test_lies_are_found_out(lie: Lie, honest_before: int) -> None:
    needed = []
    for seed in range(10):
        random = np.random.default_rng(seed)
        audit = Audit()
        # A long honest life leaves the gamblers with nothing of what they put down.
        audit.tokens = honest_before
        alarmed = False
        while not alarmed and audit.tokens < honest_before + 1000:
            weights, token, odds = lie(random)
            alarmed = audit.observe([claim(weights)], [token], None if odds is None else [odds])
        assert alarmed
        needed.append(audit.tokens - honest_before)
    most: dict[Lie, int] = {
        tiny: 8,
        doubtful: 6 * CAUGHT_WITHIN,
        likeliest: 6 * CAUGHT_WITHIN,
        flat: CAUGHT_WITHIN,
        junk: CAUGHT_WITHIN,
    }
    assert max(needed) <= most[lie], needed


def test_absurd_claims_in_one_draft() -> None:
    assert Audit().observe([claim([1] + [65535] * 31)] * 8, [0] * 8, None)


def test_the_alarm_is_raised_once_and_forgotten_with_everything_else() -> None:
    audit = Audit()
    lie = [claim([1] + [65535] * 31)] * 8
    assert [audit.observe(lie, [0] * 8, None) for _ in range(3)] == [True, False, False]
    assert audit.alarmed
    assert audit.z > 10
    audit.restart()
    assert (audit.alarmed, audit.tokens, audit.z) == (False, 0, 0.0)
    assert audit.log_evidence == pytest.approx(0.0)
    assert audit.observe(lie, [0] * 8, None)


def test_no_draft_says_nothing() -> None:
    audit = Audit()
    assert not audit.observe([], [], [])
    assert audit.tokens == 0


def test_what_may_be_gained_without_an_alarm_is_bounded() -> None:
    """Evidence that stays below the bound is the bound on what any of the bets ever gained, whoever it was."""
    random = np.random.default_rng(1)
    audit = Audit()
    gains: list[Floats] = []
    for _, token in product(range(50), range(2)):
        odds = float(random.uniform(0.2, 2.5))
        alarmed = audit.observe([claim([1, 1])], [token], [odds])
        gains.append(np.log1p(_STAKES * (odds / (1 + _ROUNDING) - 1)))
        if alarmed:
            break
    size = len(gains)
    assert not audit.alarmed or audit.log_evidence >= -math.log(FALSE_ALARM)
    room = audit.log_evidence + math.log(len(_TILTS) + len(_STAKES))
    for begun in range(size):
        held = np.sum(gains[begun:], axis=0) - math.log((begun + 1) * (begun + 2))
        assert held.max() <= room + 1e-9
