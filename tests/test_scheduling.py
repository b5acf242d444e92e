from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.simulated.optimum import allocations
from goodspeed.errors import InvalidRequest, SchedulerFault
from goodspeed.estimation import expected_tokens
from goodspeed.scheduling import (
    SCHEDULERS,
    Demand,
    FixedS,
    GoodSpeedSched,
    PlainDecoding,
    Plan,
    RandomS,
    Scheduler,
    ThroughputSched,
    Timing,
    checked_plan,
    make_scheduler,
)
from goodspeed.timing import EngineLoad, PassCost, PassSample
from goodspeed.utility import AlphaFair

FAIRNESS = [0.0, 0.5, 1.0, 2.0]
Floats = NDArray[np.float64]


def demand(
    alpha: list[float],
    goodput: list[float] | None = None,
    weight: list[float] | None = None,
    limit: int | list[int] = 64,
) -> Demand:
    count = len(alpha)
    limits = [limit] * count if isinstance(limit, int) else limit
    return Demand(
        alpha=np.array(alpha, dtype=float),
        goodput=np.array(goodput or [1.0] * count),
        weight=np.array(weight or [1.0] * count),
        limit=np.array(limits, dtype=np.int64),
    )


def objective(given_demand: Demand, budgets: tuple[int, ...] | list[int], fairness: float) -> float:
    """Equation (5), term by term."""
    terms = [
        weight * goodput**-fairness * expected_tokens(alpha, budget)
        for alpha, goodput, weight, budget in zip(
            given_demand.alpha, given_demand.goodput, given_demand.weight, budgets, strict=True
        )
    ]
    return float(sum(terms))


alphas = st.sampled_from([0.0, 1.0, 0.5, 0.9]) | st.floats(0, 1)


@st.composite
def small_demands(draw: st.DrawFn) -> Demand:
    count = draw(st.integers(1, 4))

    def some(elements: st.SearchStrategy[float]) -> list[float]:
        return draw(st.lists(elements, min_size=count, max_size=count))

    return demand(
        some(alphas),
        some(st.sampled_from([1.0, 2.0]) | st.floats(0.5, 10)),
        some(st.sampled_from([1.0, 2.0]) | st.floats(0.1, 5)),
        [int(limit) for limit in some(st.integers(0, 5))],
    )


@settings(max_examples=120)
@given(small_demands(), st.integers(0, 12), st.sampled_from(FAIRNESS))
def test_no_allocation_is_better(small: Demand, capacity: int, fairness: float) -> None:
    plan = GoodSpeedSched(AlphaFair(fairness)).plan(small, capacity)
    budgets = plan.budgets.tolist()
    best = max(objective(small, budgets, fairness) for budgets in allocations(small.limit.tolist(), capacity))
    assert sum(budgets) <= capacity
    assert objective(small, budgets, fairness) == pytest.approx(best, abs=1e-9, rel=1e-9)


@given(small_demands(), st.integers(0, 12), st.sampled_from(FAIRNESS))
def test_the_price_is_what_one_more_token_would_bring(small: Demand, capacity: int, fairness: float) -> None:
    scheduler = GoodSpeedSched(AlphaFair(fairness))
    now, more = scheduler.plan(small, capacity), scheduler.plan(small, capacity + 1)
    gain = objective(small, more.budgets.tolist(), fairness) - objective(small, now.budgets.tolist(), fairness)
    if capacity > 0:
        assert now.price == pytest.approx(gain, abs=1e-9, rel=1e-9)


@given(small_demands(), st.integers(0, 12), st.sampled_from(FAIRNESS))
def test_what_is_useful_is_used(small: Demand, capacity: int, fairness: float) -> None:
    useful = int(small.limit[small.alpha > 1e-12].sum())
    assert GoodSpeedSched(AlphaFair(fairness)).plan(small, capacity).budgets.sum() == min(useful, capacity)


