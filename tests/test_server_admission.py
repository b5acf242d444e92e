"""The queue in front of the rows: fair among agents, bounded, and honest about places."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from goodspeed.errors import Overloaded, Refused
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.messages import Failure, Open, Opened, Queued, ServerMessage
from goodspeed.sampling import SamplingParams
from goodspeed_server.admission import Admission, Places
from goodspeed_server.allowance import Allowance
from goodspeed_server.live import AgentAccount, Outbox
from goodspeed_server.round_loop import RoundLoop
from tests.planted import Agent, PlantedEngine, make_rounds

WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.5, "e": 1.0}
"""Agents, and what each counts."""
NOBODY: dict[str, int] = {}


def queue(
    *names: str, max_waiting: int = 8, max_tokens: int = 1000, rows: int = 4, keep_s: float = 0.0
) -> Admission[str, str, int]:
    """A queue in which each waits with its place of arrival; its owner is the first letter of its name."""
    waiting: Admission[str, str, int] = Admission(rows, max_waiting=max_waiting, max_tokens=max_tokens, keep_s=keep_s)
    for place, name in enumerate(names):
        assert join(waiting, name, place) == []
    return waiting


def join(
    waiting: Admission[str, str, int], key: str, request: int = 0, tokens: int = 1, now: float = 0.0, name: str = ""
) -> list[tuple[str, int]]:
    return waiting.wait(
        key, request, owner=key[0], weight=lambda: WEIGHTS[key[0]], tokens=tokens, now=now, name=name or None
    )


def test_first_in_first_out_among_equals() -> None:
    waiting = queue("b1", "a1", "c1")
    assert [waiting.next(NOBODY) for _ in range(4)] == [("b1", 0), ("a1", 1), ("c1", 2), None]


def test_who_has_fewer_rows_comes_first_whoever_came_first() -> None:
    waiting = queue("a1", "a2", "b1")
    assert list(waiting.order({"a": 1})) == ["b1", "a1", "a2"]
    assert list(waiting.order({})) == ["a1", "b1", "a2"]
    assert list(waiting.order({"b": 3})) == ["a1", "a2", "b1"]


def test_among_equals_it_is_the_turn_of_who_has_been_without_a_row_for_longest() -> None:
    waiting = queue("a1", "a2", "b1", "b2")
    waiting.row_fell_free("a", held_s=1.0)
    join(waiting, "c1")
    assert list(waiting.order({})) == ["b1", "a1", "c1", "b2", "a2"]
    waiting.row_fell_free("b", held_s=1.0)
    assert list(waiting.order({"c": 1})) == ["a1", "b1", "c1", "a2", "b2"]


def test_a_greater_weight_has_more_rows() -> None:
    waiting = queue("a1", "a2", "a3", "c1", "c2", "c3", "c4")
    assert list(waiting.order({"a": 1, "c": 1})) == ["c1", "a1", "c2", "c3", "a2", "c4", "a3"]


def test_withdrawing_gives_back_what_waited_and_the_others_move_up() -> None:
    waiting = queue("a1", "b1", "a2", max_waiting=3)
    assert waiting.withdraw("c1") is None
    assert waiting.withdraw("a1") == 0
    assert waiting.withdraw("a1") is None
    join(waiting, "c1", 9)
    assert [waiting.next(NOBODY) for _ in range(4)] == [("b1", 1), ("a2", 2), ("c1", 9), None]
    assert (len(waiting), waiting.tokens) == (0, 0)


def test_who_has_left_for_a_while_is_back_where_it_stood() -> None:
    waiting = queue("a1", "b1", "b2", "c1", keep_s=30.0)
    assert waiting.leave("b1", "b one", now=1.0) == 1
    assert list(waiting.order(NOBODY)) == ["a1", "b2", "c1"], "no row is kept for it"
    join(waiting, "d1")
    assert join(waiting, "b3", 9, name="b one") == []
    assert list(waiting.order(NOBODY)) == ["a1", "b3", "c1", "d1", "b2"]
    assert (len(waiting.absences), waiting.absences.tokens) == (0, 0)


def test_a_place_is_kept_for_a_while_and_not_for_longer() -> None:
    waiting = queue("a1", "b1", keep_s=30.0)
    waiting.leave("a1", "a one", now=1.0)
    waiting.absences.expire(30.9)
    assert waiting.absences.held("a one") is not None
    waiting.absences.expire(waiting.absences.expires_at or 0.0)
    join(waiting, "a1", 9, name="a one")
    assert list(waiting.order(NOBODY)) == ["b1", "a1"]
    brief = queue("a1")
    brief.leave("a1", "a one", now=1.0)
    assert len(brief.absences) == 0


def test_room_is_kept_as_far_as_nobody_who_is_there_wants_it() -> None:
    waiting = queue("a1", "b1", "c1", max_waiting=3, max_tokens=100, keep_s=30.0)
    waiting.leave("a1", "a one", now=1.0)
    waiting.leave("b1", "b one", now=2.0)
    assert join(waiting, "e1") == []
    assert waiting.absences.held("a one") is None, "who went first goes first"
    assert waiting.absences.held("b one") is not None
    assert join(waiting, "b1", name="b one") == []
    with pytest.raises(Overloaded):
        join(waiting, "a1", name="a one")
    waiting.leave("b1", "b one", now=3.0)
    assert waiting.absences.tokens == 1
    waiting.withdraw("c1")
    join(waiting, "d1", tokens=99)
    assert len(waiting.absences) == 0, "nor is memory"


@pytest.mark.parametrize("max_waiting", [0, 1, 3])
def test_a_full_queue_refuses_with_its_reason_and_keeps_what_it_has(max_waiting: int) -> None:
    names = [f"{owner}1" for owner in "abc"[:max_waiting]]
    waiting = queue(*names, max_waiting=max_waiting)
    already = f"taken and {max_waiting} streams wait already" if max_waiting else "taken"
    with pytest.raises(Refused, match=f"{already}: try again in 1.0 s.*--max-waiting") as refused:
        join(waiting, "d1", tokens=1)
    assert isinstance(refused.value, Overloaded)
    assert refused.value.code == "overloaded"
    assert list(waiting.order(NOBODY)) == names


def test_who_waits_with_most_makes_room_for_who_does_not_wait_yet() -> None:
    waiting = queue("a1", "a2", "a3", max_waiting=3)
    assert join(waiting, "b1") == [("a3", 2)]
    with pytest.raises(Overloaded):
        join(waiting, "b2")  # b would have as many as a
    with pytest.raises(Overloaded):
        join(waiting, "a4")
    assert join(waiting, "c1") == [("a2", 1)]
    assert list(waiting.order(NOBODY)) == ["a1", "b1", "c1"]


def test_prompts_that_wait_are_bounded_by_their_tokens() -> None:
    waiting = queue(max_tokens=100)
    join(waiting, "a1", 1, tokens=40)
    join(waiting, "a2", 2, tokens=50)
    with pytest.raises(Overloaded):
        join(waiting, "a3", 3, tokens=11)
    assert join(waiting, "b1", 4, tokens=10) == []
    # What has the most of what is short is displaced, last come first, and no more than is needed.
    assert join(waiting, "b2", 5, tokens=30) == [("a2", 2)]
    with pytest.raises(Overloaded):
        join(waiting, "c1", 6, tokens=101)
    assert (waiting.tokens, sorted(waiting)) == (80, [1, 4, 5])


def test_a_kept_place_is_no_better_than_the_one_that_was_left() -> None:
    waiting = queue("a1", "b1", keep_s=9.0)
    waiting.row_fell_free("a", 1.0)
    assert list(waiting.order(NOBODY)) == ["b1", "a1"]
    waiting.leave("a1", "a one", now=1.0)
    assert join(waiting, "a1", now=2.0, name="a one") == []
    assert list(waiting.order(NOBODY)) == ["b1", "a1"]


def test_whoever_is_refused_at_once_is_told_to_come_back_one_after_another() -> None:
    waiting = queue(rows=4)
    for _ in range(50):
        waiting.row_fell_free("a", held_s=8.0)
    waits = [waiting.refusal(now=100.0).retry_after_s for _ in range(20)]
    assert waits[:4] == [pytest.approx(2.0 * place) for place in (1, 2, 3, 4)]
    assert waits[-1] == 30.0
    # Nobody is told of what is over.
    assert waiting.refusal(now=1000.0).retry_after_s == pytest.approx(2.0)
    for _ in range(50):
        waiting.row_fell_free("a", held_s=0.01)
    assert waiting.refusal(now=2000.0).retry_after_s == 0.5


def test_rows_that_are_held_for_longer_than_any_before_are_not_said_to_fall_free_at_once() -> None:
    rounds, now = make_rounds(PlantedEngine(2), max_waiting=0), 0.0
    rounds._streams._clock = lambda: now
    agent = Agent()
    for stream in range(20):
        agent.open(rounds, stream)
        now += 0.5
        rounds.close(agent, stream)
    for stream in (20, 21):
        agent.open(rounds, stream)
    for waited_s, expected_s in ((0.0, 0.5), (12.0, 6.0), (3600.0, 30.0)):
        now = 10.0 + waited_s
        with pytest.raises(Overloaded) as refused:
            agent.open(rounds, 22)
        assert refused.value.retry_after_s == pytest.approx(expected_s)


requests = st.lists(st.tuples(st.sampled_from(sorted(WEIGHTS)), st.integers(1, 30)), min_size=1, max_size=25)
held_rows = st.dictionaries(st.sampled_from(sorted(WEIGHTS)), st.integers(0, 4))


@given(requests, held_rows)
def test_a_place_is_how_often_a_row_is_given_away_until_then(some: list[tuple[str, int]], rows: dict[str, int]) -> None:
    waiting = queue(max_waiting=100)
    arrived = []
    for number, (owner, tokens) in enumerate(some):
        join(waiting, f"{owner}{number}", number, tokens)
        arrived.append((owner, number))
    held, places = Counter(rows), list(waiting.order(rows))
    for told in places:
        # By brute force: fewest rows for the weight, then whoever came first.
        owner, number = min(arrived, key=lambda one: (held[one[0]] / WEIGHTS[one[0]], one[1]))
        assert told == f"{owner}{number}"
        assert waiting.next(held) == (told, number)
        arrived.remove((owner, number))
        held[owner] += 1
    assert arrived == []


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
        if given is None:
            assert not self.waiting
            self.free += 1
            return
        asked, held = self.waiting.pop(given[0]), self.held()
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


@given(st.lists(st.tuples(st.floats(0, 0.4), st.permutations("abcde"), st.integers(0, 5)), max_size=30))
def test_everybody_knows_its_place_and_is_not_told_all_the_time(steps: list[tuple[float, list[str], int]]) -> None:
    places: Places[str] = Places()
    now, known, told_at, order = 0.0, dict[str, int](), dict[str, float](), list[str]()
    for after_s, everybody, size in steps:
        now += after_s
        order = everybody[:size]
        known = {name: place for name, place in known.items() if name in order}
        for name, place in places.due(order, now):
            assert name not in known or (known[name] != place and now >= told_at[name] + 0.25)
            known[name], told_at[name] = place, now
        late = [name for name in order if known[name] != order.index(name) + 1]
        assert known.keys() == set(order)
        assert (places.next_at is not None) == bool(late)
        if late:
            assert places.next_at == min(told_at[name] + 0.25 for name in late) > now
    if places.next_at is not None:
        places.due(order, places.next_at + 0.25)
        assert places.next_at is None, "in the end everybody knows"


def test_of_very_many_some_are_told_at_a_time_and_nobody_is_forgotten() -> None:
    places: Places[int] = Places()
    everybody, known, now = list(range(1000)), dict[int, int](), 0.0
    for order in (everybody, everybody[1:], everybody[2:]):
        known = {name: place for name, place in known.items() if name in order}
        calls, now = 0, now + 1.0
        while known != {name: place for place, name in enumerate(order, start=1)}:
            due = places.due(order, now)
            assert 0 < len(due) <= 128, "the event loop has others to serve"
            known |= dict(due)
            now, calls = max(now, places.next_at or now), calls + 1
        assert calls == 8, "nobody is told twice before all others are told once"
        places.due(order, now + 0.25)
        assert places.next_at is None


AGENTS = 3
what = st.sampled_from(["open", "open", "open", "close", "drop"])
actions = st.lists(st.tuples(what, st.integers(0, AGENTS - 1), st.integers(0, 3)), max_size=40)


@given(st.integers(1, 3), st.integers(0, 3), actions)
def test_rows_are_never_idle_while_somebody_waits_and_who_waits_is_told(
    rows: int, max_waiting: int, some: list[tuple[str, int, int]]
) -> None:
    engine = PlantedEngine(rows)
    rounds = make_rounds(engine, max_waiting=max_waiting)
    agents = [Agent() for _ in range(AGENTS)]
    wanted: set[tuple[Outbox, int]] = set()
    for action, who, number in some:
        agent, stream = agents[who], (agents[who], number)
        if action == "close":
            rounds.close(agent, number)
            wanted.discard(stream)
        elif action == "drop":
            rounds.drop(agent)
            wanted = {other for other in wanted if other[0] is not agent}
        elif stream not in wanted:
            try:
                agent.open(rounds, number)
            except Overloaded:
                assert len(wanted) == rows + max_waiting
            else:
                wanted.add(stream)
                wanted -= {
                    (other, message.stream)
                    for other in agents
                    for message in other.posted
                    if isinstance(message, Failure)
                }
        for other in agents:
            other.posted = [message for message in other.posted if not isinstance(message, Failure)]
        served = {(live.outbox, live.number) for live in rounds.live}
        assert len(served) == min(rows, len(wanted))
        assert served <= wanted
        assert rounds.waiting == len(wanted) - len(served) <= max_waiting
        assert engine.free_rows == rows - len({live.row for live in rounds.live}) == rows - len(served)
        for waiting, number in wanted - served:
            assert isinstance(last_word(waiting, number), Queued)
        for live in rounds.live:
            assert isinstance(last_word(live.outbox, live.number), Opened)


def last_word(outbox: Outbox, number: int) -> ServerMessage:
    assert isinstance(outbox, Agent)
    return next(m for m in reversed(outbox.posted) if isinstance(m, Queued | Opened) and m.stream == number)


def of_one_row(**settings: Any) -> tuple[RoundLoop, Agent, Agent]:
    return make_rounds(PlantedEngine(1), **settings), Agent(), Agent()


def test_a_row_goes_to_the_agent_that_has_none() -> None:
    rounds = make_rounds(PlantedEngine(2))
    many, one = Agent(), Agent()
    for number in range(4):
        many.open(rounds, number)
    one.open(rounds, 0)
    assert one.posted == [Queued(0, 1)]
    rounds.close(many, 0)
    assert [(live.outbox, live.number) for live in rounds.live] == [(many, 1), (one, 0)]


def of_a_token(allowance: Allowance, weight: float = 1.0) -> Agent:
    return Agent(account=AgentAccount("box", "none", PRIOR_ALPHA, allowance=allowance, weight=weight))


def test_the_links_of_a_token_wait_as_one() -> None:
    rounds, token = make_rounds(PlantedEngine(2), max_waiting=3), Allowance("many")
    held, *many = (of_a_token(token) for _ in range(4))
    other, one = of_a_token(Allowance("other")), of_a_token(Allowance("one"))
    held.open(rounds, 0)
    other.open(rounds, 0)
    for link in many:
        link.open(rounds, 0)
    one.open(rounds, 0)
    (refusal,) = (message for link in many for message in link.posted if isinstance(message, Failure))
    assert (refusal.stream, many[2].posted[-1]) == (0, refusal), "the token with the most makes room, not a link"
    rounds.close(other, 0)
    assert one.posted == [Queued(0, 1), Opened(0, 1, 0)], "the token without a row comes before any link of the other"
    rounds.close(one, 0)
    assert [live.outbox for live in rounds.live] == [held, many[0]]


def test_a_token_waits_with_the_weight_of_the_link_whose_turn_it_is() -> None:
    rounds, heavy = make_rounds(PlantedEngine(3)), Allowance("heavy")
    held, more = of_a_token(heavy, 2.0), of_a_token(heavy, 2.0)
    light = of_a_token(Allowance("light"))
    for agent, stream in ((held, 0), (light, 0), (light, 1), (light, 2), (more, 0)):
        agent.open(rounds, stream)
    rounds.close(light, 0)
    assert [(live.outbox, live.number) for live in rounds.live] == [(held, 0), (light, 1), (more, 0)]
    more.account.weight = held.account.weight = 0.1
    more.open(rounds, 1)
    rounds.close(more, 0)
    assert [(live.outbox, live.number) for live in rounds.live] == [(held, 0), (light, 1), (light, 2)]


def test_who_is_displaced_is_told_when_to_come_back() -> None:
    rounds, many, one = of_one_row(max_waiting=2)
    for number in range(3):
        many.open(rounds, number)
    one.open(rounds, 0)
    (refusal,) = (message for message in many.posted if isinstance(message, Failure))
    assert (refusal.code, refusal.stream) == ("overloaded", 2)
    assert refusal.retry_after_s is not None
    assert one.posted == [Queued(0, 1)]
    assert rounds.waiting == 2


def test_an_agent_has_no_more_streams_than_the_operator_allows() -> None:
    rounds, many, one = of_one_row(max_streams_per_agent=2)
    many.open(rounds, 0)
    many.open(rounds, 1)
    with pytest.raises(Overloaded, match=r"may have 2 streams at a time.*--max-streams-per-agent"):
        many.open(rounds, 2)
    one.open(rounds, 0)
    rounds.close(many, 0)
    many.open(rounds, 3)


def test_long_prompts_do_not_fill_the_memory_from_the_queue() -> None:
    rounds, first, second = of_one_row(max_waiting_tokens=50)
    first.open(rounds, 0)
    prompt = Open(1, [1] * 40, 40, SamplingParams(), 8, 0)
    rounds.open(first, first.account, prompt)
    with pytest.raises(Overloaded, match="--max-waiting-tokens"):
        rounds.open(second, second.account, prompt)
    second.open(rounds, 2)
    assert rounds.waiting == 2


async def test_places_are_told_as_they_change() -> None:
    rounds, ahead, behind = of_one_row()
    ahead.open(rounds, 0)
    ahead.open(rounds, 1)
    behind.open(rounds, 0)
    assert behind.posted == [Queued(0, 1)], "who has no row comes before who has one"
    assert ahead.posted[1:] == [Queued(1, 1)]
    for agent in (ahead, behind):
        rounds._telemetry.joined(agent.account, 0.0)
    async with asyncio.timeout(60):
        running = asyncio.create_task(rounds.run())
        while rounds.live or rounds.waiting:
            await asyncio.sleep(0)
        rounds.stop()
        await running
    assert [type(message) for message in behind.posted][:2] == [Queued, Opened]
    assert [m.stream for m in ahead.posted if isinstance(m, Opened)] == [0, 1]


def test_of_a_flood_that_waits_not_everybody_is_looked_at_for_each_that_comes() -> None:
    now, looked = 0.0, 0
    rounds, agent = make_rounds(PlantedEngine(1), max_waiting=2000), Agent()
    streams = rounds._streams
    streams._clock = lambda: now
    order = streams._admission.order

    def counted(rows: Mapping[Any, int]) -> Iterator[Any]:
        nonlocal looked
        for key in order(rows):
            looked += 1
            yield key

    streams._admission.order = counted  # type: ignore[method-assign]
    for number in range(1001):
        agent.open(rounds, number)
    assert looked < 12_000, "not half a million"
    while (due_at := streams.tell_places()) is not None:
        now = due_at
    told = {message.stream: message.place for message in agent.posted if isinstance(message, Queued)}
    assert told == {number: number for number in range(1, 1001)}


async def test_a_row_is_given_away_only_when_the_pass_that_writes_it_is_over() -> None:
    loop = asyncio.get_running_loop()
    began, go_on = asyncio.Event(), threading.Event()

    def held(_rows: int, _tokens: int) -> float:
        loop.call_soon_threadsafe(began.set)
        assert go_on.wait(timeout=60)
        return 0.01

    engine = PlantedEngine(rows=1, cost=held)
    rounds = make_rounds(engine)
    leaving, waiting = Agent(), Agent()
    leaving.open(rounds, 0)
    async with asyncio.timeout(60):
        running = asyncio.create_task(rounds.run())
        await began.wait()
        waiting.open(rounds, 0)
        rounds.close(leaving, 0)
        assert (rounds.live, rounds.waiting, engine.free_rows, waiting.posted) == ((), 1, 0, [Queued(0, 1)])
        rounds.stop()
        go_on.set()
        await running
    assert [live.outbox for live in rounds.live] == [waiting]
    assert isinstance(waiting.posted[-1], Opened)
