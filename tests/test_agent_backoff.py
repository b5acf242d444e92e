import random

from hypothesis import given
from hypothesis import strategies as st

from goodspeed_agent.backoff import Backoff, Patience


@given(st.integers(1, 10_000), st.integers())
def test_a_wait_doubles_up_to_the_longest_and_is_jittered_downwards(attempt: int, seed: int) -> None:
    backoff = Backoff(first_s=0.5, longest_s=8.0, rng=random.Random(seed))
    ceiling_s = min(8.0, 0.5 * 2 ** min(attempt - 1, 10))
    assert ceiling_s / 2 <= backoff.wait_s(attempt) <= ceiling_s


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
