"""The scheduler in seconds: every budget against all others, and the price against a finite difference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from goodspeed.scheduling import Demand, SecondsSched, Timing
from goodspeed.scheduling.seconds import MARGIN, _Problem
from goodspeed.timing import EngineLoad, PassCost, PassSample
from goodspeed.utility import AlphaFair

Floats = NDArray[np.float64]


def cost(fixed_s: float = 0.03, row_s: float = 0.0005, token_s: float = 0.001) -> PassCost:
    shapes = [(1, 1), (8, 8), (8, 40), (32, 32), (32, 160)]
    return PassCost([PassSample(n, m, fixed_s + n * row_s + m * token_s) for n, m in shapes])


def demand(
    alpha: list[float],
    *,
    draft_s: list[float] | None = None,
    turnaround_s: list[float] | None = None,
    rate: list[float] | None = None,
    weight: list[float] | None = None,
    limit: int = 16,
    pass_s: float = 0.05,
    model: PassCost | None = None,
    busy: float = 1.0,
) -> Demand:
    count = len(alpha)
    engine = EngineLoad(model or cost(), pass_s, wait_s=pass_s / 2 * busy, row_tokens=3.0, busy=busy)
    return Demand(
        alpha=np.array(alpha),
        goodput=np.ones(count),
        weight=np.array(weight or [1.0] * count),
        limit=np.full(count, limit, dtype=np.int64),
        timing=Timing(
            rate=np.array(rate or [20.0] * count),
            draft_s=np.array(draft_s or [0.005] * count),
            turnaround_s=np.array(turnaround_s or [0.02] * count),
            engine=engine,
        ),
    )


def problem(given_demand: Demand, fairness: float = 1.0) -> _Problem:
    assert given_demand.timing is not None
    return _Problem.of(given_demand, given_demand.timing, AlphaFair(fairness))


streams = st.integers(1, 6)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    count = draw(streams)

    def column(low: float, high: float) -> list[float]:
        return draw(st.lists(st.floats(low, high), min_size=count, max_size=count))

    return demand(
        column(0.0, 1.0),
        draft_s=column(0.0, 0.1),
        turnaround_s=column(0.0, 0.5),
        rate=column(0.5, 100.0),
        weight=column(0.1, 4.0),
        limit=draw(st.integers(0, 20)),
        pass_s=draw(st.floats(0.03, 0.5)),
        busy=draw(st.floats(0.0, 1.0)),
    )


@given(demands(), st.floats(0.0, 50.0), st.sampled_from([0.5, 1.0, 2.0]))
def test_no_budget_is_better_at_the_price(some: Demand, price: float, fairness: float) -> None:
    one = problem(some, fairness)
    prices = np.full(len(some), price)
    budgets = one.best(prices)
    assert (budgets <= one.limit).all()

    def worth(choice: NDArray[np.int64]) -> Floats:
        alone = np.where(choice == 0, MARGIN * one.gradient / one.alone_s, 0.0)
        return one.value(choice, prices) + alone

    for budget in range(int(some.limit.max(initial=0)) + 1):
        other = worth(np.minimum(one.limit, budget))
        assert (worth(budgets) >= other - 1e-9 * np.abs(other) - 1e-12).all()


@given(demands(), st.floats(0.0, 50.0))
def test_a_budget_ends_where_the_next_token_is_too_unlikely_for_its_price(some: Demand, price: float) -> None:
    one = problem(some)
    prices = np.full(len(some), price)
    budgets = one.best(prices)
    least = one.least_chance(budgets, prices)
    last, following = some.alpha**budgets, some.alpha ** (budgets + 1)
    longer = budgets > 1  # with a budget of one the choice was whether to draft at all
    assert (last[longer] >= least[longer] * (1 - 1e-6) - 1e-9).all()
    free = (budgets > 0) & (budgets < some.limit)
    assert (following[free] <= least[free] * (1 + 1e-6) + 1e-9).all()


def test_the_price_is_what_a_second_of_the_engine_costs_everybody() -> None:
    # Streams that go round in one, two and three passes, of which a pass meets one each.
    fixed_s, row_s, token_s = 0.03, 0.0005, 0.001
    times = np.array([1, 2, 3])
    budgets = np.array([0, 3, 5])
    load_s = row_s + token_s * (budgets + 1)
    pass_s = fixed_s + load_s.sum()
    gradient = np.array([0.05, 0.08, 0.03])
    alpha = np.array([0.3, 0.6, 0.9])
    mu = (1 - alpha ** (budgets + 1)) / (1 - alpha)
    own_s = times * pass_s - np.where(budgets > 0, 1.5, 1.0) * pass_s  # what of the cycle is not the engine's

    def utility(extra: float) -> float:
        """Of everybody, where the engine also does `extra` seconds of something else in a second."""
        length_s = pass_s
        for _ in range(300):
            cycle = own_s + np.where(budgets > 0, 1.5, 1.0) * length_s
            length_s = fixed_s + (times * length_s / cycle * load_s).sum() + length_s * extra
        cycle = own_s + np.where(budgets > 0, 1.5, 1.0) * length_s
        return float((times * gradient * mu / cycle).sum())

    step = 1e-5
    expected = (utility(-step) - utility(step)) / (2 * step)
    engine = EngineLoad(cost(fixed_s, row_s, token_s), pass_s, wait_s=pass_s / 2, row_tokens=load_s.mean(), busy=1.0)
    found = _Problem(
        log_gradient=np.log(gradient),
        gradient=gradient,
        log_alpha=np.log(alpha),
        miss=1 - alpha,
        limit=np.full(3, 16),
        cycle_s=times * pass_s,
        per_token_s=np.zeros(3),
        alone_s=pass_s,
        row_s=engine.cost.row_s,
        token_s=engine.cost.token_s,
        pass_s=pass_s,
        fixed_s=engine.cost.fixed_s,
        busy=1.0,
        held_up=1.5,
    ).price(budgets)
    assert found[0] == pytest.approx(expected, rel=1e-3)
    assert found[1].sum() == pytest.approx(found[0])


def test_a_hopeless_or_far_away_draft_is_not_waited_for() -> None:
    plan = SecondsSched().plan(demand([0.05, 0.9, 0.9], turnaround_s=[0.01, 2.0, 0.01]), 100)
    assert plan.budgets[0] == 0
    assert plan.budgets[1] == 0
    assert plan.budgets[2] > 2


def test_faster_agents_and_better_drafts_draft_more() -> None:
    plan = SecondsSched().plan(demand([0.9, 0.9, 0.75], draft_s=[0.001, 0.01, 0.001]), 1000)
    assert plan.budgets[0] > plan.budgets[1] > 0
    assert plan.budgets[0] > plan.budgets[2] > 0


def test_a_dear_engine_shortens_drafts() -> None:
    light = demand([0.9] * 4, model=cost(token_s=0.0001))
    heavy = demand([0.9] * 4, model=cost(token_s=0.02))
    assert SecondsSched().plan(heavy, 1000).budgets.sum() < SecondsSched().plan(light, 1000).budgets.sum()


@given(demands(), st.integers(0, 40), st.integers(1, 5))
def test_a_capacity_is_kept(some: Demand, capacity: int, plans: int) -> None:
    scheduler = SecondsSched()
    for _ in range(plans):
        plan = scheduler.plan(some, capacity)
        assert plan.budgets.sum() <= capacity
        assert ((plan.budgets >= 0) & (plan.budgets <= some.limit)).all()
        assert plan.price >= 0


def test_what_has_no_timing_is_refused() -> None:
    bare = Demand(np.ones(1), np.ones(1), np.ones(1), np.ones(1, dtype=np.int64))
    with pytest.raises(ValueError, match="timing"):
        SecondsSched().plan(bare, 1)
