from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.errors import InvalidRequest
from goodspeed_agent.backoff import Backoff, Patience
from goodspeed_agent.itinerary import Itinerary, addresses

A, B, C = "ws://a:1", "ws://b:2", "wss://c:3"


@pytest.mark.parametrize(
    ("given_as", "found"),
    [
        (A, (A,)),
        (f"{A},{B}", (A, B)),
        ([B, A], (B, A)),
        ([f" {A} , {C},", B], (A, C, B)),
        ([A, B, A], (A, B)),
    ],
)
def test_addresses_may_be_given_in_several_ways(given_as: str | list[str], found: tuple[str, ...]) -> None:
    assert addresses(given_as) == found


@pytest.mark.parametrize("given_as", ["", ",", [], [A, "http://b:2"], f"{A},b"])
def test_what_is_no_address_is_named_with_what_to_write(given_as: str | list[str]) -> None:
    with pytest.raises(InvalidRequest, match="is no server address: write ws://HOST:PORT"):
        addresses(given_as)


def steady(give_up_after_s: float = 100.0) -> Backoff:
    return Backoff(first_s=1.0, longest_s=8.0, give_up_after_s=give_up_after_s, rng=random.Random(1))


def test_all_are_tried_in_order_before_there_is_a_wait() -> None:
    itinerary = Itinerary(3, steady())
    assert [(itinerary.failed(0.0), itinerary.place) for _ in range(2)] == [(0.0, 1), (0.0, 2)]
    wait_s = itinerary.failed(0.0)
    assert wait_s is not None
    assert 0.5 <= wait_s <= 1.0
    assert itinerary.place == 0


def test_an_agent_stays_where_it_works_and_a_lost_connection_is_made_again_there_first() -> None:
    itinerary = Itinerary(2, steady())
    assert itinerary.failed(0.0) == 0.0
    itinerary.succeeded()
    assert (itinerary.lost(50.0), itinerary.place) == (0.0, 1)
    # It is lost once more before it has worked: now the other, which failed long ago.
    assert (itinerary.lost(50.0), itinerary.place) == (0.0, 0)


def test_a_server_that_says_goodbye_is_left_for_one_that_does_not_rest() -> None:
    itinerary = Itinerary(3, steady())
    assert itinerary.leave(0.0, 10.0)
    assert (itinerary.failed(0.0, 30.0), itinerary.place) == (0.0, 2)
    itinerary.succeeded()
    assert not itinerary.leave(9.0)
    assert itinerary.place == 2
    assert itinerary.leave(11.0)
    assert itinerary.place == 0


def test_servers_that_all_say_goodbye_do_not_send_an_agent_in_circles() -> None:
    itinerary = Itinerary(2, steady())
    assert itinerary.leave(0.0)
    assert not itinerary.leave(0.0)
    wait_s = itinerary.failed(0.0)
    assert wait_s is not None
    assert wait_s > 0


def test_nothing_is_given_up_while_the_server_that_is_left_still_speaks() -> None:
    itinerary = Itinerary(2, steady(give_up_after_s=10.0))
    assert itinerary.leave(0.0)
    for now_s in (0.0, 100.0, 200.0):
        assert itinerary.failed(now_s) is not None
    itinerary.left(300.0)
    assert itinerary.failed(305.0) is not None
    assert itinerary.failed(305.0) is not None
    assert itinerary.failed(311.0) is None


def test_a_loss_is_no_farewell() -> None:
    itinerary = Itinerary(2, steady(give_up_after_s=10.0))
    assert itinerary.failed(0.0) == 0.0
    itinerary.left(9.0)
    assert itinerary.failed(9.9) is None


def test_the_wait_is_for_whoever_is_back_first() -> None:
    itinerary = Itinerary(2, steady())
    itinerary.failed(0.0, 30.0)
    wait_s = itinerary.failed(0.0, 5.0)
    assert wait_s is not None
    assert 5.5 <= wait_s <= 6.0
    assert itinerary.place == 1


def test_who_is_struck_off_is_not_tried_again() -> None:
    itinerary = Itinerary(3, steady())
    assert (itinerary.strike_off(0.0), itinerary.place) == (0.0, 1)
    assert (itinerary.failed(0.0), itinerary.place) == (0.0, 2)
    assert not itinerary.alone
    assert itinerary.strike_off(0.0)
    assert itinerary.place == 1
    assert itinerary.alone


