import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.errors import InvalidRequest
from goodspeed.utility import MAX_FAIRNESS, MIN_GOODPUT, AlphaFair, jain_index

goodputs = st.lists(st.floats(0.01, 1000), min_size=1, max_size=8).map(np.array)


@given(st.floats(0, MAX_FAIRNESS), goodputs, st.floats(1e-3, 1e3))
def test_values_stay_finite_and_can_be_summed(fairness: float, goodput: np.ndarray, weight: float) -> None:
    assert np.isfinite(AlphaFair(fairness).value(np.append(goodput, 0.0), weight).sum())


@pytest.mark.parametrize("fairness", [-0.1, math.nan, math.inf, 2 * MAX_FAIRNESS])
def test_an_exponent_out_of_range_is_refused(fairness: float) -> None:
    with pytest.raises(InvalidRequest, match="must be 0"):
        AlphaFair(fairness)


@given(goodputs, st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]), st.floats(0.1, 10))
def test_the_gradient_is_that_of_the_value(goodput: np.ndarray, fairness: float, weight: float) -> None:
    utility = AlphaFair(fairness)
    step = 1e-5 * goodput
    slope = (utility.value(goodput + step, weight) - utility.value(goodput - step, weight)) / (2 * step)
    np.testing.assert_allclose(weight * np.exp(utility.log_gradient(goodput)), slope, rtol=1e-4)


def test_familiar_members() -> None:
    x = np.array([1.0, 4.0])
    assert AlphaFair(0.0).value(x).tolist() == [1.0, 4.0]
    assert AlphaFair(1.0).value(x, 2.0).tolist() == [0.0, pytest.approx(2 * math.log(4))]
    assert AlphaFair(2.0).value(x).tolist() == [-1.0, -0.25]


@given(st.floats(0, 1000), st.floats(0, 1e9))
def test_gradients_stay_finite_at_any_exponent(fairness: float, goodput: float) -> None:
    assert np.isfinite(AlphaFair(fairness).log_gradient(np.array([goodput, 0.0]))).all()


def test_nothing_at_all_is_still_worth_something_finite() -> None:
    assert AlphaFair().value(np.zeros(1)).tolist() == [pytest.approx(math.log(MIN_GOODPUT))]


@given(st.lists(st.floats(0, 1e300), max_size=8))
def test_jain_is_between_one_share_and_one(goodput: list[float]) -> None:
    index = jain_index(np.array(goodput))
    assert 1 / max(1, len(goodput)) - 1e-9 <= index <= 1 + 1e-9


def test_jain_at_its_ends() -> None:
    assert jain_index(np.array([3.0, 3.0, 3.0])) == pytest.approx(1.0)
    assert jain_index(np.array([0.0, 0.0, 5.0, 0.0])) == pytest.approx(0.25)
    assert jain_index(np.zeros(3)) == jain_index(np.zeros(0)) == 1.0
    assert jain_index(np.array([1.0, 2.0, 3.0])) == pytest.approx(36 / (3 * 14))
