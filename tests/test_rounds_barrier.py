import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from goodspeed.rounds import Barrier

TIMEOUT_S = 10.0


class Rounds(RuleBasedStateMachine):
    """The barrier under a virtual clock, driven as the server drives it: busy with a batch, or gathering."""

    @initialize(max_streams=st.sampled_from([None, None, 1, 3]))
    def start(self, max_streams: int | None) -> None:
        self.barrier: Barrier[int] = Barrier(timeout_s=TIMEOUT_S, max_streams=max_streams)
        self.max_streams = max_streams
        self.now = 0.0
        self.asked: dict[int, tuple[float, int]] = {}  # drafting: since when, and how much
        self.ready: list[int] = []
        self.budget: dict[int, int] = {}
        self.verifying: list[int] = []
        self.gathering_since: float | None = None
        self.names = 0

    def expect(self, stream: int, budget: int) -> None:
        self.barrier.expect(stream, budget, self.now)
        self.budget[stream] = budget
        if budget:
            self.asked[stream] = (self.now, budget)
        else:
            self.ready.append(stream)

    @rule(budget=st.integers(0, 5))
    def join(self, budget: int) -> None:
        self.expect(self.names, budget)
        self.names += 1

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, TIMEOUT_S, 25.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        if self.asked:
            stream = data.draw(st.sampled_from(sorted(self.asked)))
            since, _ = self.asked.pop(stream)
            assert self.barrier.arrive(stream, self.now) == self.now - since
            self.ready.append(stream)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        members = sorted([*self.asked, *self.ready, *self.verifying])
        if members:
            stream = data.draw(st.sampled_from(members))
            self.barrier.leave(stream)
            self.asked.pop(stream, None)
            for group in (self.ready, self.verifying):
                if stream in group:
                    group.remove(stream)

    @rule(stream=st.integers(0, 30))
    def arrive_unasked(self, stream: int) -> None:
        if stream not in self.asked:
            with pytest.raises(KeyError):
                self.barrier.arrive(stream, self.now)

    @rule()
    def gather(self) -> None:
        """What the server does when it is free."""
        if self.verifying:
            return
        if self.gathering_since is None and (self.asked or self.ready):
            self.gathering_since = self.now
        batch = self.barrier.close(self.now)
        if batch:
            assert batch == self.ready[: self.max_streams]
            waited_for = [stream for stream, (since, _) in self.asked.items() if self.now < since + TIMEOUT_S]
            assert self.gathering_since is not None
            assert not waited_for or self.now >= self.gathering_since + TIMEOUT_S
            del self.ready[: len(batch)]
            self.verifying = batch
            self.gathering_since = None
        elif self.ready:
            # The round is open: somebody is waited for, and not for too long.
            closes_at = self.barrier.closes_at()
            assert closes_at is not None
            assert self.gathering_since is not None
            assert self.now < closes_at <= self.gathering_since + TIMEOUT_S
            assert any(self.now < since + TIMEOUT_S for since, _ in self.asked.values())
        else:
            assert self.barrier.closes_at() is None

    @rule(data=st.data())
    def verified(self, data: st.DataObject) -> None:
        for stream in self.verifying:
            self.expect(stream, data.draw(st.integers(0, 5)))
        self.verifying = []

    @invariant()
    def everybody_is_in_one_place(self) -> None:
        if not hasattr(self, "barrier"):
            return
        assert self.barrier.ready == tuple(self.ready)
        assert set(self.barrier.drafting) == set(self.asked)
        assert not set(self.ready) & set(self.asked)
        assert not set(self.verifying) & (set(self.ready) | set(self.asked))
        assert len(self.barrier) == len(self.ready) + len(self.asked)
        assert all(stream in self.barrier for stream in [*self.ready, *self.asked])
        assert all(stream not in self.barrier for stream in self.verifying)
        granted = sum(budget for _, budget in self.asked.values()) + sum(self.budget[stream] for stream in self.ready)
        assert self.barrier.outstanding == granted
        if not self.asked and not self.ready:
            self.gathering_since = None


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=60, stateful_step_count=40)


def barrier(max_streams: int | None = None) -> Barrier[str]:
    return Barrier(timeout_s=TIMEOUT_S, max_streams=max_streams)


def test_a_round_closes_when_everybody_is_there() -> None:
    rounds = barrier()
    rounds.expect("a", 4, now=0.0)
    rounds.expect("b", 2, now=0.0)
    assert rounds.close(0.0) == []
    assert rounds.closes_at() is None
    rounds.arrive("b", 1.0)
    assert rounds.close(1.0) == []
    assert rounds.closes_at() == TIMEOUT_S
    rounds.arrive("a", 2.0)
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
    rounds.arrive("quick", 1.0)
    assert rounds.close(1.0) == []
    assert rounds.close(TIMEOUT_S - 0.1) == []
    assert rounds.close(TIMEOUT_S) == ["quick"]
    assert rounds.arrive("late", 12.0) == 12.0
    rounds.expect("quick", 4, now=13.0)
    assert rounds.close(13.0) == []
    rounds.arrive("quick", 14.0)
    assert rounds.close(14.0) == ["late", "quick"]


def test_an_agent_that_hangs_costs_one_deadline_only() -> None:
    rounds = barrier()
    rounds.expect("alive", 4, now=0.0)
    rounds.expect("hung", 4, now=0.0)
    rounds.arrive("alive", 1.0)
    assert rounds.close(1.0) == []
    assert rounds.close(TIMEOUT_S) == ["alive"]
    for now in (11.0, 12.0, 13.0):
        rounds.expect("alive", 4, now)
        assert rounds.close(now) == []
        rounds.arrive("alive", now + 0.5)
        assert rounds.close(now + 0.5) == ["alive"]
    assert "hung" in rounds
    assert rounds.outstanding == 4


def test_a_long_verification_eats_nobodys_deadline() -> None:
    rounds = barrier()
    for stream in ("a", "b"):
        rounds.expect(stream, 4, now=0.0)
        rounds.arrive(stream, 0.0)
    assert rounds.close(0.0) == ["a", "b"]
    rounds.expect("joined meanwhile", 1, now=1.0)
    for stream in ("a", "b"):
        rounds.expect(stream, 4, now=100.0)
    rounds.arrive("joined meanwhile", 100.0)
    rounds.arrive("a", 101.0)
    assert rounds.close(101.0) == []
    rounds.arrive("b", 102.0)
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
    rounds = barrier(max_streams=2)
    for stream in "abc":
        rounds.expect(stream, 0, now=0.0)
    assert rounds.close(0.0) == ["a", "b"]
    rounds.expect("a", 0, now=1.0)
    assert rounds.close(1.0) == ["c", "a"]


def test_whoever_leaves_is_not_waited_for() -> None:
    rounds = barrier()
    rounds.expect("stays", 4, now=0.0)
    rounds.expect("goes", 4, now=0.0)
    rounds.arrive("stays", 1.0)
    assert rounds.close(1.0) == []
    rounds.leave("goes")
    rounds.leave("never here")
    assert rounds.close(1.0) == ["stays"]
