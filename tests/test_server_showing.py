"""What whoever watches is shown: one picture for all, made while links are heard."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.messages import Snapshot, decode_server
from goodspeed.snapshot import AgentRow, ServerSnapshot
from goodspeed_server import showing
from goodspeed_server.draining import Drain
from goodspeed_server.live import AgentAccount
from goodspeed_server.round_loop import RoundLoop
from goodspeed_server.showing import Showing
from tests.planted import PlantedEngine, make_rounds

AGENTS = 200
"""More than are looked at at a time."""


def of_many() -> tuple[RoundLoop, list[AgentAccount], Drain, Showing]:
    rounds, drain = make_rounds(PlantedEngine(1)), Drain(60.0)
    accounts = [AgentAccount(f"agent {number}", "none", PRIOR_ALPHA) for number in range(AGENTS)]
    for account in accounts:
        rounds._telemetry.joined(account, rounds.now())
    return rounds, accounts, drain, Showing(rounds, rounds._telemetry, drain)


async def test_links_are_heard_while_a_picture_is_made() -> None:
    rounds, accounts, _, shown = of_many()
    making = asyncio.create_task(shown.recent(0.0))
    await asyncio.sleep(0)
    assert not making.done()
    rounds._telemetry.left(accounts[-1])
    assert [row.name for row in (await making).agents] == [account.name for account in accounts[:-1]]


async def test_all_who_ask_while_a_picture_is_made_get_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, _, _, shown = of_many()
    made, look = 0, rounds._telemetry.agents

    def counted(*arguments: Any) -> Iterator[list[AgentRow]]:
        nonlocal made
        made += 1
        return look(*arguments)

    monkeypatch.setattr(rounds._telemetry, "agents", counted)
    pictures = await asyncio.gather(*(shown.recent(0.0) for _ in range(20)))
    assert made <= 2
    assert all(len(picture.agents) == AGENTS for picture in pictures)
    before = made
    await shown.recent(3600.0)
    assert made == before
    await shown.recent(0.0)
    assert made == before + 1


async def test_that_a_server_goes_away_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "SNAPSHOT_INTERVAL_S", 3600.0)
    _, _, drain, shown = of_many()

    async def seen() -> ServerSnapshot:
        message = decode_server(await shown.frame())
        assert isinstance(message, Snapshot)
        return ServerSnapshot.from_json(message.snapshot)

    before = await shown.frame()
    assert await shown.frame() is before
    assert not (await seen()).draining
    drain.begin()
    shown.outdate()
    assert (await seen()).draining
