"""Rounds under a virtual clock, driven as the server drives them: busy with a batch, or gathering."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from goodspeed.rounds import Rounds

__all__ = ["RoundsMachine"]


class RoundsMachine(RuleBasedStateMachine):
    """Who is where, kept beside the rounds under test; a subclass makes them, and says when they close."""

    rounds: Rounds[int]
    make: ClassVar[Callable[..., Rounds[int]]]
    """The rounds under test, given `max_streams`."""
    parts = False
    """Whether a round may leave some who are ready to the next one."""

    @initialize(max_streams=st.sampled_from([None, None, 1, 3]))
    def start(self, max_streams: int | None) -> None:
        self.rounds = self.make(max_streams=max_streams)
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

    def take(self, batch: list[int]) -> None:
        """A round has closed over whoever has been ready longest."""
        most = self.ready[: self.max_streams]
        assert batch == (most[: len(batch)] if self.parts else most)
        assert batch
        del self.ready[: len(batch)]
        self.verifying = batch
        self.gathering_since = None

    @rule(budget=st.integers(0, 5), due_s=st.floats(0, 5))
    def join(self, budget: int, due_s: float) -> None:
        self.expect(self.names, budget, due_s)
        self.names += 1

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 3.0, 10.0, 25.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        if self.asked:
            stream = data.draw(st.sampled_from(sorted(self.asked)))
            since, granted = self.asked.pop(stream)
            drafted = data.draw(st.none() | st.integers(0, granted))
            assert self.rounds.arrive(stream, self.now, drafted) == self.now - since
            self.budget[stream] = granted if drafted is None else drafted
            self.ready.append(stream)

    @rule(stream=st.integers(0, 30))
    def arrive_unasked(self, stream: int) -> None:
        if stream not in self.asked:
            with pytest.raises(KeyError):
                self.rounds.arrive(stream, self.now)

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
        assert not set(self.ready) & set(self.asked)
        assert not set(self.verifying) & (set(self.ready) | set(self.asked))
        assert len(self.rounds) == len(self.ready) + len(self.asked)
        assert all(stream in self.rounds for stream in [*self.ready, *self.asked])
        assert all(stream not in self.rounds for stream in self.verifying)
        granted = sum(budget for _, budget in self.asked.values()) + sum(self.budget[stream] for stream in self.ready)
        assert self.rounds.outstanding == granted
        if not self.asked and not self.ready:
            self.gathering_since = None
