"""The queue in front of the rows, whatever comes and goes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from goodspeed.errors import Overloaded
from tests.queueing import WEIGHTS, join, queue


@dataclass
class Asked:
    owner: str
    tokens: int
    arrival: int


class AdmissionMachine(RuleBasedStateMachine):
    """Whatever comes and goes: the bounds hold, and nobody starves."""

    @initialize(rows=st.integers(1, 4), max_waiting=st.integers(0, 6), max_tokens=st.integers(1, 60))
    def begin(self, rows: int, max_waiting: int, max_tokens: int) -> None:
        self.max_waiting, self.max_tokens = max_waiting, max_tokens
        self.queue = queue(max_waiting=max_waiting, max_tokens=max_tokens, rows=rows, keep_s=99.0)
        self.free, self.arrivals = rows, 0
        self.waiting: dict[str, Asked] = {}
        self.gone: dict[str, Asked] = {}
        self.running: list[str] = []
        self.places: dict[str, int] = {}
        """Of the first request of everybody without a row."""
        self.firsts: dict[str, str] = {}

    def held(self) -> Counter[str]:
        return Counter(self.running)

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 10))
    def leave(self, which: int) -> None:
        key = sorted(self.waiting)[which % len(self.waiting)]
        self.gone[key] = self.waiting.pop(key)
        self.queue.leave(key, key, float(self.arrivals))

    @precondition(lambda self: self.gone)
    @rule(which=st.integers(0, 10))
    def come_back(self, which: int) -> None:
        key = sorted(self.gone)[which % len(self.gone)]
        asked, kept = self.gone.pop(key), self.queue.absences.held(key) is not None
        if self.free or not kept:
            self.queue.absences.back(key)
            return
        assert join(self.queue, key, asked.arrival, asked.tokens, float(self.arrivals), name=key) == []
        self.waiting[key] = asked
        # Who comes back to a place that was kept stands before those who came behind it.
        self.places = {owner: place + 1 for owner, place in self.places.items()}

    @rule(owner=st.sampled_from(sorted(WEIGHTS)), tokens=st.integers(1, 40))
    def ask(self, owner: str, tokens: int) -> None:
        self.arrivals += 1
        key = f"{owner}{self.arrivals}"
        if self.free and not self.waiting:
            self.free -= 1
            self.running.append(owner)
            return
        before = dict(self.waiting)
        try:
            displaced = join(self.queue, key, self.arrivals, tokens, now=float(self.arrivals))
        except Overloaded:
            assert len(self.queue) == len(before)
            assert self.must_wait_outside(owner, tokens, before)
            return
        for gone, _ in displaced:
            asked = self.waiting.pop(gone)
            assert asked.owner != owner
            mine = [one for one in (*before.values(), Asked(owner, tokens, 0)) if one.owner == owner]
            theirs = [one for one in before.values() if one.owner == asked.owner]
            more = len(theirs) / WEIGHTS[asked.owner] > len(mine) / WEIGHTS[owner]
            larger = sum(one.tokens for one in theirs) / WEIGHTS[asked.owner] > (
                sum(one.tokens for one in mine) / WEIGHTS[owner]
            )
            assert more or larger
            assert gone not in self.queue
        self.waiting[key] = Asked(owner, tokens, self.arrivals)

    def must_wait_outside(self, owner: str, tokens: int, before: dict[str, Asked]) -> bool:
        """Whether there was no room, and nobody else had more than the newcomer would."""
        fits = len(before) < self.max_waiting and sum(one.tokens for one in before.values()) + tokens <= self.max_tokens
        alone = tokens > self.max_tokens or self.max_waiting == 0
        by_owner = Counter(one.owner for one in before.values())
        shares = {other: count / WEIGHTS[other] for other, count in by_owner.items() if other != owner}
        small = sum(one.tokens for one in before.values()) + tokens <= self.max_tokens
        crowded = max(shares.values(), default=0.0) > (by_owner[owner] + 1) / WEIGHTS[owner]
        return not fits and (alone or not (small and crowded))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 10))
    def end(self, which: int) -> None:
        owner = self.running.pop(which % len(self.running))
        self.queue.row_fell_free(owner, 1.0)
        given = self.queue.next(self.held())
        if not given:
            assert not self.waiting
            self.free += 1
            return
        asked, held = self.waiting.pop(given[0][0]), self.held()
        for other in self.waiting.values():
            assert held[other.owner] / WEIGHTS[other.owner] >= held[asked.owner] / WEIGHTS[asked.owner]
            assert other.owner != asked.owner or other.arrival > asked.arrival
        self.running.append(asked.owner)

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 10))
    def give_up(self, which: int) -> None:
        key = sorted(self.waiting)[which % len(self.waiting)]
        del self.waiting[key]
        assert self.queue.withdraw(key) is not None

    @invariant()
    def bounded_and_the_same(self) -> None:
        if not hasattr(self, "queue"):
            return
        absences = self.queue.absences
        assert len(self.queue) == len(self.waiting) <= self.max_waiting - len(absences)
        assert self.queue.tokens == sum(asked.tokens for asked in self.waiting.values())
        assert absences.tokens == sum(asked.tokens for name, asked in self.gone.items() if absences.held(name))
        assert self.queue.tokens + absences.tokens <= self.max_tokens
        assert sorted(self.queue.order(self.held())) == sorted(self.waiting)
        assert not (self.waiting and self.free)

    @invariant()
    def nobody_without_a_row_falls_back(self) -> None:
        if not hasattr(self, "queue"):
            return
        places: dict[str, int] = {}
        for place, key in enumerate(self.queue.order(self.held()), start=1):
            places.setdefault(self.waiting[key].owner, place)
        without = {owner: place for owner, place in places.items() if owner not in self.running}
        for owner, place in without.items():
            if owner in self.places and self.firsts[owner] in self.waiting:
                assert place <= self.places[owner]
        self.places = without
        self.firsts = {}
        for key, asked in sorted(self.waiting.items(), key=lambda item: item[1].arrival):
            self.firsts.setdefault(asked.owner, key)


AdmissionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAdmissionMachine = AdmissionMachine.TestCase
