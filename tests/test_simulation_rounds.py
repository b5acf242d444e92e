"""The paper's own model: gradient scheduling behind a barrier, against an optimum that is found without it."""

import numpy as np
import pytest

from bench.simulated.rounds import boxes, follow_expectations, follow_samples, gap, instances, replay

INSTANCES = instances(9)


@pytest.mark.parametrize("number", range(len(INSTANCES)))
def test_goodput_converges_to_the_optimum_in_expectation(number: int) -> None:
    """Rates known, every round as expected, a small constant beta: three kinds of fairness, random weights."""
    gaps = gap(INSTANCES[number], follow_expectations(INSTANCES[number], rounds=200))
    assert gaps[0] > 0.05
    assert gaps[150:].max() < 0.01


@pytest.mark.parametrize("number", range(2))
def test_goodput_converges_to_the_optimum_when_rates_are_estimated_and_acceptances_drawn(number: int) -> None:
    """Equations (3) to (5) as they stand, and what a single run leaves to chance is allowed for."""
    random = np.random.default_rng(number)
    mean = np.mean([follow_samples(INSTANCES[number], random) for _ in range(8)], axis=0)
    assert gap(INSTANCES[number], mean)[-1] < 0.03
    long_run = follow_samples(INSTANCES[number], random, rounds=1500)
    assert gap(INSTANCES[number], long_run[-1:])[0] < 0.02


def test_the_signs_of_the_papers_figures_3_and_4() -> None:
    ours, fixed, randomly = (
        replay(boxes(seed=1), schedule, rounds=300, seed=1) for schedule in ("GoodSpeed-Sched", "Fixed-S", "Random-S")
    )
    assert ours.utility[-1] > fixed.utility[-1] > randomly.utility[-1]
    assert randomly.wall_s > 1.05 * fixed.wall_s
    assert ours.wall_s == pytest.approx(fixed.wall_s, rel=0.05)
    assert ours.verification_s <= fixed.verification_s
    assert ours.receiving_s > fixed.receiving_s
