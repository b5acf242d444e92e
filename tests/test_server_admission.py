"""First come, first served: the queue by itself, and the rows behind it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.errors import Overloaded, Refused
from goodspeed.messages import Opened
from goodspeed_server.admission import Admission
from goodspeed_server.live import Outbox
from tests.planted import Agent, PlantedEngine, make_rounds


def queue(*names: str, max_waiting: int = 8) -> Admission[str, int]:
    """A queue in which each waits with its place of arrival."""
    waiting: Admission[str, int] = Admission(max_waiting=max_waiting, retry_after_s=2.5)
    for place, name in enumerate(names):
        waiting.wait(name, place)
    return waiting


def test_first_in_first_out() -> None:
    waiting = queue("b", "a", "c")
    assert [waiting.next() for _ in range(4)] == [("b", 0), ("a", 1), ("c", 2), None]


def test_who_withdraws_frees_a_place_and_the_others_move_up() -> None:
    waiting = queue("a", "b", "c", max_waiting=3)
    assert waiting.withdraw("a") == 0
    waiting.wait("late", 9)
    assert [waiting.next() for _ in range(3)] == [("b", 1), ("c", 2), ("late", 9)]


def test_withdrawing_gives_back_what_waited() -> None:
    waiting = queue("a")
    assert waiting.withdraw("b") is None
    assert "a" in waiting
    assert waiting.withdraw("a") == 0
    assert waiting.withdraw("a") is None
    assert len(waiting) == 0


def test_a_link_that_goes_takes_its_own_requests_out_of_the_queue() -> None:
    waiting = queue("a1", "b1", "a2", "b2")
    assert waiting.withdraw_all(lambda name: name.startswith("a")) == [0, 2]
    assert [waiting.next(), waiting.next()] == [("b1", 1), ("b2", 3)]


@pytest.mark.parametrize("max_waiting", [0, 1, 3])
def test_a_full_queue_refuses_with_its_reason_and_keeps_what_it_has(max_waiting: int) -> None:
    names = [str(place) for place in range(max_waiting)]
    waiting = queue(*names, max_waiting=max_waiting)
    already = f"taken and {max_waiting} streams wait already" if max_waiting else "taken"
    with pytest.raises(Refused, match=f"{already}: try again in 2.5 s.*--max-waiting") as refused:
        waiting.wait("one too many", 99)
    assert isinstance(refused.value, Overloaded)
    assert (refused.value.code, refused.value.retry_after_s) == ("overloaded", 2.5)
    assert [name for name in names if name in waiting] == names
    assert len(waiting) == max_waiting


AGENTS = 3
what = st.sampled_from(["open", "open", "open", "close", "drop"])
actions = st.lists(st.tuples(what, st.integers(0, AGENTS - 1), st.integers(0, 3)), max_size=40)


@given(st.integers(1, 3), st.integers(0, 3), actions)
def test_the_rows_are_with_the_streams_that_have_been_open_longest(
    rows: int, max_waiting: int, some: list[tuple[str, int, int]]
) -> None:
    engine = PlantedEngine(rows)
    rounds = make_rounds(engine, max_waiting=max_waiting)
    agents = [Agent() for _ in range(AGENTS)]
    wanted: list[tuple[Outbox, int]] = []  # by arrival
    told: list[tuple[Outbox, int]] = []
    for action, who, number in some:
        agent, stream = agents[who], (agents[who], number)
        if action == "close":
            rounds.close(agent, number)
            wanted = [other for other in wanted if other != stream]
        elif action == "drop":
            rounds.drop(agent)
            wanted = [other for other in wanted if other[0] is not agent]
        elif stream not in wanted and len(wanted) < rows + max_waiting:
            agent.open(rounds, number)
            wanted.append(stream)
        elif stream not in wanted:
            with pytest.raises(Overloaded):
                agent.open(rounds, number)
        served = [(live.outbox, live.number) for live in rounds.live]
        told += [stream for stream in served if stream not in told]
        assert served == wanted[:rows]
        assert rounds.waiting == len(wanted[rows:])
        assert engine.free_rows == rows - len({live.row for live in rounds.live}) == rows - len(served)
    for agent in agents:
        opened = [message.stream for message in agent.posted if isinstance(message, Opened)]
        assert set(opened) == {number for whose, number in told if whose is agent}


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
        assert (rounds.live, rounds.waiting, engine.free_rows, waiting.posted) == ((), 1, 0, [])
        rounds.stop()
        go_on.set()
        await running
    assert [live.outbox for live in rounds.live] == [waiting]
    assert isinstance(waiting.posted[0], Opened)
