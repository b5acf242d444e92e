"""The scheduler in seconds: every budget against all others, and the price against what the engine earns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.simulated.optimum import allocations
from goodspeed.estimation import expected_tokens
from goodspeed.scheduling import Demand, SecondsSched, Timing
from goodspeed.timing import EngineLoad, PassCost, PassSample
from goodspeed.utility import AlphaFair

Floats = NDArray[np.float64]
FAIRNESS = [0.0, 0.5, 1.0, 2.0]
SHAPES = [(1, 1), (8, 8), (8, 40), (32, 32), (32, 160)]
PLENTY = 10**6


def cost(token_s: float = 0.001) -> PassCost:
    return PassCost([PassSample(n, m, 0.03 + n * 0.0005 + m * token_s) for n, m in SHAPES])


MODELS = {token_s: cost(token_s) for token_s in (0.0001, 0.001, 0.005, 0.02)}


def demand(
    alpha: list[float],
    *,
    rate: list[float] | None = None,
    weight: list[float] | None = None,
    limit: int = 16,
    token_s: float = 0.001,
    rows: float = 1.0,
) -> Demand:
    count = len(alpha)
    return Demand(
        alpha=np.array(alpha),
        goodput=np.ones(count),
        weight=np.array(weight or [1.0] * count),
        limit=np.full(count, limit, dtype=np.int64),
        timing=Timing(
            rate=np.array(rate or [20.0] * count),
            draft_s=np.full(count, 0.005),
            turnaround_s=np.full(count, 0.02),
            engine=EngineLoad(MODELS[token_s], pass_s=0.05, rows=rows),
        ),
    )


def prices(some: Demand, fairness: float) -> tuple[Floats, float, float]:
    """Of a token of each stream, `g`; of a second, `v`; and the seconds that a token takes."""
    assert some.timing is not None
    gradient = some.weight * some.timing.rate**-fairness
    second = float((gradient * some.timing.rate).sum()) * max(1.0, some.timing.engine.rows / len(some))
    return gradient, second, some.timing.engine.cost.token_s


def objective(some: Demand, budgets: tuple[int, ...] | list[int], fairness: float) -> float:
    """What a pass earns beyond what its time would earn anyway."""
    gradient, second, token_s = prices(some, fairness)
    earned = [g * expected_tokens(a, k) for g, a, k in zip(gradient, some.alpha, budgets, strict=True)]
    return float(sum(earned)) - second * token_s * sum(budgets)


@st.composite
def demands(draw: st.DrawFn, most: int = 3, longest: int = 5) -> Demand:
    count = draw(st.integers(1, most))

    def column(elements: st.SearchStrategy[float]) -> list[float]:
        return draw(st.lists(elements, min_size=count, max_size=count))

    return demand(
        column(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0.0, 1.0)),
        rate=column(st.floats(0.5, 100.0)),
        weight=column(st.sampled_from([0.0, 1.0]) | st.floats(0.1, 4.0)),
        limit=draw(st.integers(0, longest)),
        token_s=draw(st.sampled_from(list(MODELS))),
        rows=draw(st.sampled_from([1.0, 2.5, 8.0])),
    )


@given(demands(), st.sampled_from(FAIRNESS), st.just(PLENTY) | st.integers(0, 8))
def test_no_budgets_are_better(some: Demand, fairness: float, capacity: int) -> None:
    budgets = SecondsSched(AlphaFair(fairness)).plan(some, capacity).budgets.tolist()
    best = max(objective(some, choice, fairness) for choice in allocations(some.limit.tolist(), capacity))
    assert sum(budgets) <= capacity
    assert objective(some, budgets, fairness) == pytest.approx(best, abs=1e-9, rel=1e-9)


@given(demands(most=6, longest=20), st.sampled_from(FAIRNESS))
def test_a_budget_ends_where_the_next_token_is_not_worth_its_time(some: Demand, fairness: float) -> None:
    gradient, second, token_s = prices(some, fairness)
    budgets = SecondsSched(AlphaFair(fairness)).plan(some, PLENTY).budgets
    last, following = gradient * some.alpha**budgets, gradient * some.alpha ** (budgets + 1)
    drafts, ends = budgets > 0, budgets < some.limit
    assert (last[drafts] >= second * token_s * (1 - 1e-9)).all()
    assert (following[ends] <= second * token_s * (1 + 1e-9)).all()


@given(demands(most=6), st.sampled_from(FAIRNESS), st.just(PLENTY) | st.integers(0, 8))
def test_what_a_token_is_worth_in_seconds_is_its_gradient(some: Demand, fairness: float, capacity: int) -> None:
    gradient, second, _ = prices(some, fairness)
    worth_s = SecondsSched(AlphaFair(fairness)).plan(some, capacity).worth_s
    assert worth_s is not None
    assert worth_s * second == pytest.approx(gradient)


@given(demands(most=6), st.integers(-3, 12))
def test_a_capacity_takes_the_dearest_tokens_of_those_that_pay(some: Demand, capacity: int) -> None:
    gradient, _, _ = prices(some, 1.0)
    free, within = (SecondsSched().plan(some, most).budgets for most in (PLENTY, capacity))
    assert (within <= free).all()
    assert within.sum() == min(max(capacity, 0), free.sum())

    def values(budgets: NDArray[np.int64]) -> list[float]:
        return [g * a**k for g, a, n in zip(gradient, some.alpha, budgets, strict=True) for k in range(1, n + 1)]

    dearest = sorted(values(free), reverse=True)[: max(capacity, 0)]
    assert sorted(values(within), reverse=True) == pytest.approx(dearest)


@given(demands(), st.sampled_from(FAIRNESS), st.integers(1, 8))
def test_where_the_capacity_binds_its_price_is_that_of_the_next_token(
    some: Demand, fairness: float, capacity: int
) -> None:
    scheduler = SecondsSched(AlphaFair(fairness))
    gradient, _, _ = prices(some, fairness)
    now, more = scheduler.plan(some, capacity), scheduler.plan(some, capacity + 1)
    following = more.budgets - now.budgets
    if following.sum() == 1:
        assert now.price == pytest.approx(float((gradient * some.alpha**more.budgets)[following == 1][0]))


def test_under_log_the_price_of_a_second_is_the_sum_of_the_weights() -> None:
    some = demand([0.9, 0.5, 0.1], rate=[3.0, 50.0, 7.0], weight=[1.0, 2.0, 0.5])
    plan = SecondsSched().plan(some, PLENTY)
    assert plan.price == pytest.approx(3.5 * MODELS[0.001].token_s)


def test_a_stream_that_is_planned_alone_counts_those_who_share_the_pass() -> None:
    crowd = SecondsSched().plan(demand([0.9] * 8, limit=64, rows=8.0), PLENTY)
    alone = SecondsSched().plan(demand([0.9], limit=64, rows=8.0), PLENTY)
    by_itself = SecondsSched().plan(demand([0.9], limit=64), PLENTY)
    assert alone.budgets.tolist() == crowd.budgets[:1].tolist()
    assert alone.price == pytest.approx(crowd.price)
    assert by_itself.budgets[0] > alone.budgets[0]


def test_a_dear_engine_shortens_drafts_and_a_hopeless_one_gets_none() -> None:
    cheap, dear = (SecondsSched().plan(demand([0.9, 0.6, 0.01], token_s=each), PLENTY) for each in (0.0001, 0.005))
    assert (dear.budgets[:2] < cheap.budgets[:2]).all()
    assert dear.budgets[2] == 0


def test_weight_buys_budget_and_goodput_gives_way() -> None:
    heavy = SecondsSched().plan(demand([0.8, 0.8], weight=[4.0, 1.0]), PLENTY)
    slow = SecondsSched().plan(demand([0.8, 0.8], rate=[5.0, 50.0]), PLENTY)
    assert heavy.budgets[0] > heavy.budgets[1]
    assert slow.budgets[0] > slow.budgets[1]


def test_neither_the_network_nor_the_drafters_speed_changes_what_a_pass_verifies() -> None:
    near = demand([0.9, 0.7])
    assert near.timing is not None
    far = replace(near, timing=replace(near.timing, turnaround_s=np.full(2, 2.0), draft_s=np.full(2, 0.2)))
    plans = [SecondsSched().plan(some, PLENTY) for some in (near, far)]
    assert plans[0].budgets.tolist() == plans[1].budgets.tolist()


def test_ten_thousand_streams() -> None:
    random, count = np.random.default_rng(0), 10_000
    some = demand(random.random(count).tolist(), rate=random.exponential(5, count).tolist(), token_s=0.0001)
    free = SecondsSched().plan(some, PLENTY)
    budgets = SecondsSched().plan(some, 500).budgets
    assert budgets.sum() == min(500, free.budgets.sum())
    assert (budgets <= free.budgets).all()
    assert free.worth_s is not None
    assert np.isfinite(free.worth_s).all()


@pytest.mark.parametrize("fairness", [50.0, 500.0])
@pytest.mark.parametrize("capacity", [PLENTY, 5])
def test_max_min_is_approached_without_overflow(fairness: float, capacity: int) -> None:
    plan = SecondsSched(AlphaFair(fairness)).plan(demand([0.9, 0.99], rate=[1e-3, 1e3], limit=8), capacity)
    assert plan.budgets.tolist() == [min(8, capacity), 0]
    assert plan.worth_s is not None
    assert plan.worth_s[0] > plan.worth_s[1] >= 0
    assert np.isfinite(plan.price)


def test_nobody_at_all() -> None:
    assert SecondsSched().plan(demand([]), 10).budgets.tolist() == []


def test_what_has_no_timing_is_refused() -> None:
    bare = Demand(np.ones(1), np.ones(1), np.ones(1), np.ones(1, dtype=np.int64))
    with pytest.raises(ValueError, match="timing"):
        SecondsSched().plan(bare, 1)
