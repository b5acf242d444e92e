"""Rows and who waits for one: what a server's rounds make of its queue."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.errors import Overloaded
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.messages import Failure, Open, Opened, Queued, ServerMessage, Verdict
from goodspeed.sampling import SamplingParams
from goodspeed_server.allowance import Allowance
from goodspeed_server.live import AgentAccount, Outbox
from goodspeed_server.round_loop import RoundLoop
from tests.planted import Agent, Held, PlantedEngine, make_rounds


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


async def test_a_row_is_given_away_only_when_the_pass_that_writes_it_is_over() -> None:
    held = Held()
    engine = PlantedEngine(rows=1, cost=held)
    rounds = make_rounds(engine)
    leaving, waiting = Agent(), Agent()
    leaving.open(rounds, 0)
    async with asyncio.timeout(60):
        running = asyncio.create_task(rounds.run())
        await held.began.wait()
        waiting.open(rounds, 0)
        rounds.close(leaving, 0)
        assert (rounds.live, rounds.waiting, engine.free_rows, waiting.posted) == ((), 1, 0, [Queued(0, 1)])
        rounds.stop()
        held.go_on.set()
        await running
    assert [live.outbox for live in rounds.live] == [waiting]
    assert isinstance(waiting.posted[-1], Opened)


def counting_looks(rounds: RoundLoop, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many were wanted, each time that somebody looked whose turn it is."""
    wanted: list[int] = []
    look = rounds._streams._admission.next

    def counted(rows: Any, count: int = 1) -> Any:
        wanted.append(count)
        return look(rows, count)

    monkeypatch.setattr(rounds._streams._admission, "next", counted)
    return wanted


@pytest.mark.parametrize("how", ["drop", "park"])
async def test_rows_that_fall_free_with_a_link_are_given_out_together(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = make_rounds(PlantedEngine(4), max_waiting=9)
    leaving, others = Agent(), [Agent() for _ in range(6)]
    leaving.account.session = ("agent", b"session") if how == "park" else None
    for stream in range(4):
        leaving.open(rounds, stream)
    for other in others:
        other.open(rounds, 0)
    wanted = counting_looks(rounds, monkeypatch)
    if how == "drop":
        rounds.drop(leaving)
    else:
        rounds.park(leaving)
    assert wanted == [4], "who is next takes time to find"
    assert [live.outbox for live in rounds.live] == others[:4]
    assert (rounds.waiting, rounds.parked) == (2, 0)


async def test_rows_that_fall_free_in_a_round_are_given_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, agents = make_rounds(PlantedEngine(4), max_waiting=9), [Agent() for _ in range(7)]
    for agent in agents:
        rounds._telemetry.joined(agent.account, 0.0)
        rounds.open(agent, agent.account, Open(0, [1], 1, SamplingParams(), 1, 0, True))
    wanted = counting_looks(rounds, monkeypatch)
    async with asyncio.timeout(60):
        running = asyncio.create_task(rounds.run())
        await rounds.emptied()
        rounds.stop()
        await running
    assert wanted == [4]
    assert all(isinstance(agent.posted[-1], Verdict) for agent in agents)


def test_who_comes_under_the_number_of_one_that_has_gone_is_told_its_place() -> None:
    rounds, _, agent = of_one_row()
    Agent().open(rounds, 0)
    agent.open(rounds, 0)
    rounds.close(agent, 0)
    agent.open(rounds, 0)
    assert agent.posted == [Queued(0, 1), Queued(0, 1)]
