"""The cost model against passes whose cost is known, and an agent's pace against its own clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.timing import EngineMeter, Pace, PassCost, PassSample

SHAPES = [(1, 1), (2, 2), (8, 8), (1, 9), (8, 40), (32, 32), (32, 160)]
seconds = st.floats(0, 0.1, allow_subnormal=False)


def samples(fixed: float, row: float, token: float, shapes: list[tuple[int, int]] = SHAPES) -> list[PassSample]:
    return [PassSample(rows, tokens, fixed + rows * row + tokens * token) for rows, tokens in shapes]


@given(st.floats(1e-4, 0.1), seconds, seconds)
def test_a_cost_that_is_affine_is_found(fixed: float, row: float, token: float) -> None:
    cost = PassCost(samples(fixed, row, token))
    for rows, tokens in [*SHAPES, (16, 100)]:
        assert cost.seconds(rows, tokens) == pytest.approx(fixed + rows * row + tokens * token, rel=1e-3)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 9), st.floats(1e-4, 1.0)), min_size=1, max_size=20))
def test_nothing_costs_less_than_nothing_and_the_fit_is_the_best_such(data: list[tuple[int, int, float]]) -> None:
    measured = [PassSample(rows, rows * each, time) for rows, each, time in data]
    cost = PassCost(measured)
    found = np.array([cost.fixed_s, cost.row_s, cost.token_s])
    assert (found >= 0).all()

    def error(coefficients: np.ndarray) -> float:
        return float(sum(((coefficients @ (1.0, s.rows, s.tokens)) / s.seconds - 1) ** 2 for s in measured))

    rng = np.random.default_rng(0)
    for _ in range(50):
        other = np.maximum(found + rng.normal(size=3) * 10.0 ** rng.uniform(-6, 0), 0)
        assert error(found) <= error(other) + 1e-6


def test_a_machine_that_slows_down_is_followed_without_forgetting_the_slopes() -> None:
    cost = PassCost(samples(0.02, 0.001, 0.002))
    for _ in range(500):
        cost.observe(PassSample(8, 24, 2 * (0.02 + 8 * 0.001 + 24 * 0.002)))
    assert cost.seconds(8, 24) == pytest.approx(2 * 0.076, rel=0.1)
    assert (cost.fixed_s, cost.row_s, cost.token_s) == pytest.approx((0.04, 0.002, 0.004), rel=0.5)
    cost.observe(PassSample(8, 24, 0.0))
    assert cost.seconds(8, 24) == pytest.approx(2 * 0.076, rel=0.1)


def test_a_pace_is_learnt() -> None:
    pace = Pace()
    pace.observe(4, elapsed_s=0.140, computed_s=0.080)
    assert (pace.draft_s, pace.turnaround_s) == pytest.approx((0.02, 0.06))
    for _ in range(100):
        pace.observe(6, elapsed_s=0.050 + 6 * 0.03, computed_s=6 * 0.03)
    assert (pace.draft_s, pace.turnaround_s) == pytest.approx((0.03, 0.05), rel=0.01)


@given(st.integers(0, 16), st.floats(0, 10), st.floats(-5, 50))
def test_a_claim_cannot_change_the_whole(drafted: int, elapsed: float, claimed: float) -> None:
    pace = Pace()
    pace.observe(drafted, elapsed, claimed)
    assert pace.draft_s >= 0
    assert pace.turnaround_s >= 0
    assert pace.turnaround_s + pace.draft_s * drafted == pytest.approx(elapsed, abs=1e-9)


@given(st.integers(1, 16), st.floats(0, 10), st.floats(-5, 50))
def test_a_further_piece_says_nothing_of_the_turnaround_and_no_claim_exceeds_what_passed(
    drafted: int, elapsed: float, claimed: float
) -> None:
    pace = Pace(draft_s=0.01, turnaround_s=0.05)
    for _ in range(200):
        pace.observe_more(drafted, elapsed, claimed)
    assert pace.turnaround_s == 0.05
    assert pace.draft_s == pytest.approx(min(max(claimed, 0.0), elapsed) / drafted, abs=1e-6)


def test_a_draft_in_pieces_teaches_the_same_as_one_in_a_whole() -> None:
    whole, pieces = Pace(), Pace()
    for _ in range(100):
        whole.observe(4, elapsed_s=0.05 + 4 * 0.02, computed_s=4 * 0.02)
        pieces.observe(1, elapsed_s=0.05 + 0.02, computed_s=0.02)
        pieces.observe_more(3, elapsed_s=3 * 0.02, computed_s=3 * 0.02)
    assert (pieces.draft_s, pieces.turnaround_s) == pytest.approx((whole.draft_s, whole.turnaround_s), rel=0.01)


def test_an_engine_says_how_long_its_passes_take_and_how_many_rows_they_have() -> None:
    meter = EngineMeter(PassCost(samples(0.02, 0.001, 0.002)))
    assert meter.load.rows == 1
    for _ in range(200):
        meter.observe(PassSample(8, 24, 0.076))
    assert meter.load.rows == pytest.approx(8, rel=0.01)
    assert meter.load.pass_s == pytest.approx(0.076, rel=0.01)


def test_the_first_passes_are_averaged_evenly() -> None:
    """What was expected of a lone token says nothing of a full server's passes."""
    meter = EngineMeter(PassCost([PassSample(1, 1, 0.01), PassSample(8, 8, 0.02), PassSample(8, 40, 0.05)]))
    for count, seconds in enumerate([0.2, 0.4, 0.6], start=1):
        meter.observe(PassSample(8 * count, 8 * count, seconds))
    assert meter.load.pass_s == pytest.approx(0.4)
    assert meter.load.rows == pytest.approx(16)
