"""The utility's weights, against the finite-difference gradient of the utility itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goodspeed.errors import InvalidRequest
from goodspeed.tuning.clients import Client, UtilityGuide
from goodspeed.utility import AlphaFair

positive = st.floats(0.05, 20)


@settings(max_examples=50)
@given(
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
    st.lists(st.tuples(positive, positive, positive), min_size=1, max_size=5),
)
def test_weights_are_the_gradient_of_the_utility_up_to_one_factor(
    fairness: float, figures: list[tuple[float, float, float]]
) -> None:
    clients = [
        Client(str(place), 4, weight=weight, goodput=tokens, rounds_per_s=pace)
        for place, (weight, tokens, pace) in enumerate(figures)
    ]
    guide = UtilityGuide(clients, AlphaFair(fairness))
    weights = guide.weights([client.name for client in clients])
    omega, tokens, pace = np.array(figures).T

    def utility(x: np.ndarray) -> np.ndarray:
        return AlphaFair(fairness).value(x * pace, omega)

    step = 1e-5 * tokens
    slope = (utility(tokens + step) - utility(tokens - step)) / (2 * step)
    np.testing.assert_allclose(list(weights.values()), slope / (slope * tokens).sum(), rtol=1e-4)
    assert math.fsum(weights[client.name] * (client.goodput or 0) for client in clients) == pytest.approx(1.0)


def test_proportional_fairness_is_weight_by_goodput() -> None:
    guide = UtilityGuide([Client("a", 4, 1.0, 2.0, 7.0), Client("b", 4, 3.0, 5.0, 0.1)], AlphaFair(1.0))
    assert guide.weights(["a", "b"]) == pytest.approx({"a": 1 / 2 / 4, "b": 3 / 5 / 4})
    assert guide.weights(["b"]) == pytest.approx({"b": 1 / 5})


def test_goodputs_far_apart_and_steep_utilities_stay_finite() -> None:
    guide = UtilityGuide([Client("a", 4, goodput=1e-3), Client("b", 4, goodput=1e3)], AlphaFair(300.0))
    assert guide.weights(["a", "b"]) == pytest.approx({"a": 1e3, "b": 0.0})


def test_goodput_is_smoothed_from_batch_to_batch() -> None:
    guide = UtilityGuide([Client("a", 4, goodput=2.0), Client("b", 4), Client("c", 4)], AlphaFair(), smoothing=0.25)
    guide.remember({"a": torch.tensor(4.0), "b": torch.tensor(3.0)})
    assert guide.goodput == pytest.approx({"a": 2.5, "b": 3.0})
    guide.remember({"b": torch.tensor(1.0)})
    assert guide.goodput == pytest.approx({"a": 2.5, "b": 2.5})


def test_the_loss_descends_where_the_utility_climbs() -> None:
    clients = [Client("a", 4, weight=2.0, goodput=1.5, rounds_per_s=3.0), Client("b", 2, goodput=4.0)]
    guide = UtilityGuide(clients, AlphaFair(2.0))
    shown = {name: torch.tensor(value, requires_grad=True) for name, value in (("a", 1.7), ("b", 3.0))}
    gradients = torch.autograd.grad(guide.loss(shown), list(shown.values()))
    x = {"a": 0.9 * 1.5 + 0.1 * 1.7, "b": 0.9 * 4.0 + 0.1 * 3.0}
    assert guide.goodput == pytest.approx(x)
    slope = {"a": 2.0 * 3.0 / (3.0 * x["a"]) ** 2, "b": 1 / x["b"] ** 2}
    scale = slope["a"] * x["a"] + slope["b"] * x["b"]
    assert [float(gradient) for gradient in gradients] == pytest.approx([-slope[name] / scale for name in shown])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"budget": -1}, "budget of -1"),
        ({"weight": 0.0}, "weight of 0"),
        ({"weight": math.nan}, "weight of nan"),
        ({"goodput": 0.0}, "goodput of 0"),
        ({"goodput": math.nan}, "goodput of nan"),
        ({"rounds_per_s": -1.0}, "-1.0 rounds a second"),
    ],
)
def test_figures_out_of_range_are_refused_by_name(changes: dict[str, float], why: str) -> None:
    figures: dict[str, Any] = {"budget": 4}
    with pytest.raises(InvalidRequest, match=f"'edge'.*{why}"):
        Client("edge", **figures | changes)


@pytest.mark.parametrize("named", [[], ["a", "b", "a"]])
def test_a_guide_needs_clients_and_different_ones(named: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="each name once"):
        UtilityGuide([Client(name, 4) for name in named], AlphaFair())
