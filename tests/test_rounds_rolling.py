from functools import partial

import pytest
from hypothesis import settings
from hypothesis.stateful import rule

from goodspeed.rounds import Rolling
from goodspeed.timing import EngineLoad, PassCost, PassSample
from tests.rounds_machine import RoundsMachine

PASS_S = 1.0
OVERDUE_S = 20.0
LOAD = EngineLoad(PassCost([PassSample(1, 1, PASS_S)]), PASS_S)


class Rounds(RoundsMachine):
    parts = True

    make = staticmethod(partial(Rolling[int], load=lambda: LOAD, overdue_s=OVERDUE_S))

    @rule()
    def gather(self) -> None:
        """What the server does when it is free."""
        if self.verifying:
            return
        for stream in [stream for stream, (since, _) in self.asked.items() if self.now - since >= OVERDUE_S]:
            del self.asked[stream]
            self.budget[stream] = 0
            self.ready.append(stream)
        if not self.ready:
            self.gathering_since = None
            assert self.rounds.close(self.now) == []
            return
        if self.gathering_since is None:
            self.gathering_since = self.now
        batch = self.rounds.close(self.now)
        if batch:
            self.take(batch)
        else:
            closes_at = self.rounds.closes_at()
            assert closes_at is not None
            assert self.asked
            assert self.now < closes_at <= self.gathering_since + PASS_S


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=60, stateful_step_count=40)


def rolling() -> Rolling[str]:
    return Rolling(load=lambda: LOAD)


def test_a_round_closes_at_once_when_nobody_else_is_near() -> None:
    rounds = rolling()
    rounds.expect("far", 4, now=0.0, due_s=5.0)
    rounds.expect("here", 4, now=0.0, due_s=0.1)
    rounds.arrive("here", 0.1)
    assert rounds.close(0.1) == ["here"]
    assert rounds.closes_at() is None


def test_a_draft_that_is_about_to_come_is_waited_for() -> None:
    rounds = rolling()
    rounds.expect("here", 4, now=0.0, due_s=0.1)
    rounds.expect("near", 4, now=0.0, due_s=0.2)
    rounds.arrive("here", 0.1)
    assert rounds.close(0.1) == []
    assert rounds.closes_at() == pytest.approx(0.25)
    rounds.arrive("near", 0.2)
    assert rounds.close(0.2) == ["here", "near"]


def test_what_does_not_come_when_it_is_due_is_not_waited_for() -> None:
    rounds = rolling()
    rounds.expect("here", 4, now=0.0, due_s=0.1)
    rounds.expect("stuck", 4, now=0.0, due_s=0.2)
    rounds.arrive("here", 0.1)
    assert rounds.close(0.1) == []
    assert rounds.close(0.25) == ["here"]
    rounds.expect("here", 4, now=1.0, due_s=0.1)
    rounds.arrive("here", 1.1)
    assert rounds.close(1.1) == ["here"]
    rounds.arrive("stuck", 9.0)
    assert rounds.close(9.0) == ["stuck"]


def test_many_who_are_ready_do_not_wait_for_one_who_comes_late() -> None:
    rounds = rolling()
    for number in range(8):
        rounds.expect(f"here {number}", 0, now=0.0)
    rounds.expect("one", 4, now=0.0, due_s=0.5)
    assert len(rounds.close(0.0)) == 8


def test_one_who_is_ready_waits_for_many() -> None:
    rounds = rolling()
    rounds.expect("here", 4, now=0.0, due_s=0.1)
    for number in range(8):
        rounds.expect(f"soon {number}", 4, now=0.0, due_s=0.4 + number / 1000)
    rounds.arrive("here", 0.1)
    assert rounds.close(0.1) == []
    closes_at = rounds.closes_at()
    assert closes_at is not None
    assert closes_at > 0.4


def test_a_draft_that_is_overdue_is_gone_on_without() -> None:
    rounds: Rolling[str] = Rolling(load=lambda: LOAD, overdue_s=OVERDUE_S)
    rounds.expect("hung", 4, now=0.0, due_s=0.1)
    assert rounds.close(1.0) == []
    assert rounds.closes_at() == OVERDUE_S
    assert rounds.close(OVERDUE_S) == ["hung"]


def herd(count: int, away_s: float, *, token_s: float, fixed_s: float = 0.1, busy: float = 0.0) -> Rolling[int]:
    """So many who are ready at once, each with a draft of nine, after their agents have been away so long."""
    shapes = [(rows, rows * each) for rows in (1, 8) for each in (1, 10)]
    cost = PassCost([PassSample(rows, tokens, fixed_s + tokens * token_s) for rows, tokens in shapes])
    load = EngineLoad(cost, cost.seconds(count, 10 * count), busy=busy)
    rounds: Rolling[int] = Rolling(load=lambda: load)
    for stream in range(count):
        rounds.expect(stream, 9, now=0.0, due_s=away_s)
    for stream in range(count):
        rounds.arrive(stream, away_s)
    return rounds


def test_a_herd_is_parted_and_the_rest_is_next() -> None:
    rounds = herd(8, away_s=2.0, token_s=0.01)
    first = rounds.close(2.0)
    assert first == list(range(len(first)))
    assert 0 < len(first) < 8
    assert rounds.close(2.5)[0] == len(first)


def test_a_herd_stays_together_where_passes_are_mostly_their_fixed_part() -> None:
    assert len(herd(8, away_s=2.0, token_s=0.001).close(2.0)) == 8


def test_a_herd_stays_together_whose_agents_are_back_before_the_engine_is_free() -> None:
    assert len(herd(8, away_s=0.05, token_s=0.01).close(0.05)) == 8
    rounds = herd(8, away_s=0.0, token_s=0.01)
    for stream in range(8):
        rounds.expect(stream, 0, now=0.0)
    assert len(rounds.close(0.0)) == 8


def test_a_busy_engine_does_not_part_a_batch_at_the_cost_of_those_who_draft() -> None:
    lengths = []
    for busy in (0.0, 1.0):
        rounds = herd(4, away_s=1.0, token_s=0.006, busy=busy)
        for stream in range(10, 20):
            rounds.expect(stream, 9, now=1.0, due_s=1.0)
        lengths.append(len(rounds.close(1.0)))
    assert lengths == [2, 4]
