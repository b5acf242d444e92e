"""How much a peer is listened to, whatever it sends and however it deals it out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed_server.pacing import Bucket, PeerPace

BURST = 1024
ASKED = st.tuples(st.just("asked"), st.integers(0, 64))
CAME = st.tuples(st.just("came"), st.integers(1, 200))
ANSWERED = st.tuples(st.just("answered"), st.just(2))


@given(
    st.integers(1, 20),
    st.floats(0.1, 100.0),
    st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60),
)
def test_a_bucket_gives_no_more_than_it_holds_and_what_has_flowed_in(
    burst: int, per_s: float, pauses: list[float]
) -> None:
    bucket, taken = Bucket(burst, per_s), []
    for now in itertools.accumulate(pauses):
        lacking_s = bucket.lacking_s(now)
        if lacking_s == 0.0:
            bucket.take(now)
            taken.append(now)
        else:
            assert Bucket.lacking_s(bucket, now + lacking_s + 1e-6) == 0.0
            return
    for (i, first), (j, last) in itertools.combinations(enumerate(taken), 2):
        assert j - i + 1 <= burst + (last - first) * per_s + 1e-6


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.0, 0.001, 0.1, 1.0]), ASKED | CAME | ANSWERED), min_size=1, max_size=300
    ),
    st.integers(1, 500),
)
def test_who_waits_as_it_is_told_costs_no_more_than_it_was_asked_for_and_may(
    deeds: list[tuple[float, tuple[str, int]]], rate: int
) -> None:
    pace, now, spent, may, unpaid = PeerPace(rate), 0.0, 0, BURST, 0
    for pause, (deed, count) in deeds:
        now += pause
        if deed == "asked":
            pace.asked(count)
            may += count + 2
        elif deed == "answered":
            # It counts with what comes next.
            pace.answered(now)
            unpaid += count
        else:
            assert spent <= may + rate * now + 1e-6
            now += pace.came(now, 0, count)
            spent, unpaid = spent + unpaid + count, 0
            assert spent <= may + rate * now + 1e-6


def test_an_agent_that_sends_what_it_is_asked_for_is_never_waited_with() -> None:
    """64 texts, 32 tokens each asked for by every pass, one in a message: many times what it may send unasked."""
    pace, now = PeerPace(1.0), 0.0
    for _ in range(100):
        for _ in range(64):
            pace.asked(32)
        for _ in range(64 * 32):
            now += 0.05 / (64 * 32)
            assert pace.came(now, 60, 1) == 0.0


def test_long_messages_count_as_many() -> None:
    """What a frame costs to read grows with its length: so many of them are no more than so many short ones."""
    pace, now = PeerPace(1000), 0.0
    for _ in range(100):
        now += pace.came(now, 99 * 4096, 1)
    assert now == pytest.approx((100 * 100 - BURST) / 1000, rel=0.01)


def test_what_was_asked_for_long_ago_is_bounded() -> None:
    pace = PeerPace(1.0)
    for _ in range(10_000):
        pace.asked(64)
    assert pace.came(0.0, 0, 8192 + BURST) == 0.0
    assert pace.came(0.0, 0, 5) == pytest.approx(5.0)
