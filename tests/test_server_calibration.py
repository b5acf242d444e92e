"""Passes measured on an engine whose cost is known."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.timing import PassCost
from goodspeed_server.calibration import measure_passes
from tests.planted import PlantedEngine

planted = st.tuples(st.floats(1e-3, 0.1), st.floats(0, 0.01), st.floats(0, 0.01))
"""Seconds of a pass, of each row in it, of each token in it."""


def seconds(planted: tuple[float, float, float], rows: float, tokens: float) -> float:
    return float(np.dot(planted, (1, rows, tokens)))


@given(planted, st.integers(1, 100), st.integers(1, 200))
def test_every_pass_is_measured_as_long_as_it_was(cost: tuple[float, float, float], rows: int, max_length: int) -> None:
    engine = PlantedEngine(rows, max_length, cost=lambda *size: seconds(cost, *size))
    measured = measure_passes(engine)
    for sample in measured:
        assert sample.seconds == pytest.approx(seconds(cost, sample.rows, sample.tokens))
    assert {1, rows} <= {sample.rows for sample in measured if sample.tokens == sample.rows}
    assert engine.free_rows == rows


@given(planted, st.integers(2, 100))
def test_the_cost_model_finds_the_planted_cost_and_goes_on_beyond_it(
    cost: tuple[float, float, float], rows: int
) -> None:
    fitted = PassCost(measure_passes(PlantedEngine(rows, cost=lambda *size: seconds(cost, *size))))
    for many, each in [(1, 1), (rows, 1), (rows, 5), (rows, 9), (1, 40)]:
        assert fitted.seconds(many, many * each) == pytest.approx(seconds(cost, many, many * each), rel=1e-3)


def test_the_engine_is_warm_when_it_is_measured() -> None:
    seen = Counter[tuple[int, int]]()

    def cold_at_first(rows: int, tokens: int) -> float:
        seen[rows, tokens] += 1
        return 5.0 if seen[rows, tokens] == 1 else 0.01

    measured = measure_passes(PlantedEngine(8, cost=cold_at_first))
    assert [sample.seconds for sample in measured] == pytest.approx([0.01] * len(measured))


@pytest.mark.parametrize("failing", [1, 2, 17])
def test_rows_are_given_back_when_a_pass_fails(failing: int) -> None:
    passes = iter(range(1, 100))

    def cost(_rows: int, _tokens: int) -> float:
        if next(passes) == failing:
            raise RuntimeError("out of memory")
        return 0.01

    engine = PlantedEngine(5, cost=cost)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure_passes(engine)
    assert engine.free_rows == 5
