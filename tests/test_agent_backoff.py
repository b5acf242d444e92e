import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed_agent.backoff import Backoff, Patience


@given(st.integers(1, 10_000), st.integers())
def test_a_wait_doubles_up_to_the_longest_and_is_jittered_downwards(attempt: int, seed: int) -> None:
    backoff = Backoff(first_s=0.5, longest_s=8.0, rng=random.Random(seed))
    ceiling_s = min(8.0, 0.5 * 2 ** min(attempt - 1, 10))
    wait_s = backoff.wait_s(attempt)
    assert wait_s is not None
    assert ceiling_s / 2 <= wait_s <= ceiling_s


def test_two_agents_do_not_wait_equally_long() -> None:
    assert Backoff(rng=random.Random(1)).wait_s(5) != Backoff(rng=random.Random(2)).wait_s(5)


def test_patience_ends_after_its_time_without_success() -> None:
    patience = Patience(Backoff(first_s=1.0, longest_s=1.0, give_up_after_s=10.0))
    now_s, waits = 100.0, 0
    while (wait_s := patience.failed(now_s)) is not None:
        now_s += wait_s
        waits += 1
    assert 109.0 <= now_s <= 110.0
    assert waits == patience.failures - 1


@given(st.integers(0, 10**6))
def test_whoever_is_back_while_there_is_patience_is_met(seed: int) -> None:
    """And soon: no later than the longest wait, nor than the end of patience."""
    backoff = Backoff(rng=random.Random(seed))
    for back_s in (1.0, 8.0, 20.0, 25.0, 29.0):
        patience, now_s = Patience(backoff), 0.0
        while now_s < back_s:
            wait_s = patience.failed(now_s)
            assert wait_s is not None
            now_s += wait_s
        assert now_s <= min(back_s + 5.0, 30.0)


@pytest.mark.parametrize("at_least_s", [10.0, 9.0])
def test_what_was_asked_for_is_never_waited_for_in_vain(at_least_s: float) -> None:
    patience = Patience(Backoff(first_s=1.0, longest_s=8.0, give_up_after_s=10.0))
    wait_s = patience.failed(0.0, at_least_s=at_least_s)
    assert (wait_s is None) == (at_least_s == 10.0)


def test_success_makes_the_next_failure_the_first() -> None:
    patience = Patience(Backoff(first_s=1.0, give_up_after_s=10.0))
    assert patience.failed(0.0) is not None
    patience.succeeded()
    assert patience.failures == 0
    wait_s = patience.failed(1000.0)
    assert wait_s is not None
    assert wait_s <= 1.0


def test_what_the_server_asks_for_is_waited_with_the_jitter_on_top() -> None:
    wait_s = Patience(Backoff(first_s=1.0)).failed(0.0, at_least_s=5.0)
    assert wait_s is not None
    assert 5.5 <= wait_s <= 6.0


def test_a_wait_longer_than_the_patience_is_not_begun() -> None:
    assert Patience(Backoff(give_up_after_s=10.0)).failed(0.0, at_least_s=11.0) is None
