"""`make bench-attacks`: every attacker of the server itself, in small, meets its defence; cases do not mix."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from bench.attacks import attacker, beside, holders, strangers
from bench.attacks.floods import FLOODS, THROTTLED
from bench.attacks.newcomers import newcomers
from bench.attacks.readings import Present, read
from bench.attacks.sockets import Tally, Target
from goodspeed.credentials import NOBODY, Credentials
from goodspeed.errors import GoodSpeedError
from goodspeed.messages import Failure, encode
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import DoorSettings
from goodspeed_server.tokens import TokenStore
from tests.serving import Peer, serving, tiny_settings
from tests.test_server import PROMPT, target_text

assert attacker.REGISTERED
DOOR = DoorSettings(max_links_per_address=8, handshakes_per_minute=40, failed_tokens_per_minute=4)


def counted(server: VerificationServer, code: str) -> float:
    registry = server._metrics._registry
    if code == THROTTLED:
        return registry.get_sample_value("goodspeed_throttled_seconds_total") or 0.0
    return registry.get_sample_value("goodspeed_refusals_total", {"code": code}) or 0.0


@pytest.mark.parametrize("name", [name for name, flood in FLOODS.items() if flood.met_by])
async def test_an_attacker_meets_its_defence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "HALF_OPEN", 32)
    monkeypatch.setattr(strangers, "KNOCKING", 4)
    monkeypatch.setattr(holders, "LINKS", 1)
    flood = FLOODS[name]
    store = TokenStore(tmp_path / "tokens.json")
    honest, attacking = (store.create(who, "agent") for who in ("edge", "attacker"))
    rounds = {"rounds": flood.rounds, "round_timeout_s": 0.05}
    settings = tiny_settings(door=DOOR, tokens=tmp_path / "tokens.json", rounds=rounds)
    async with asyncio.timeout(60), serving(settings) as (server, address):
        headers = {"Authorization": f"Bearer {honest}"}
        async with connect(address, compression=None, additional_headers=headers) as connection:
            peer = Peer(connection)
            await peer.greet()
            target = Target("127.0.0.1", int(address.rpartition(":")[2]), attacking, "127.0.0.2")
            at_it = asyncio.create_task(flood.run(target, Tally()))
            while not any(counted(server, code) for code in flood.met_by):
                assert not at_it.done()
                await asyncio.sleep(0.01)
            if flood.rounds == "barrier":
                assert await peer.generate(0, PROMPT) == target_text(PROMPT, 8)
            at_it.cancel()
            await asyncio.wait([at_it])


@contextlib.asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[tuple[beside._World, Credentials]]:
    """A server without anybody, as cases see it, and what an agent shows it."""
    store = TokenStore(folder / "tokens.json")
    shown, watching = Credentials(token=store.create("edge", "agent")), store.create("eye", "monitor")
    async with serving(tiny_settings(tokens=folder / "tokens.json")) as (_, address):
        yield beside._World(address, address, shown, "", watching, beside._Honest()), shown


async def test_a_case_ends_when_nobody_is_left_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_ALONE", Present(links=0, agents=0, pending=1))
    monkeypatch.setattr(beside, "_LOOK_EVERY_S", 0.0)
    async with asyncio.timeout(60), watched(tmp_path) as (world, shown):
        headers = shown.headers(world.address)
        async with connect(world.address, compression=None, additional_headers=headers) as connection:
            await Peer(connection).greet()
            reading = await asyncio.to_thread(read, world.address, world.watching)
            assert reading.present == Present(links=1, agents=1, pending=1)
            resting = asyncio.create_task(world.rest("pings"))
            assert (await world.read())[0].present.links == 1
            assert not resting.done()
        await resting


async def test_what_stays_of_an_attacker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_ALONE", Present(links=0, agents=0, pending=1))
    monkeypatch.setattr(beside, "_GONE_WITHIN_S", 0.0)
    async with asyncio.timeout(60), watched(tmp_path) as (world, shown):
        headers = shown.headers(world.address)
        async with connect(world.address, compression=None, additional_headers=headers) as connection:
            await Peer(connection).greet()
            with pytest.raises(GoodSpeedError, match=r"'pings' had gone the server still has .*links=1"):
                await world.rest("pings")


def test_no_two_attackers_come_from_one_address() -> None:
    sources = [beside._source(number) for number in range(600)]
    assert len(set(sources)) == 600
    assert "127.0.0.1" not in sources


async def test_a_newcomer_who_still_waits_when_the_case_ends_has_waited() -> None:
    asked = asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(never_answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with asyncio.timeout(60), newcomers(f"ws://{host}:{port}", NOBODY) as came:
            await asked.wait()
        assert came.waited_s
        assert (came.linked_up_s, came.kept_out) == ([], 0)


async def close(connection: ServerConnection) -> None:
    await connection.recv()
    await connection.close(1013)


async def refuse(connection: ServerConnection) -> None:
    await connection.recv()
    await connection.send(encode(Failure("overloaded", "come again")))


async def talk_nonsense(connection: ServerConnection) -> None:
    await connection.recv()
    await connection.send(b"nonsense")


@pytest.mark.parametrize("answer", [close, refuse, talk_nonsense])
async def test_a_newcomer_who_is_not_welcomed_is_kept_out(
    answer: Callable[[ServerConnection], Awaitable[None]],
) -> None:
    ended = asyncio.Event()

    async def serve_one(connection: ServerConnection) -> None:
        await answer(connection)
        await connection.wait_closed()
        ended.set()

    async with serve(serve_one, "127.0.0.1", 0) as server:
        host, port = next(iter(server.sockets)).getsockname()
        async with asyncio.timeout(60), newcomers(f"ws://{host}:{port}", NOBODY) as came:
            await ended.wait()
            while not came.kept_out:
                await asyncio.sleep(0)
        assert came.linked_up_s == []
