"""Placing streams by price: against brute force, against somebody else's solver, and in a small fleet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize

from goodspeed.estimation import expected_tokens
from goodspeed.placement import (
    ServerLoad,
    best_draft,
    fair_counts,
    lower_of_two,
    lowest,
    moving_pays_after_s,
    place_price,
)
from goodspeed.simulation import Engine
from goodspeed.simulation.fleet import Fleet, drafts

Floats = NDArray[np.float64]
rates = st.floats(0.01, 0.99)


@given(rates, st.floats(0.001, 2.0), st.integers(0, 16))
def test_no_mixture_of_two_lengths_is_better_than_the_best_draft(alpha: float, price: float, limit: int) -> None:
    length, tokens = best_draft(alpha, price, limit)
    assert 0 <= length <= limit
    corners = [(float(s), expected_tokens(alpha, s)) for s in range(limit + 1)]
    found = math.log(tokens) - price * length
    for (s, m), (t, n) in itertools.product(corners, repeat=2):
        for share in np.linspace(0, 1, 11):
            mixed = math.log(share * m + (1 - share) * n) - price * (share * s + (1 - share) * t)
            assert mixed <= found + 1e-9


@given(st.lists(st.tuples(rates, st.floats(0.0, 2.0), st.integers(0, 16)), min_size=1, max_size=20))
def test_drafts_of_many_are_those_of_each(streams: list[tuple[float, float, int]]) -> None:
    alpha, price, limit = (np.array(column) for column in zip(*streams, strict=True))
    length, tokens = drafts(alpha, price, limit)
    each = np.array([best_draft(*stream) for stream in streams])
    np.testing.assert_allclose(np.stack([length, tokens], 1), each, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_budgets_that_follow_the_price_are_the_optimum_of_a_server(seed: int) -> None:
    """In passes a second and drafted tokens a second the problem is concave; there it is given to a solver."""
    random = np.random.default_rng(seed)
    count, engine = 6, Engine(0.02, 0.001, 0.004)
    alpha, limit = random.uniform(0.4, 0.92, count), random.integers(0, 6, count)
    fleet = Fleet([engine], alpha, limit, np.zeros(count, dtype=np.int64))
    fleet.settle(200)

    def goodput(passes: float, drafted: Floats) -> Floats:
        longest = np.arange(1, limit.max() + 1)
        steps = np.clip(drafted[:, None] - passes * (longest - 1), 0, passes)
        return np.asarray(passes + (steps * alpha[:, None] ** longest).sum(1))

    def loss(at: Floats) -> float:
        return -float(np.log(goodput(at[0], at[1:])).sum())

    busy = np.array([engine.seconds(count, count), *[engine.token_s] * count])
    within = [
        {"type": "ineq", "fun": lambda at: 1 - busy @ at},
        {"type": "ineq", "fun": lambda at: limit * at[0] - at[1:]},
    ]
    start = np.array([0.5 / engine.seconds(count, count), *[0.1] * count])
    best = optimize.minimize(  # type: ignore[call-overload]  # its stubs know no dictionaries of constraints
        loss, np.minimum(start, [math.inf, *(limit * start[0])]), bounds=[(1e-3, None), *[(0, None)] * count],
        constraints=within, method="SLSQP", options={"maxiter": 500, "ftol": 1e-12},
    )  # fmt: skip
    assert np.log(fleet.goodput).sum() >= -best.fun - 1e-4


def test_the_price_of_a_place_is_what_the_sum_of_logarithms_loses() -> None:
    """Of a crowd large enough for derivatives: with one stream more, all budgets settled again."""
    random = np.random.default_rng(3)
    engine, count = Engine(0.02, 10e-6, 18e-6), 1_000
    alpha, limit = random.uniform(0.4, 0.92, count + 1), random.integers(1, 13, count + 1)
    alpha[-1], limit[-1] = 0.8, 12

    def utility(streams: int) -> tuple[float, ServerLoad]:
        fleet = Fleet([engine], alpha[:streams], limit[:streams], np.zeros(streams, dtype=np.int64))
        fleet.settle(300)
        return float(np.log(fleet.goodput).sum()), fleet.load(0)

    before, load = utility(count)
    after, _ = utility(count + 1)
    assert place_price(load, 0.8, 12) == pytest.approx(before - after, abs=2e-3)


def below_the_best(seed: int) -> tuple[float, float]:
    """How far mean log goodput is below the best of all placements: by price, with moves that pay, and at worst."""
    random, count = np.random.default_rng(seed), 5
    low, high = np.log([0.01, 0.0002, 0.0002]), np.log([0.04, 0.0008, 0.0008])
    servers = [Engine(*row) for row in np.exp(random.uniform(low, high, (3, 3))).tolist()]
    alpha, limit = random.uniform(0.4, 0.92, count), random.integers(1, 13, count)

    def fleet(at: Sequence[int]) -> Fleet:
        return Fleet(servers, alpha[: len(at)], limit[: len(at)], np.array(at, dtype=np.int64))

    def mean_log(at: Sequence[int]) -> float:
        return float(np.log(fleet(at).goodput).mean())

    def prices(at: Sequence[int], stream: int) -> Floats:
        others = fleet(at)
        others.leave(np.array([stream])[: len(at) - stream])
        return np.array([place_price(others.load(s), alpha[stream], int(limit[stream])) for s in range(3)])

    at = np.array(list(itertools.product(range(3), repeat=count)))  # [placements, streams]
    copies = len(at)
    # Servers have no part in each other, so that every placement may have three of its own in one fleet.
    apart = (at + 3 * np.arange(copies)[:, None]).ravel()
    everywhere = Fleet(servers * copies, np.tile(alpha, copies), np.tile(limit, copies), apart)
    every = np.log(everywhere.goodput).reshape(at.shape).mean(1)  # [placements]
    placed: list[int] = []
    for stream in range(count):
        placed.append(lowest(prices(placed, stream)))
    while True:
        there = np.array([prices(placed, stream) for stream in range(count)])  # [streams, servers]
        saved = there[range(count), placed] - there.min(1)
        if saved.max() < 0.01:
            break
        placed[saved.argmax()] = lowest(prices(placed, int(saved.argmax())))
    return every.max() - mean_log(placed), every.max() - every.min()


def test_the_lowest_price_and_moves_that_pay_come_near_the_best_of_all_placements() -> None:
    """So few streams are no continuum, and unlike ones make the sum not concave: the best cannot be promised."""
    by_price, at_worst = np.array([below_the_best(seed) for seed in range(20)]).T
    assert np.median(by_price) < 0.01
    assert by_price.max() < 0.105
    assert np.median(at_worst) > -math.log(1 - 0.47)


def test_like_streams_end_up_as_many_on_each_server_as_is_best() -> None:
    random, streams = np.random.default_rng(5), 3_000
    fixed_s, slower = random.uniform(0.01, 0.04, 5), random.uniform(0.5, 2.0, 5)
    servers = [Engine(f, 10e-6 * s, 18e-6 * s) for f, s in zip(fixed_s.tolist(), slower.tolist(), strict=True)]
    fleet = Fleet(servers, np.full(streams, 0.5), np.zeros(streams, dtype=np.int64), np.zeros(streams, dtype=np.int64))
    everybody = np.arange(streams)
    fleet.leave(everybody)
    for stream in everybody.tolist():
        fleet.place(stream, lowest(np.array([place_price(fleet.load(s), limit=0) for s in range(5)])), 0.0)
    best = fair_counts(fixed_s, 28e-6 * slower, streams)
    assert np.abs(fleet.count - best).max() < 2


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(st.floats(0.01, 0.04), st.floats(1e-5, 1e-4)), min_size=2, max_size=4), st.integers(10, 2_000)
)
def test_fair_counts_are_the_convex_optimum_for_streams_that_are_alike(
    servers: list[tuple[float, float]], streams: int
) -> None:
    fixed_s, stream_s = (np.array(column) for column in zip(*servers, strict=True))
    counts = fair_counts(fixed_s, stream_s, streams)
    assert counts.sum() == pytest.approx(streams)

    def loss(share: Floats) -> float:
        return float((share * np.log(fixed_s + streams * share * stream_s)).sum())

    best = optimize.minimize(  # type: ignore[call-overload]  # its stubs know no dictionaries of constraints
        loss, np.full(len(servers), 1 / len(servers)), bounds=[(0, 1)] * len(servers), method="SLSQP",
        constraints=[{"type": "eq", "fun": lambda share: share.sum() - 1}], options={"ftol": 1e-12},
    )  # fmt: skip
    assert loss(counts / streams) <= best.fun + 1e-7


def test_for_servers_that_are_alike_the_lowest_price_is_where_the_fewest_are() -> None:
    engine, random = Engine(0.02, 10e-6, 18e-6), np.random.default_rng(0)
    count = random.permutation(np.arange(200, 260))
    prices = np.array([place_price(ServerLoad(engine, engine.seconds(n, 2 * n), float(n))) for n in count])
    np.testing.assert_array_equal(prices.argsort(), count.argsort())


def test_a_heavier_stream_minds_others_less() -> None:
    engine = Engine(0.02, 10e-6, 18e-6)
    near_full, near_empty = (ServerLoad(engine, engine.seconds(n, n), float(n)) for n in (1_000, 10))
    light, heavy = (
        place_price(near_full, 0.0, weight=weight) - place_price(near_empty, 0.0, weight=weight)
        for weight in (1.0, 4.0)
    )
    assert 0 < heavy < light


def test_a_move_pays_once_its_transcript_is_earned() -> None:
    there = ServerLoad(Engine(0.02, 10e-6, 20e-6), 0.05, 1_000.0)
    # 500 tokens hold up a thousand streams for 10 ms each: 10 in all, at a gain of a tenth a second.
    assert moving_pays_after_s(0.1, there, 500) == pytest.approx(100.0)
    assert moving_pays_after_s(0.1, there, 500, weight=2.0) == pytest.approx(50.0)
    assert moving_pays_after_s(-0.1, there, 500) == math.inf


def test_nobody_goes_where_there_is_no_price() -> None:
    prices = np.array([math.inf, 3.0, math.inf, 2.0])
    assert lowest(prices) == 3
    random = Random(1)
    assert {lower_of_two(prices, [1, 3], random) for _ in range(50)} == {3}
    assert lower_of_two(prices, [1], random) == 1
    # The dearest of three loses to either of the others.
    assert {lower_of_two(np.array([1.0, 2.0, 3.0]), range(3), random) for _ in range(50)} == {0, 1}
