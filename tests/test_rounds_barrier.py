from functools import partial

from hypothesis import settings
from hypothesis.stateful import rule

from goodspeed.rounds import Barrier
from tests.rounds_machine import RoundsMachine

TIMEOUT_S = 10.0
OVERDUE_S = 24.0


class Rounds(RoundsMachine):
    make = staticmethod(partial(Barrier[int], timeout_s=TIMEOUT_S, overdue_s=OVERDUE_S))
    waits = True

    @rule()
    def gather(self) -> None:
        """What the server does when it is free."""
        if self.verifying:
            return
        if self.gathering_since is None and (self.asked or self.ready):
            self.gathering_since = self.now
        for stream in [stream for stream, since in self.asked.items() if self.now - since >= OVERDUE_S]:
            del self.asked[stream], self.awaited[stream]
            self.budget[stream] = 0
            self.ready.append(stream)
        batch = self.rounds.close(self.now)
        waited_for = [stream for stream, since in self.asked.items() if self.now < since + TIMEOUT_S]
        closes_at = self.rounds.closes_at()
        if batch:
            assert self.gathering_since is not None
            assert not waited_for or self.now >= self.gathering_since + TIMEOUT_S
            self.take(batch)
        elif self.ready:
            # The round is open: somebody is waited for, and not for too long.
            assert closes_at is not None
            assert self.gathering_since is not None
            assert self.now < closes_at <= self.gathering_since + TIMEOUT_S
            assert waited_for
        else:
            assert closes_at == (min(self.asked.values()) + OVERDUE_S if self.asked else None)


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=60, stateful_step_count=40)


def barrier() -> Barrier[str]:
    return Barrier(timeout_s=TIMEOUT_S)


def test_a_round_closes_when_everybody_is_there() -> None:
    rounds = barrier()
    rounds.expect("a", 4, now=0.0)
    rounds.expect("b", 2, now=0.0)
    assert rounds.close(0.0) == []
    assert rounds.closes_at() is None
    rounds.arrive("b", 1.0, 4)
    assert rounds.close(1.0) == []
    assert rounds.closes_at() == TIMEOUT_S
    rounds.arrive("a", 2.0, 4)
    assert rounds.close(2.0) == ["b", "a"]
    assert len(rounds) == 0


def test_nobody_waits_for_a_budget_of_zero() -> None:
    rounds = barrier()
    rounds.expect("a", 0, now=3.0)
    assert rounds.close(3.0) == ["a"]


def test_a_late_draft_is_verified_in_the_next_round() -> None:
    rounds = barrier()
    rounds.expect("quick", 4, now=0.0)
    rounds.expect("late", 4, now=0.0)
    rounds.arrive("quick", 1.0, 4)
    assert rounds.close(1.0) == []
    assert rounds.close(TIMEOUT_S - 0.1) == []
    assert rounds.close(TIMEOUT_S) == ["quick"]
    assert rounds.arrive("late", 12.0, 4)
    rounds.expect("quick", 4, now=13.0)
    assert rounds.close(13.0) == []
    rounds.arrive("quick", 14.0, 4)
    assert rounds.close(14.0) == ["late", "quick"]


def test_an_agent_that_hangs_costs_one_deadline_only() -> None:
    rounds = barrier()
    rounds.expect("alive", 4, now=0.0)
    rounds.expect("hung", 4, now=0.0)
    rounds.arrive("alive", 1.0, 4)
    assert rounds.close(1.0) == []
    assert rounds.close(TIMEOUT_S) == ["alive"]
    for now in (11.0, 12.0, 13.0):
        rounds.expect("alive", 4, now)
        assert rounds.close(now) == []
        rounds.arrive("alive", now + 0.5, 4)
        assert rounds.close(now + 0.5) == ["alive"]
    assert "hung" in rounds
    assert rounds.outstanding == 4


def test_a_long_verification_eats_nobodys_deadline() -> None:
    rounds = barrier()
    for stream in ("a", "b"):
        rounds.expect(stream, 4, now=0.0)
        rounds.arrive(stream, 0.0, 4)
    assert rounds.close(0.0) == ["a", "b"]
    rounds.expect("joined meanwhile", 1, now=1.0)
    for stream in ("a", "b"):
        rounds.expect(stream, 4, now=100.0)
    rounds.arrive("joined meanwhile", 100.0, 4)
    rounds.arrive("a", 101.0, 4)
    assert rounds.close(101.0) == []
    rounds.arrive("b", 102.0, 4)
    assert rounds.close(102.0) == ["joined meanwhile", "a", "b"]


def test_newcomers_do_not_hold_a_round_open_for_ever() -> None:
    rounds = barrier()
    rounds.expect("ready", 0, now=0.0)
    rounds.expect("first", 4, now=0.0)
    now = 0.0
    while not (batch := rounds.close(now)):
        now += 1.0
        rounds.expect(f"newcomer {now}", 4, now)
    assert batch == ["ready"]
    assert now == TIMEOUT_S


def test_the_longest_ready_go_first() -> None:
    rounds = barrier()
    for stream in "abc":
        rounds.expect(stream, 4, now=0.0)
    for stream in "bca":
        rounds.arrive(stream, 1.0, 4)
    assert rounds.close(1.0) == ["b", "c", "a"]


def test_a_draft_nobody_asked_for_is_not_waited_for() -> None:
    rounds = barrier()
    rounds.expect("plain", 0, now=0.0)
    assert not rounds.arrive("plain", 1.0, 4)
    assert not rounds.arrive("never here", 1.0, 4)
    assert "never here" not in rounds


def test_a_draft_that_is_overdue_is_gone_on_without() -> None:
    rounds: Barrier[str] = Barrier(timeout_s=TIMEOUT_S, overdue_s=OVERDUE_S)
    rounds.expect("hung", 4, now=0.0)
    assert rounds.close(1.0) == []
    assert rounds.closes_at() == OVERDUE_S
    assert rounds.close(OVERDUE_S) == ["hung"]
    assert not rounds.arrive("hung", OVERDUE_S + 1, 4)


def test_whoever_leaves_is_not_waited_for() -> None:
    rounds = barrier()
    rounds.expect("stays", 4, now=0.0)
    rounds.expect("goes", 4, now=0.0)
    rounds.arrive("stays", 1.0, 4)
    assert rounds.close(1.0) == []
    rounds.leave("goes")
    rounds.leave("never here")
    assert rounds.close(1.0) == ["stays"]
