import math

import pytest

from goodspeed.errors import InvalidRequest
from goodspeed.sampling import SamplingParams


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_p=0.95, top_k=50, min_p=0.05, seed=2**63 - 1),
        SamplingParams(temperature=1e6, top_p=1e-9, top_k=2**31 - 1, min_p=1.0),
    ],
)
def test_values_in_range_are_accepted(params: SamplingParams) -> None:
    params.validate()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in (-0.1, math.nan, math.inf, -math.inf)),
        *(("top_p", value) for value in (0.0, -0.5, 1.0001, math.nan, math.inf)),
        *(("top_k", value) for value in (-1, 2**31, 10**20)),
        *(("min_p", value) for value in (-0.1, 1.1, math.nan)),
        *(("seed", value) for value in (-1, 2**63)),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field} is .*: it must be .*"):
        SamplingParams(**{field: value}).validate()  # type: ignore[arg-type]


def test_greedy_means_too_cold_for_noise() -> None:
    assert SamplingParams().greedy
    assert SamplingParams(temperature=1e-30).greedy
    assert not SamplingParams(temperature=0.01).greedy


@pytest.mark.parametrize("params", [SamplingParams(top_p=0.9), SamplingParams(top_k=1), SamplingParams(min_p=0.1)])
def test_truncated(params: SamplingParams) -> None:
    assert params.truncated
    assert not SamplingParams(temperature=1.0).truncated
