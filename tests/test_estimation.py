from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.estimation import (
    ALPHA_MAX,
    PATIENCE,
    PRIOR_ALPHA,
    AcceptanceEstimator,
    HitOrMiss,
    RatioMean,
    ReachedMean,
    expected_tokens,
    smooth_goodput,
)
from goodspeed.scheduling import Demand, GoodSpeedSched
from goodspeed.utility import AlphaFair
from goodspeed.verification import Judgement

Estimators = Callable[..., AcceptanceEstimator]
NOTHING = Judgement(0, 0)


def seen(random: np.random.Generator, alpha: float, budget: int) -> Judgement:
    """One round at a constant rate, as either rule would see it."""
    hits = random.random(budget) < alpha
    accepted = budget if hits.all() else int(hits.argmin())
    return Judgement(accepted, 0, tuple(np.clip(random.normal(alpha, 0.02, budget), 0, 1).tolist()))


def test_equation_three() -> None:
    estimator = RatioMean(0.5, eta=0.2)
    estimator.observe(3, Judgement(1, 0, (1.0, 0.4, 0.1)))
    assert estimator.alpha == pytest.approx(0.8 * 0.5 + 0.2 * 0.5)
    estimator.observe(2, Judgement(2, 0, (1.0, 1.0)))
    assert estimator.alpha == pytest.approx(0.8 * 0.5 + 0.2 * 1.0)
    assert estimator.optimistic == estimator.alpha


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=30))
def test_where_all_positions_are_reached_it_is_equation_three(rounds_of_ratios: list[list[float]]) -> None:
    hardened, paper = ReachedMean(0.5), RatioMean(0.5)
    for ratios in rounds_of_ratios:
        for estimator in (hardened, paper):
            estimator.observe(4, Judgement(4, 0, tuple(ratios)))
        assert hardened.alpha == pytest.approx(paper.alpha)


def test_what_lies_behind_the_first_rejection_earns_nothing() -> None:
    """A token that cannot stand, and behind it what anybody could have foreseen."""
    estimator = ReachedMean()
    for _ in range(100):
        estimator.observe(8, Judgement(0, 0, (0.0, *(1.0,) * 7)))
    assert estimator.alpha < 0.01


def test_rounds_that_a_bad_position_cuts_short_bend_nothing() -> None:
    """Positions are good or bad by turns nobody foresees; a mean over each round's mean would come to 0.375."""
    random = np.random.default_rng(0)
    estimator, estimates = ReachedMean(eta=0.02), []
    for turn in range(6000):
        ratios = (random.random(2) < 0.5).astype(float)
        estimator.observe(2, Judgement(2 if ratios.all() else int(ratios.argmin()), 0, tuple(ratios.tolist())))
        if turn > 500:
            estimates.append(estimator.alpha)
    assert np.mean(estimates) == pytest.approx(0.5, abs=0.02)


def test_equation_four() -> None:
    assert smooth_goodput(4.0, 1, 0.5) == 2.5
    assert smooth_goodput(4.0, 9, 0.1) == pytest.approx(4.5)


@given(st.floats(0, 1), st.integers(0, 64))
def test_expected_tokens_is_the_geometric_sum(alpha: float, budget: int) -> None:
    assert expected_tokens(alpha, budget) == pytest.approx(sum(alpha**k for k in range(budget + 1)), rel=1e-6)


def test_hits_and_the_miss_that_ends_them() -> None:
    estimator = HitOrMiss(0.5, prior_weight=2, memory=1e9)
    estimator.observe(4, Judgement(3, 0))
    assert estimator.alpha == pytest.approx(4 / 6)
    estimator.observe(2, Judgement(2, 0))
    assert estimator.alpha == pytest.approx(6 / 8)


@pytest.mark.parametrize("alpha", [0.05, 0.4, 0.7, 0.95])
@pytest.mark.parametrize("budget", [1, 3, 8])
def test_hit_or_miss_is_consistent(alpha: float, budget: int) -> None:
    """Neither censoring at the budget nor what lies behind a miss bends it."""
    random = np.random.default_rng(0)
    estimator = HitOrMiss(memory=1e9)
    for _ in range(6000):
        estimator.observe(budget, seen(random, alpha, budget))
    assert estimator.alpha == pytest.approx(alpha, abs=0.02)


@pytest.mark.parametrize("kind", [HitOrMiss, RatioMean, ReachedMean])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_the_mean_estimate_is_the_rate(kind: Estimators, alpha: float) -> None:
    random = np.random.default_rng(1)
    estimator = kind()
    estimates = []
    for turn in range(3000):
        budget = int(random.integers(1, 7))
        estimator.observe(budget, seen(random, alpha, budget))
        if turn > 200:
            estimates.append(estimator.alpha)
    assert np.mean(estimates) == pytest.approx(alpha, abs=0.02)
    assert np.std(estimates) < 0.08


@pytest.mark.parametrize("kind", [HitOrMiss, RatioMean, ReachedMean])
def test_a_change_is_followed(kind: Estimators) -> None:
    random = np.random.default_rng(2)
    estimator = kind()
    for alpha in (0.9, 0.2):
        for _ in range(150):
            estimator.observe(4, seen(random, alpha, 4))
        assert estimator.alpha == pytest.approx(alpha, abs=0.1)


