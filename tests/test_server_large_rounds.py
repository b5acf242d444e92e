"""A pass of many streams is committed for some of them at a time, and links are heard in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from goodspeed.messages import Draft, Opened, Queued, ServerMessage, Verdict
from goodspeed.scheduling import FixedS
from goodspeed_server import round_loop, slices
from goodspeed_server.passes import PlannedPass, plan_pass
from goodspeed_server.round_loop import RoundLoop
from tests.planted import PASS_S, Agent, PlantedEngine, make_rounds

STREAMS = 160
"""More than are committed, or told, at a time."""


@dataclass(eq=False)
class Link(Agent):
    """A link on which something happens when it is told the first verdict, as soon as anything can."""

    first: Callable[[], None] = lambda: None

    def post(self, message: ServerMessage) -> None:
        if isinstance(message, Verdict) and not any(isinstance(posted, Verdict) for posted in self.posted):
            asyncio.get_running_loop().call_soon(self.first)
        super().post(message)

    def told(self, stream: int) -> list[Verdict]:
        """What was said to a stream since it was opened."""
        return [message for message in self.posted if isinstance(message, Verdict) and message.stream == stream]


async def one_round(rounds: RoundLoop, link: Link, meanwhile: Callable[[], object]) -> None:
    """Run the round in which the link is told its first verdict, and do something as soon as it has been told that."""

    def first() -> None:
        meanwhile()
        rounds.stop()

    link.first = first
    rounds._telemetry.joined(link.account, 0.0)
    async with asyncio.timeout(60):
        await rounds.run()


async def test_a_text_that_is_closed_while_its_round_is_committed_is_told_nothing() -> None:
    rounds, last = make_rounds(PlantedEngine(STREAMS)), STREAMS - 1
    link = Link()
    for stream in range(STREAMS):
        link.open(rounds, stream)
    await one_round(rounds, link, lambda: rounds.close(link, last))
    assert [verdict.base for verdict in link.told(0)] == [1, 2], "the next round had begun"
    assert link.told(last) == [], "its link was heard before all were told"
    assert last not in {live.number for live in rounds.live}
    assert len(rounds.live) == STREAMS - 1


async def test_an_end_that_is_heard_while_its_round_is_committed_frees_the_row_once() -> None:
    engine = PlantedEngine(STREAMS)
    rounds = make_rounds(engine)
    link = Link()
    for stream in range(STREAMS):
        link.open(rounds, stream)
    await one_round(rounds, link, lambda: rounds.drop(link))
    assert len(rounds.live) == 0
    assert engine.free_rows == STREAMS


@pytest.mark.parametrize("repeated", [False, True])
async def test_a_draft_that_comes_again_while_its_round_is_committed_is_not_answered_twice(repeated: bool) -> None:
    rounds, last = make_rounds(PlantedEngine(STREAMS), FixedS(2), rounds="barrier", capacity=2 * STREAMS), STREAMS - 1
    link = Link()
    for stream in range(STREAMS):
        link.open(rounds, stream)
    drafts = [
        Draft(message.stream, message.base, [0] * message.budget)
        for message in link.posted
        if isinstance(message, Opened)
    ]
    for draft in drafts:
        rounds.draft(link, draft)
    await one_round(rounds, link, (lambda: rounds.draft(link, drafts[last])) if repeated else (lambda: None))
    (verdict,) = link.told(last)
    assert (verdict.base, verdict.accepted) == (1, 2)


@dataclass(eq=False)
class Drafting(Link):
    """A link that drafts upon what it is told; something happens when it has been told of a second round."""

    rounds: RoundLoop | None = None
    second: Callable[[], None] | None = None

    def post(self, message: ServerMessage) -> None:
        super().post(message)
        assert self.rounds is not None
        if isinstance(message, Opened):
            upon = message.base
        elif isinstance(message, Verdict):
            upon = message.base + message.accepted + len(message.tokens)
            if message.base > 1 and self.second is not None:
                asyncio.get_running_loop().call_soon(self.second)
                self.second = None
        else:
            return
        draft = Draft(message.stream, upon, [0] * message.budget)
        asyncio.get_running_loop().call_soon(self.rounds.draft, self, draft)


async def test_who_is_late_while_its_round_is_committed_is_told_what_others_know_of_it() -> None:
    """The rest is said with the verdict, of whose log-probabilities and budget it would know nothing otherwise."""
    rounds, last = make_rounds(PlantedEngine(STREAMS), FixedS(2), rounds="barrier", capacity=2 * STREAMS), STREAMS - 1
    link = Drafting(rounds=rounds)

    def late() -> None:
        (live,) = (live for live in rounds.live if live.number == last)
        assert (live.told_to, live.stream.length) == (4, 7)
        rounds.draft(link, Draft(last, 1, [0, 0]))
        rounds.stop()

    link.second = late
    for stream in range(STREAMS):
        link.open(rounds, stream)
    rounds._telemetry.joined(link.account, 0.0)
    async with asyncio.timeout(60):
        await rounds.run()
    assert [(verdict.base, verdict.accepted + len(verdict.tokens)) for verdict in link.told(last)] == [
        (1, 3), (1, 3), (4, 3)
    ]  # fmt: skip


@pytest.mark.parametrize(("capacity", "granted"), [(8, [0, 0]), (10, [2, 0]), (64, [2, 2])])
def test_what_is_dealt_out_is_no_newcomers_before_it_is_said_to_whom_and_all_else_is(
    capacity: int, granted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "_AT_ONCE", 2)
    rounds = make_rounds(PlantedEngine(8), FixedS(2), rounds="barrier", capacity=capacity)
    link, late = Agent(), Agent()
    for stream in range(4):
        link.open(rounds, stream)
    granting, streams = rounds._granting, list(rounds.live)
    for live in streams:
        granting.rounds.leave(live)
    outstanding = [0]
    for _ in granting.schedule(streams):
        if granting.rounds.outstanding == 4:  # of the eight that are dealt out
            price = granting.price
            late.open(rounds, 1)
            late.open(rounds, 2)
        outstanding.append(granting.rounds.outstanding)
    assert [opened.budget for opened in late.posted if isinstance(opened, Opened)] == granted
    assert outstanding[-1] == max(outstanding) == 8 + sum(granted) <= capacity
    assert granting.price == price


async def test_links_are_heard_between_the_plan_of_a_large_pass_and_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who goes then goes as behind a running pass: its row is nobody else's before that is over."""
    closed, free = asyncio.Event(), []

    def cost(_rows: int, _tokens: int) -> float:
        free.append((closed.is_set(), engine.free_rows, others.posted[-1]))
        return PASS_S

    engine = PlantedEngine(STREAMS, cost=cost)
    rounds, link, others = make_rounds(engine), Link(), Agent()
    for stream in range(STREAMS):
        link.open(rounds, stream)

    def planned(*arguments: Any) -> PlannedPass:
        if not closed.is_set():
            asyncio.get_running_loop().call_soon(leave)
        return plan_pass(*arguments)

    def leave() -> None:
        rounds.close(link, 7)
        others.open(rounds, 0)
        closed.set()

    monkeypatch.setattr(round_loop, "plan_pass", planned)
    rounds._telemetry.joined(others.account, 0.0)
    await one_round(rounds, link, lambda: None)
    assert free[0] == (True, 0, Queued(0, 1))
    assert link.told(7) == []
    assert isinstance(others.posted[1], Opened)
