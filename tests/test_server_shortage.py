"""Streams that lack the memory for one token: tried again more and more rarely, and given up when the time is over."""

from __future__ import annotations

import itertools

import pytest

from goodspeed_server.shortage import KEEP_S, Shortage

BEGUN = 100.0


def attempts(shortage: Shortage[str], stream: str, begun: float) -> list[float]:
    """When a stream is tried that never fits, from its first failure to the last."""
    now, tried = begun, [begun]
    while shortage.failed(stream, now):
        assert shortage.rests(stream)
        assert shortage.next_at is not None
        assert shortage.due(shortage.next_at - 1e-6) == []
        now = shortage.next_at
        assert shortage.due(now) == [stream]
        assert not shortage.rests(stream)
        assert shortage.due(now) == [], "once for each attempt"
        tried.append(now)
    return tried


def test_it_is_tried_more_and_more_rarely_until_its_time_is_over() -> None:
    shortage: Shortage[str] = Shortage()
    tried = attempts(shortage, "a", BEGUN)
    waits = [after - before for before, after in itertools.pairwise(tried)]
    assert tried[-1] == BEGUN + KEEP_S
    assert waits[:3] == pytest.approx([0.05, 0.1, 0.2])
    assert all(wait <= 1.0 + 1e-9 for wait in waits)
    assert len(tried) < 20
    assert "a" not in shortage
    assert shortage.next_at is None


def test_who_is_tried_late_is_given_up_no_sooner_than_it_failed_again() -> None:
    shortage: Shortage[str] = Shortage()
    assert shortage.failed("a", BEGUN)
    assert shortage.due(BEGUN + 2 * KEEP_S) == ["a"], "it may fit by now"
    assert not shortage.failed("a", BEGUN + 2 * KEEP_S)


def test_who_was_in_a_pass_that_fitted_has_all_the_time_again() -> None:
    shortage: Shortage[str] = Shortage()
    assert shortage.failed("a", BEGUN)
    assert shortage.failed("a", BEGUN + KEEP_S - 1.0)
    shortage.over("a")
    assert "a" not in shortage
    assert attempts(shortage, "a", BEGUN + KEEP_S)[-1] == BEGUN + 2 * KEEP_S


def test_each_has_its_own_time() -> None:
    shortage: Shortage[str] = Shortage()
    assert shortage.failed("a", BEGUN)
    assert shortage.failed("b", BEGUN + 0.02)
    assert shortage.next_at == pytest.approx(BEGUN + 0.05)
    assert shortage.due(BEGUN + 0.05) == ["a"]
    assert not shortage.rests("a")
    assert shortage.rests("b")
    assert shortage.next_at == pytest.approx(BEGUN + 0.07)