rounds = st.lists(
    st.integers(0, 8).flatmap(
        lambda budget: st.tuples(
            st.just(budget), st.integers(0, budget), st.lists(st.floats(0, 1), max_size=budget).map(tuple)
        )
    ),
    max_size=80,
)


@given(st.sampled_from([HitOrMiss, RatioMean, ReachedMean]), st.floats(0, 1), rounds)
def test_estimates_stay_in_range(
    kind: Estimators, prior: float, history: list[tuple[int, int, tuple[float, ...]]]
) -> None:
    estimator = kind(prior)
    for budget, accepted, ratios in history:
        estimator.observe(budget, Judgement(accepted, 0, ratios))
        assert 0 <= estimator.alpha <= estimator.optimistic <= ALPHA_MAX


@pytest.mark.parametrize("kind", [HitOrMiss, RatioMean, ReachedMean])
def test_a_budget_of_zero_leaves_the_estimate_and_raises_hope(kind: Estimators) -> None:
    estimator = kind()
    for _ in range(30):
        estimator.observe(4, Judgement(0, 0, (0.0,) * 4))
    alpha, hope = estimator.alpha, estimator.optimistic
    for _ in range(PATIENCE):
        estimator.observe(0, NOTHING)
        assert estimator.alpha == pytest.approx(alpha)
        assert hope < estimator.optimistic
        hope = estimator.optimistic
    assert hope == ALPHA_MAX
    for _ in range(100_000):
        estimator.observe(0, NOTHING)
    assert estimator.alpha == pytest.approx(alpha)
    estimator.observe(1, Judgement(1, 0, (1.0,)))
    assert estimator.alpha > 0.6
    estimator.observe(1, Judgement(0, 0, (0.0,)))
    assert estimator.optimistic < ALPHA_MAX


@pytest.mark.parametrize("kind", [HitOrMiss, RatioMean, ReachedMean])
def test_an_agent_with_nothing_to_say_earns_no_hope(kind: Estimators) -> None:
    estimator = kind()
    for _ in range(100):
        estimator.observe(6, NOTHING)
    assert estimator.alpha < 0.05
    assert estimator.optimistic < 0.1


@pytest.mark.parametrize("kind", [HitOrMiss, RatioMean, ReachedMean])
def test_a_short_draft_counts_one_miss_behind_its_end(kind: Estimators) -> None:
    short, full = kind(), kind()
    for _ in range(60):
        short.observe(8, Judgement(3, 0, (1.0,) * 3))
        full.observe(3, Judgement(3, 0, (1.0,) * 3))
    assert short.alpha == pytest.approx(0.75, abs=0.03)
    assert full.alpha > 0.95


@pytest.mark.parametrize("kind", [HitOrMiss, RatioMean, ReachedMean])
@pytest.mark.parametrize("fairness", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("capacity", [1, 4, 8])
@pytest.mark.parametrize("prior", [0.0, PRIOR_ALPHA])
def test_a_bad_first_impression_does_not_last(kind: Estimators, fairness: float, capacity: int, prior: float) -> None:
    """Two streams compete; one is believed hopeless, and is in truth the better."""
    random = np.random.default_rng(5)
    truth = (0.9, 0.97)
    rival, wronged = kind(), kind(prior)
    for _ in range(60):
        rival.observe(4, seen(random, truth[0], 4))
        wronged.observe(2, Judgement(0, 0, (0.0, 0.0)))
    scheduler = GoodSpeedSched(AlphaFair(fairness))
    goodput = [4.0, 1.0]
    budgets = []
    for _ in range(400):
        demand = Demand(
            alpha=np.array([rival.optimistic, wronged.optimistic]),
            goodput=np.array(goodput),
            weight=np.ones(2),
            limit=np.array([64, 64]),
        )
        plan = scheduler.plan(demand, capacity).budgets.tolist()
        budgets.append(plan[1])
        for i, estimator in enumerate((rival, wronged)):
            judgement = seen(random, truth[i], plan[i])
            estimator.observe(plan[i], judgement)
            goodput[i] = smooth_goodput(goodput[i], judgement.accepted + 1, 0.5)
    assert max(budgets[: PATIENCE + 1]) > 0
    assert np.mean(budgets[-150:]) > 0.4 * capacity
    assert wronged.alpha == pytest.approx(truth[1], abs=0.06)


@pytest.mark.parametrize("kind", [HitOrMiss, RatioMean, ReachedMean])
def test_probing_the_hopeless_costs_little(kind: Estimators) -> None:
    random = np.random.default_rng(6)
    good, hopeless = kind(), kind()
    scheduler = GoodSpeedSched()
    goodput = [4.0, 1.0]
    spent = 0
    for turn in range(400):
        alpha = np.array([good.optimistic, hopeless.optimistic])
        plan = scheduler.plan(Demand(alpha, np.array(goodput), np.ones(2), np.array([64, 64])), 8).budgets.tolist()
        for i, estimator in enumerate((good, hopeless)):
            judgement = seen(random, (0.9, 0.0)[i], plan[i])
            estimator.observe(plan[i], judgement)
            goodput[i] = smooth_goodput(goodput[i], judgement.accepted + 1, 0.5)
        spent += plan[1] * (turn >= 100)
    assert 0 < spent < 0.05 * 8 * 300
