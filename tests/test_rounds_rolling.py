from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from goodspeed.rounds import Prospect, Rolling
from goodspeed.rounds.rolling import SHARE
from goodspeed.timing import EngineLoad, PassCost, PassSample
from tests.rounds_machine import RoundsMachine

PASS_S = 1.0
TOKEN_S = 0.05
COST = PassCost([PassSample(n, m, 0.5 + m * TOKEN_S) for n, m in [(1, 1), (8, 8), (8, 40)]])
LOAD = EngineLoad(COST, PASS_S)
NEAR = Prospect(due_s=0.2, every_s=0.1, chance=0.9, worth_s=1.0)


class Rounds(RoundsMachine):
    make = staticmethod(partial(Rolling[int], load=lambda: LOAD, holder=lambda stream: stream))
    waits = False

    @rule()
    def gather(self) -> None:
        """What the server does when it is free."""
        if self.verifying:
            return
        if not self.ready:
            assert self.rounds.close(self.now) == []
            assert self.rounds.closes_at() is None
            return
        if self.gathering_since is None:
            self.gathering_since = self.now
        batch = self.rounds.close(self.now)
        closes_at = self.rounds.closes_at()
        if batch:
            assert closes_at is None
            self.take(batch)
        else:
            assert closes_at is not None
            assert self.awaited
            assert self.now < closes_at <= self.gathering_since + PASS_S

    @rule()
    def keep_calling(self) -> None:
        """However often it is asked, a round is over when the instant has come that it named last."""
        if self.verifying or not self.ready:
            return
        for _ in range(200):
            self.gather()
            closes_at = self.rounds.closes_at()
            if self.verifying or closes_at is None:
                return
            self.now = closes_at
        raise AssertionError("the round stays open for ever")


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=60, stateful_step_count=40)


def rolling() -> Rolling[str]:
    return Rolling(load=lambda: LOAD, holder=lambda stream: stream)


def waits_until(rounds: Rolling[str], now: float) -> float | None:
    """Until when an open round waits; None if it closes."""
    return None if rounds.close(now) else rounds.closes_at()


def test_everybody_is_in_the_batch_with_or_without_guesses() -> None:
    rounds = rolling()
    rounds.expect("guesses here", 4, now=0.0)
    rounds.expect("plain", 0, now=0.0)
    rounds.expect("far", 4, now=0.0, prospect=NEAR._replace(due_s=5.0))
    assert rounds.drafting == ()
    assert rounds.close(0.0) == ["guesses here", "plain", "far"]
    assert len(rounds) == 0


def test_the_longest_ready_are_the_first_of_the_batch() -> None:
    rounds = rolling()
    for stream in "abc":
        rounds.expect(stream, 0, now=0.0)
    rounds.expect("a", 0, now=1.0)
    assert rounds.close(1.0) == ["b", "c", "a"]


def test_a_stream_without_a_prospect_is_not_waited_for() -> None:
    rounds = rolling()
    rounds.expect("here", 4, now=0.0)
    assert not rounds.arrive("here", 0.0, 2, more=True)
    assert rounds.close(0.0) == ["here"]


def test_a_prospect_of_nothing_is_not_waited_for() -> None:
    rounds = rolling()
    rounds.expect("plain", 0, now=0.0, prospect=NEAR)
    assert rounds.close(0.0) == ["plain"]


def test_guesses_that_are_worth_it_are_waited_for_and_the_next_ones_as_well() -> None:
    rounds = rolling()
    rounds.expect("near", 4, now=0.0, prospect=NEAR)
    assert waits_until(rounds, 0.0) == pytest.approx(0.5), "all four"
    assert rounds.arrive("near", 0.2, 1, more=True)
    assert waits_until(rounds, 0.2) == pytest.approx(0.5)
    assert rounds.arrive("near", 0.4, 3, more=True)
    assert waits_until(rounds, 0.4) == pytest.approx(0.5)
    assert rounds.arrive("near", 0.5, 4, more=True)
    assert rounds.close(0.5) == ["near"]


def test_an_agent_that_has_said_all_is_not_waited_for() -> None:
    rounds = rolling()
    rounds.expect("near", 4, now=0.0, prospect=NEAR)
    assert rounds.close(0.0) == []
    assert rounds.arrive("near", 0.2, 1)
    assert rounds.close(0.2) == ["near"]


def test_further_guesses_are_worth_less_and_less() -> None:
    rounds = rolling()
    rounds.expect("near", 9, now=0.0, prospect=NEAR._replace(chance=0.45, worth_s=NEAR.worth_s / SHARE))
    # They gain 0.45, 0.2, 0.09 seconds, less a token's time; the next would cost more than it brings.
    assert waits_until(rounds, 0.0) == pytest.approx(0.3)
    rounds.arrive("near", 0.3, 2, more=True)
    assert rounds.close(0.3) == ["near"]


def test_what_does_not_come_when_it_is_due_is_waited_for_a_little_longer() -> None:
    rounds = rolling()
    rounds.expect("stuck", 1, now=0.0, prospect=NEAR)
    assert waits_until(rounds, 0.0) == pytest.approx(0.2)
    assert waits_until(rounds, 0.2) == pytest.approx(0.225)
    assert rounds.close(0.26) == ["stuck"]


def test_with_a_prompt_to_work_on_nobody_is_waited_for() -> None:
    rounds = rolling()
    rounds.expect("near", 3, 0.0, NEAR)
    assert rounds.close(0.0) == []
    assert rounds.close(0.0, prompts=True) == ["near"]