@st.composite
def large_demands(draw: st.DrawFn) -> Demand:
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(0, 300))
    steep = draw(st.sampled_from([0.2, 1.0, 5.0]))
    return Demand(
        alpha=random.random(count) ** (1 / steep),
        goodput=random.exponential(5, count) + 1e-3,
        weight=random.choice([0.0, 0.5, 1.0, 1.0, 7.0], count),
        limit=random.integers(0, draw(st.sampled_from([1, 8, 64])) + 1, count),
    )


def greedily(given_demand: Demand, capacity: int, fairness: float) -> float:
    """The largest objective, by sorting every token's value outright."""
    values = np.concatenate(
        [
            weight * goodput**-fairness * alpha ** np.arange(1, limit + 1)
            for alpha, goodput, weight, limit in zip(
                given_demand.alpha, given_demand.goodput, given_demand.weight, given_demand.limit, strict=True
            )
        ]
        or [np.zeros(0)]
    )
    return float(np.sort(values)[::-1][:capacity].sum())


@given(large_demands(), st.integers(0, 3000), st.sampled_from([*FAIRNESS, 20.0]))
def test_large_cases_agree_with_taking_the_dearest_tokens(large: Demand, capacity: int, fairness: float) -> None:
    plan = GoodSpeedSched(AlphaFair(fairness)).plan(large, capacity)
    scale = large.weight * large.goodput**-fairness
    alpha = np.minimum(large.alpha, 1 - 1e-15)
    gained = float((scale * alpha * (1 - alpha**plan.budgets) / (1 - alpha)).sum())
    assert gained == pytest.approx(greedily(large, capacity, fairness), rel=1e-9)


SCHEDULES: list[Scheduler] = [
    *(GoodSpeedSched(AlphaFair(fairness)) for fairness in (*FAIRNESS, 300.0)),
    FixedS(),
    FixedS(3),
    RandomS(),
    ThroughputSched(),
    PlainDecoding(),
]


@given(large_demands(), st.integers(-5, 3000) | st.just(10**9), st.sampled_from(SCHEDULES))
def test_nobody_exceeds_capacity_or_limits(large: Demand, capacity: int, scheduler: Scheduler) -> None:
    plan = scheduler.plan(large, capacity)
    assert plan.budgets.dtype == np.int64
    assert plan.budgets.shape == (len(large),)
    assert (plan.budgets >= 0).all()
    assert (plan.budgets <= large.limit).all()
    assert plan.budgets.sum() <= max(0, capacity)
    assert plan.price >= 0.0


def test_budgets_of_alpha_one_and_zero() -> None:
    plan = GoodSpeedSched().plan(demand([1.0, 0.0, 1.0], limit=[10, 10, 10]), 15)
    assert plan.budgets[1] == 0
    assert plan.budgets.sum() == 15
    assert plan.price == pytest.approx(1.0)
    assert GoodSpeedSched().plan(demand([0.0, 0.0]), 10).budgets.tolist() == [0, 0]


def test_nobody_at_all() -> None:
    for scheduler in SCHEDULES:
        assert scheduler.plan(demand([]), 10).budgets.tolist() == []


def test_weight_buys_budget_and_goodput_gives_way() -> None:
    plan = GoodSpeedSched().plan(demand([0.8, 0.8], weight=[4.0, 1.0]), 10)
    assert plan.budgets[0] > plan.budgets[1] > 0
    plan = GoodSpeedSched().plan(demand([0.8, 0.8], goodput=[6.0, 2.0]), 10)
    assert plan.budgets[0] < plan.budgets[1]
    assert GoodSpeedSched().plan(demand([0.8, 0.8], weight=[0.0, 1.0]), 10).budgets.tolist() == [0, 10]


@pytest.mark.parametrize("fairness", [50.0, 500.0])
def test_max_min_is_approached_without_overflow(fairness: float) -> None:
    plan = GoodSpeedSched(AlphaFair(fairness)).plan(demand([0.5, 0.99], goodput=[1e-9, 1e6], limit=8), 9)
    assert plan.budgets.tolist() == [8, 1]
    plan = GoodSpeedSched(AlphaFair(fairness)).plan(demand([0.5, 0.99], goodput=[1e-9, 1e6], limit=8), 5)
    assert plan.budgets.tolist() == [5, 0]
    assert np.isfinite(plan.price)


