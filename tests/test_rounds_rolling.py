import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from goodspeed.rounds import Rolling

PASS_S = 1.0
OVERDUE_S = 20.0


class Rounds(RuleBasedStateMachine):
    """Rolling rounds under a virtual clock, driven as the server drives them: busy with a batch, or gathering."""

    @initialize(max_streams=st.sampled_from([None, None, 1, 3]))
    def start(self, max_streams: int | None) -> None:
        self.rounds: Rolling[int] = Rolling(pass_s=lambda: PASS_S, overdue_s=OVERDUE_S, max_streams=max_streams)
        self.max_streams = max_streams
        self.now = 0.0
        self.asked: dict[int, tuple[float, int]] = {}  # drafting: since when, and how much
        self.ready: list[int] = []
        self.budget: dict[int, int] = {}
        self.verifying: list[int] = []
        self.gathering_since: float | None = None
        self.names = 0

    def expect(self, stream: int, budget: int, due_s: float) -> None:
        self.rounds.expect(stream, budget, self.now, due_s)
        self.budget[stream] = budget
        if budget:
            self.asked[stream] = (self.now, budget)
        else:
            self.ready.append(stream)

    @rule(budget=st.integers(0, 5), due_s=st.floats(0, 5))
    def join(self, budget: int, due_s: float) -> None:
        self.expect(self.names, budget, due_s)
        self.names += 1

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 3.0, 25.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        if self.asked:
            stream = data.draw(st.sampled_from(sorted(self.asked)))
            since, _ = self.asked.pop(stream)
            assert self.rounds.arrive(stream, self.now) == self.now - since
            self.ready.append(stream)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        members = sorted([*self.asked, *self.ready, *self.verifying])
        if members:
            stream = data.draw(st.sampled_from(members))
            self.rounds.leave(stream)
            self.asked.pop(stream, None)
            for group in (self.ready, self.verifying):
                if stream in group:
                    group.remove(stream)

    @rule()
    def gather(self) -> None:
        """What the server does when it is free."""
        if self.verifying:
            return
        for stream in [stream for stream, (since, _) in self.asked.items() if self.now - since >= OVERDUE_S]:
            del self.asked[stream]
            self.ready.append(stream)
        if not self.ready:
            self.gathering_since = None
            assert self.rounds.close(self.now) == []
            return
        if self.gathering_since is None:
            self.gathering_since = self.now
        batch = self.rounds.close(self.now)
        if batch:
            assert batch == self.ready[: self.max_streams]
            del self.ready[: len(batch)]
            self.verifying = batch
            self.gathering_since = None
        else:
            closes_at = self.rounds.closes_at()
            assert closes_at is not None
            assert self.asked
            assert self.now < closes_at <= self.gathering_since + PASS_S

    @rule(data=st.data(), due_s=st.floats(0, 5))
    def verified(self, data: st.DataObject, due_s: float) -> None:
        for stream in self.verifying:
            self.expect(stream, data.draw(st.integers(0, 5)), due_s)
        self.verifying = []

    @invariant()
    def everybody_is_in_one_place(self) -> None:
        if not hasattr(self, "rounds"):
            return
        assert self.rounds.ready == tuple(self.ready)
        assert set(self.rounds.drafting) == set(self.asked)
        assert all(self.rounds.owes(stream) for stream in self.asked)
        assert len(self.rounds) == len(self.ready) + len(self.asked)
        assert all(stream in self.rounds for stream in [*self.ready, *self.asked])
        assert all(stream not in self.rounds for stream in self.verifying)
        granted = sum(budget for _, budget in self.asked.values()) + sum(self.budget[stream] for stream in self.ready)
        assert self.rounds.outstanding == granted


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=60, stateful_step_count=40)


def rolling() -> Rolling[str]:
    return Rolling(pass_s=lambda: PASS_S)


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
    rounds: Rolling[str] = Rolling(pass_s=lambda: PASS_S, overdue_s=OVERDUE_S)
    rounds.expect("hung", 4, now=0.0, due_s=0.1)
    assert rounds.close(1.0) == []
    assert rounds.closes_at() == OVERDUE_S
    assert rounds.close(OVERDUE_S) == ["hung"]
