"""For how long a server that goes away goes on, and what it tells whoever comes."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from websockets.asyncio.client import connect

from goodspeed.errors import Overloaded
from goodspeed.messages import Open
from goodspeed.sampling import SamplingParams
from goodspeed_server.draining import Drain
from goodspeed_server.link import Link
from tests.planted import PASS_S, Agent, PlantedEngine, make_rounds
from tests.serving import linked, serving


def test_it_goes_on_for_a_while_and_begins_nothing() -> None:
    now = [100.0]
    drain = Drain(4.0, lambda: now[0])
    drain.check()
    assert (drain.begun, drain.left_s) == (False, None)
    drain.begin()
    now[0] = 101.5
    drain.begin()
    assert (drain.begun, drain.left_s) == (True, 2.5)
    with pytest.raises(Overloaded, match="the server is going away") as refused:
        drain.check()
    assert refused.value.retry_after_s == drain.retry_after_s == 3.5
    now[0] = 200.0
    assert (drain.left_s, drain.retry_after_s) == (0.0, 1.0)


def test_nobody_is_told_to_wait_for_longer_than_users_do() -> None:
    drain = Drain(3600.0, lambda: 0.0)
    drain.begin()
    assert (drain.left_s, drain.retry_after_s) == (3600.0, 10.0)
    drain.begin(at_once=True)
    assert drain.left_s == 0.0


async def test_no_pass_is_begun_once_the_rounds_are_to_end() -> None:
    passes: list[int] = []

    def cost(_rows: int, tokens: int) -> float:
        passes.append(tokens)
        return PASS_S

    rounds, agent = make_rounds(PlantedEngine(1, cost=cost)), Agent()
    async with asyncio.timeout(60):
        running = asyncio.create_task(rounds.run())
        await asyncio.sleep(0)  # until it waits for somebody
        rounds.open(agent, agent.account, Open(0, [1, 2, 3], 3, SamplingParams(), 8, 0))
        rounds.stop()
        await running
    assert passes == []


async def test_who_comes_when_the_door_is_closed_is_cut_off() -> None:
    async with serving() as (server, address), linked(address):
        server._door.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b"", "it would hold up the end for as long as it says nothing"
        writer.close()


async def test_a_link_that_does_not_end_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def run(_: Link) -> None:
        begun.set()
        await never.wait()

    monkeypatch.setattr(Link, "run", run)
    monkeypatch.setattr("goodspeed_server.server._CLOSE_TIMEOUT_S", 0.1)
    async with serving() as (_, address):
        connection = await connect(address)
        await begun.wait()
    assert "1 links have not ended in 0.1 s: the server ends without them" in caplog.messages
    never.set()
    await connection.close()
