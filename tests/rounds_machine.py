"""Rounds under a virtual clock, driven as the server drives them: busy with a batch, or gathering."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from goodspeed.rounds import Prospect, Rounds

__all__ = ["RoundsMachine"]

prospects = st.none() | st.builds(Prospect, st.floats(0, 5), st.floats(0, 1), st.floats(0, 1), st.floats(0, 5))


class RoundsMachine(RuleBasedStateMachine):
    """Who is where, kept beside the rounds under test; a subclass makes them, and says when they close."""

    rounds: Rounds[int]
    make: ClassVar[Callable[..., Rounds[int]]]
    """The rounds under test."""
    waits: ClassVar[bool]
    """Whether a stream is not ready before its draft is here."""

    @initialize()
    def start(self) -> None:
        self.rounds = self.make()
        self.now = 0.0
        self.asked: dict[int, float] = {}  # drafting: since when, the one asked first first
        self.ready: list[int] = []
        self.budget: dict[int, int] = {}
        self.awaited: dict[int, int] = {}  # how many guesses of it are waited for, those that are here included
        self.verifying: list[int] = []
        self.gathering_since: float | None = None
        self.names = 0

    def expect(self, stream: int, budget: int, prospect: Prospect | None) -> None:
        self.rounds.expect(stream, budget, self.now, prospect)
        self.budget[stream] = budget
        if self.waits and budget:
            self.asked[stream] = self.now
        else:
            self.ready.append(stream)
        if budget and (self.waits or prospect):
            self.awaited[stream] = budget

    def take(self, batch: list[int]) -> None:
        """A round has closed: over everybody who is ready, the longest ready first."""
        assert batch == self.ready
        assert batch
        self.verifying, self.ready = batch, []
        for stream in batch:
            self.awaited.pop(stream, None)
        self.gathering_since = None

    @rule(budget=st.integers(0, 5), prospect=prospects)
    def join(self, budget: int, prospect: Prospect | None) -> None:
        self.expect(self.names, budget, prospect)
        self.names += 1

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 3.0, 10.0, 25.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data(), drafted=st.integers(1, 5), more=st.booleans())
    def arrive(self, data: st.DataObject, drafted: int, more: bool) -> None:
        if not self.names:
            return
        stream = data.draw(st.integers(0, self.names - 1))
        left = self.awaited.pop(stream, None)
        assert self.rounds.arrive(stream, self.now, drafted, more=more) == (left is not None)
        if stream in self.asked:
            del self.asked[stream]
            self.ready.append(stream)
        elif left is not None and more and left > drafted:
            self.awaited[stream] = left

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        members = sorted([*self.asked, *self.ready, *self.verifying])
        if members:
            stream = data.draw(st.sampled_from(members))
            self.rounds.leave(stream)
            self.asked.pop(stream, None)
            self.awaited.pop(stream, None)
            for group in (self.ready, self.verifying):
                if stream in group:
                    group.remove(stream)

    @rule(data=st.data())
    def verified(self, data: st.DataObject) -> None:
        for stream in self.verifying:
            self.expect(stream, data.draw(st.integers(0, 5)), data.draw(prospects))
        self.verifying = []

    @invariant()
    def everybody_is_in_one_place(self) -> None:
        if not hasattr(self, "rounds"):
            return
        assert self.rounds.ready == tuple(self.ready)
        assert self.rounds.drafting == tuple(self.asked)
        assert len(self.rounds) == len(self.ready) + len(self.asked)
        assert all(stream in self.rounds for stream in [*self.ready, *self.asked])
        assert all(stream not in self.rounds for stream in self.verifying)
        assert self.rounds.outstanding == sum(self.budget[stream] for stream in [*self.ready, *self.asked])
        if not self.asked and not self.ready:
            self.gathering_since = None