@pytest.mark.parametrize(("capacity", "streams"), [(28, 4), (20, 8), (10, 4), (3, 8), (1, 5), (100, 7)])
def test_fixed_spreads_the_remainder_over_rounds(capacity: int, streams: int) -> None:
    scheduler = FixedS()
    rounds = [scheduler.plan(demand([0.5] * streams), capacity).budgets for _ in range(streams)]
    for budgets in rounds:
        assert budgets.sum() == capacity
        assert budgets.max() - budgets.min() <= 1
    assert np.sum(rounds, axis=0).tolist() == [capacity] * streams


def test_fixed_lengths() -> None:
    assert FixedS(3).plan(demand([0.5] * 4), 100).budgets.tolist() == [3] * 4
    assert FixedS(3).plan(demand([0.5] * 4, limit=[1, 0, 9, 9]), 100).budgets.tolist() == [1, 0, 3, 3]
    assert FixedS(3).plan(demand([0.5] * 4), 9).budgets.sum() == 9
    assert FixedS(0).plan(demand([0.5] * 4), 9).budgets.sum() == 0
    with pytest.raises(InvalidRequest, match="must be 0"):
        FixedS(-1)


def test_streams_that_cannot_draft_leave_their_share_to_others() -> None:
    assert FixedS().plan(demand([0.5] * 3, limit=[8, 0, 8]), 10).budgets.tolist() == [5, 0, 5]
    assert RandomS().plan(demand([0.5] * 3, limit=[8, 0, 8]), 10).budgets[1] == 0


@pytest.mark.parametrize(("capacity", "streams", "least_use"), [(28, 4, 0.7), (16, 8, 0.7), (2, 8, 0.2), (1, 4, 0.2)])
def test_random_lengths_are_random_and_nearly_fill_the_capacity(capacity: int, streams: int, least_use: float) -> None:
    scheduler = RandomS(seed=3)
    rounds = np.array([scheduler.plan(demand([0.5] * streams), capacity).budgets for _ in range(2000)])
    assert rounds.sum(1).max() <= capacity
    assert least_use * capacity <= rounds.sum(1).mean() <= capacity
    means = rounds.mean(0)
    assert means.max() - means.min() < 0.15 * means.mean() + 0.02
    assert rounds.std(0).min() > 0
    repeated = RandomS(seed=3)
    assert np.array_equal(rounds[0], repeated.plan(demand([0.5] * streams), capacity).budgets)


@given(small_demands(), st.integers(0, 12))
def test_throughput_takes_the_likeliest_tokens_whoever_they_are(small: Demand, capacity: int) -> None:
    def tokens(budgets: tuple[int, ...] | list[int]) -> float:
        return sum(expected_tokens(rate, budget) for rate, budget in zip(small.alpha, budgets, strict=True))

    plan = ThroughputSched().plan(small, capacity)
    best = max(tokens(budgets) for budgets in allocations(small.limit.tolist(), capacity))
    assert plan.budgets.sum() <= capacity
    assert tokens(plan.budgets.tolist()) == pytest.approx(best, abs=1e-9, rel=1e-9)


def test_throughput_asks_neither_who_has_least_nor_who_pays() -> None:
    plan = ThroughputSched().plan(demand([0.9, 0.4], goodput=[9.0, 1.0], weight=[1.0, 50.0]), 8)
    assert plan.budgets.tolist() == [8, 0]


