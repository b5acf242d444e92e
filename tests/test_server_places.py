"""Who waits is told its place as it changes, and not all the time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.messages import Queued
from goodspeed_server.places import Places
from tests.planted import Agent, PlantedEngine, make_rounds


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
            assert 0 < len(due) <= 32, "the event loop has others to serve"
            known |= dict(due)
            now, calls = max(now, places.next_at or now), calls + 1
        assert calls == 32, "nobody is told twice before all others are told once"
        places.due(order, now + 0.25)
        assert places.next_at is None


def test_of_a_flood_that_waits_not_everybody_is_looked_at_for_each_that_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, looked = 0.0, 0
    rounds, agent = make_rounds(PlantedEngine(1), max_waiting=2000), Agent()
    streams = rounds._streams
    streams._clock = lambda: now
    order = streams._admission.order

    def counted(rows: Mapping[Any, int]) -> list[Any]:
        nonlocal looked
        keys = order(rows)
        looked += len(keys)
        return keys

    monkeypatch.setattr(streams._admission, "order", counted)
    for number in range(1001):
        agent.open(rounds, number)
    assert looked < 12_000, "not half a million"
    while (due_at := streams.tell_places()) is not None:
        now = due_at
    told = {message.stream: message.place for message in agent.posted if isinstance(message, Queued)}
    assert told == {number: number for number in range(1, 1001)}