def test_no_round_is_open_for_longer_than_one_pass() -> None:
    rounds = rolling()
    rounds.expect("slow", 64, now=0.0, prospect=Prospect(0.1, 0.1, 1.0, 100.0))
    closes_at = waits_until(rounds, 0.0)
    assert closes_at is not None
    assert 0.9 < closes_at <= PASS_S
    for number in range(1, 9):
        rounds.arrive("slow", number / 10, number, more=True)
        assert rounds.close(number / 10) == []
    rounds.expect("joins late", 4, now=0.9, prospect=NEAR._replace(worth_s=100.0))
    assert rounds.close(PASS_S) == ["slow", "joins late"]


def test_a_round_is_open_from_when_the_engine_is_free_again() -> None:
    rounds = rolling()
    rounds.expect("near", 1, now=0.0)
    assert rounds.close(0.0) == ["near"]
    rounds.expect("near", 1, now=5.0, prospect=NEAR)
    assert waits_until(rounds, 5.0) == pytest.approx(5.2)


def test_a_crowd_waits_for_nobody() -> None:
    rounds = rolling()
    rounds.expect("near", 4, now=0.0, prospect=NEAR._replace(worth_s=100.0))
    for number in range(63):
        rounds.expect(f"plain {number}", 0, now=0.0)
    assert rounds.close(0.0) == []
    rounds.expect("one more", 0, now=0.0)
    assert len(rounds.close(0.0)) == 65


def test_whoever_leaves_is_not_waited_for() -> None:
    rounds = rolling()
    rounds.expect("stays", 0, now=0.0)
    rounds.expect("goes", 4, now=0.0, prospect=NEAR)
    assert rounds.close(0.0) == []
    rounds.leave("goes")
    rounds.leave("never here")
    assert rounds.close(0.0) == ["stays"]


def test_one_who_is_near_is_waited_for_together_with_another_only() -> None:
    alone, both = rolling(), rolling()
    apart = Prospect(due_s=0.4, every_s=0.1, chance=0.9, worth_s=0.4 / SHARE)
    alone.expect("a", 1, now=0.0, prospect=apart)
    assert alone.close(0.0) == ["a"]
    both.expect("a", 1, now=0.0, prospect=apart)
    both.expect("b", 1, now=0.0, prospect=apart)
    assert waits_until(both, 0.0) == pytest.approx(0.4)


some_prospects = st.builds(
    Prospect,
    due_s=st.floats(0.01, 1.5),
    every_s=st.floats(0.01, 0.6),
    chance=st.floats(0, 1),
    worth_s=st.floats(0, 2),
)


@given(st.lists(st.tuples(st.integers(1, 5), some_prospects), min_size=1, max_size=4), st.floats(0, 0.9))
def test_no_other_instant_is_better(due: list[tuple[int, Prospect]], opened_at: float) -> None:
    """Against the documented objective, at every instant at which a guess is due."""
    rounds: Rolling[int] = Rolling(load=lambda: LOAD, holder=lambda stream: stream)
    for stream, (budget, prospect) in enumerate(due):
        rounds.expect(stream, budget, opened_at, prospect)
    guesses = [
        (opened_at + one.due_s + number * one.every_s, one.worth_s * one.chance ** (number + 1))
        for budget, one in due
        for number in range(budget)
    ]

    def objective(until: float) -> float:
        gains = [SHARE * max(0.0, worth_s - COST.token_s) for at, worth_s in guesses if at <= until + 1e-12]
        return sum(gains) - (until - opened_at)

    instants = [at for at, _ in guesses if at <= opened_at + PASS_S]
    best = max([0.0, *map(objective, instants)])
    if rounds.close(opened_at):
        assert best == pytest.approx(0.0, abs=1e-9)
    else:
        closes_at = rounds.closes_at()
        assert closes_at is not None
        assert objective(closes_at) == pytest.approx(best, abs=1e-9)
        assert best > 0


EARLY = NEAR._replace(due_s=0.5 * PASS_S, worth_s=2.0)


def waited_s(rounds: Rolling[str], now: float, prospect: Prospect, *, comes: bool) -> tuple[float, float]:
    """How long a round waits for a stream, and when it is over."""
    opened_at = now
    rounds.expect("waited for", 1, now, prospect)
    rounds.expect("another", 0, now)
    while not rounds.close(now):
        closes_at = rounds.closes_at()
        assert closes_at is not None
        now = closes_at
        if comes and now >= opened_at + prospect.due_s:
            rounds.arrive("waited for", now, 1)
    return now - opened_at, now + PASS_S


def test_one_who_is_late_now_and_then_is_waited_for() -> None:
    rounds, now, waits = rolling(), 0.0, []
    for number in range(100):
        wait_s, now = waited_s(rounds, now, EARLY, comes=number % 16 > 0)
        waits.append(wait_s)
    assert min(waits) >= EARLY.due_s


def test_a_piece_of_nothing_puts_nothing_off() -> None:
    rounds = rolling()
    rounds.expect("stuck", 1, now=0.0, prospect=NEAR)
    assert rounds.close(0.0) == []
    assert rounds.arrive("stuck", 0.2, 0, more=True)
    assert waits_until(rounds, 0.2) == pytest.approx(0.225)
    assert rounds.close(0.26) == ["stuck"]