def test_plain_decoding_drafts_nothing() -> None:
    assert PlainDecoding().plan(demand([0.9] * 3), 100).budgets.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_on_offer_can_be_made(name: str) -> None:
    cost = PassCost([PassSample(1, 1, 0.02), PassSample(8, 8, 0.03), PassSample(8, 40, 0.05)])
    timing = Timing(np.full(2, 20.0), np.full(2, 0.01), np.full(2, 0.05), EngineLoad(cost, pass_s=0.03))
    checked_plan(make_scheduler(name, AlphaFair()), replace(demand([0.5, 0.9]), timing=timing), 8)


class Answering:
    """A scheduler of somebody's own."""

    def __init__(self, budgets: object, worth_s: list[float] | None = None) -> None:
        self._budgets = np.asarray(budgets)
        self._worth_s = None if worth_s is None else np.array(worth_s)

    def plan(self, demand: Demand, capacity: int) -> Plan:
        return Plan(self._budgets, worth_s=self._worth_s)


@pytest.mark.parametrize(
    ("budgets", "sentence"),
    [
        ([1], "one integer a stream"),
        ([1.0, 2.0], "one integer a stream"),
        ([-1, 2], "a budget of -1: it must be 0 to 4"),
        ([0, 5], "a budget of 5: it must be 0 to 4"),
        ([4, 4], "gave out 8 tokens: the capacity is 6"),
    ],
)
def test_a_plan_that_cannot_be_is_named(budgets: object, sentence: str) -> None:
    with pytest.raises(SchedulerFault, match=f"Answering .*{sentence}"):
        checked_plan(Answering(budgets), demand([0.5, 0.5], limit=4), 6)


class Raising:
    """Fails only where something is at stake."""

    def __init__(self, answer: object = None) -> None:
        self._answer = answer

    def plan(self, demand: Demand, capacity: int) -> Plan:
        if self._answer is None:
            raise KeyError("alpha")
        return self._answer  # type: ignore[return-value]  # as somebody else's class might


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        (Raising(), "Raising raised KeyError: 'alpha'"),
        (Raising([1, 2]), "Raising answered list: it must be a Plan"),
        (Raising(Plan([[1], [2, 3]])), "Raising answered a Plan of what are no numbers"),  # type: ignore[arg-type]
        (Raising(Plan(np.array([1, 2]), price="dear")), "Plan of what are no numbers"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_a_scheduler_raises_or_answers_beside_a_plan_is_its_fault(scheduler: Raising, sentence: str) -> None:
    with pytest.raises(SchedulerFault, match=sentence):
        checked_plan(scheduler, demand([0.5, 0.5], limit=4), 6)


def test_who_raised_it_can_still_be_seen() -> None:
    with pytest.raises(SchedulerFault) as caught:
        checked_plan(Raising(), demand([0.5]), 6)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_scheduler_cannot_raise_the_limit_that_it_is_held_to() -> None:
    class Generous:
        def plan(self, demand: Demand, capacity: int) -> Plan:
            demand.limit[:] = 5
            return Plan(demand.limit)

    with pytest.raises(SchedulerFault, match="a budget of 5: it must be 0 to 4"):
        checked_plan(Generous(), demand([0.5], limit=4), 6)


def test_a_plan_that_can_be_is_handed_on() -> None:
    assert checked_plan(Answering([2, 4]), demand([0.5, 0.5], limit=4), 6).budgets.tolist() == [2, 4]


@pytest.mark.parametrize("worth_s", [[0.1], [0.1, -0.1], [0.1, float("nan")]])
def test_a_worth_that_cannot_be_is_named(worth_s: list[float]) -> None:
    with pytest.raises(SchedulerFault, match=r"Answering .*0 seconds or more, one a stream"):
        checked_plan(Answering([2, 4], worth_s), demand([0.5, 0.5], limit=4), 6)


def test_schedules_that_count_rounds_do_not_say_what_a_token_is_worth() -> None:
    plan = checked_plan(Answering([2, 4], [0.0, 0.1]), demand([0.5, 0.5], limit=4), 6)
    assert plan.worth_s is not None
    for scheduler in SCHEDULES:
        assert scheduler.plan(demand([0.5, 0.9], limit=4), 6).worth_s is None