def test_however_little_patience_there_is_everybody_is_asked_once() -> None:
    itinerary = Itinerary(3, steady(give_up_after_s=0.0))
    assert [itinerary.failed(now_s) for now_s in (0.0, 7.0, 14.0)] == [0.0, 0.0, None]


def test_patience_may_end_in_the_middle_of_a_lap_but_not_of_the_first() -> None:
    itinerary = Itinerary(2, steady(give_up_after_s=10.0))
    assert itinerary.failed(0.0) == 0.0
    assert itinerary.failed(5.0)
    # The other was not asked in this lap yet.
    assert itinerary.failed(11.0) is None


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3))), st.integers(), st.floats(0, 60))
def test_with_one_address_it_is_patience_itself(
    failures: list[tuple[float, float]], seed: int, give_up_after_s: float
) -> None:
    """Of the waits: two that have the same random numbers say the same."""
    one, other = (
        Backoff(first_s=0.5, longest_s=4.0, give_up_after_s=give_up_after_s, rng=random.Random(seed)) for _ in range(2)
    )
    itinerary, patience = Itinerary(1, one), Patience(other)
    now_s = 100.0
    for took_s, at_least_s in failures:
        now_s += took_s
        wait_s = itinerary.failed(now_s, at_least_s)
        expected_s = patience.failed(now_s, at_least_s)
        assert (wait_s is None) == (expected_s is None)
        if wait_s is None or expected_s is None:
            return
        assert wait_s == pytest.approx(expected_s)
        now_s += wait_s


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["failed", "lost", "left", "gone", "struck off", "worked"]),
        st.sampled_from([0.0, 0.0, 0.5, 20.0]),  # how long it took
        st.sampled_from([0.0, 0.0, 2.0, 40.0]),  # how long the server asks to be left alone
    ),
    max_size=40,
)


@given(st.integers(1, 4), STEPS, st.sampled_from([0.0, 30.0, 1e9]), st.integers())
def test_whatever_happens_the_itinerary_keeps_its_laws(
    count: int, steps: list[tuple[str, float, float]], give_up_after_s: float, seed: int
) -> None:
    itinerary = Itinerary(count, Backoff(first_s=1.0, give_up_after_s=give_up_after_s, rng=random.Random(seed)))
    now_s = 0.0
    left, failed, resting_until_s = set(range(count)), set[int](), dict.fromkeys(range(count), -1.0)
    since_s: float | None = None
    asked = {0}
    """Since it last worked."""

    def ready() -> list[int]:
        return sorted(place for place in left - failed if resting_until_s[place] <= now_s)

    for what, took_s, at_least_s in steps:
        now_s += took_s
        here = itinerary.place
        assert here in left
        if what == "worked":
            itinerary.succeeded()
            failed, since_s, asked = set(), None, {here}
            continue
        if what == "gone":
            itinerary.left(now_s)
            since_s = now_s if since_s == math.inf else since_s
            continue
        began_s = now_s if since_s is None else since_s
        if what == "lost" and since_s is None and len(left) > 1:
            assert (itinerary.lost(now_s), itinerary.place) == (0.0, here)
            since_s = now_s
            continue
        if what == "left":
            before = sorted({*ready()} - {here})
            assert itinerary.leave(now_s, at_least_s) == bool(before)
            if before:
                since_s = math.inf
                failed.add(here)
                resting_until_s[here] = now_s + at_least_s
                assert itinerary.place == before[0]
                asked.add(before[0])
            continue
        if what == "struck off":
            if itinerary.alone:
                continue
            wait_s, at_least_s = itinerary.strike_off(now_s), 0.0
            left.discard(here)
        elif what == "lost":
            wait_s, at_least_s = itinerary.lost(now_s), 0.0
        else:
            wait_s = itinerary.failed(now_s, at_least_s)
        since_s = began_s
        failed.add(here)
        resting_until_s[here] = now_s + at_least_s
        if wait_s is None:
            # Only when its time is over, and nobody was left out who could have been asked.
            assert not [place for place in ready() if place not in asked]
            back_s = max(now_s, min(resting_until_s[place] for place in left))
            assert back_s > since_s + give_up_after_s - 1.0
            return
        if wait_s == 0.0:
            assert itinerary.place == ready()[0]
            assert itinerary.laps == 0 or now_s <= since_s + give_up_after_s
        else:
            # Nobody could be asked at once.
            assert not ready()
            assert now_s + wait_s <= since_s + give_up_after_s
            failed = set()
        now_s += wait_s
        assert resting_until_s[itinerary.place] <= now_s
        asked.add(itinerary.place)
