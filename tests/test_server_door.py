"""Whom a server lets in, and how many and how often, on real sockets: floods in small, and all others go on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from goodspeed.messages import Goodbye
from goodspeed_server import listener
from goodspeed_server.listener import Connection
from goodspeed_server.settings import DoorSettings
from goodspeed_server.tokens import TokenStore
from tests.doors import answered, counted, end_of, guarded, port_of, refused, until
from tests.serving import linked
from tests.test_server import PROMPT, target_text


async def test_an_address_has_so_many_links_at_once() -> None:
    async with guarded(DoorSettings(max_links_per_address=2)) as (server, address), linked(address) as first:
        async with linked(address):
            assert await refused(address) == (429, "10")
            # Not even a look at its health.
            assert (await answered(address, "/health"))[0] == 429
            assert await counted(server, "too_many_links_of_address") == 2
        await until(server, links=1)
        async with linked(address) as third:
            assert await third.generate(0, PROMPT) == target_text(PROMPT, 8)
        assert await first.generate(0, PROMPT) == target_text(PROMPT, 8)


async def test_an_address_connects_so_often_a_minute() -> None:
    async with guarded(DoorSettings(handshakes_per_minute=3)) as (server, address):
        for _ in range(3):
            assert (await answered(address, "/health"))[0] == 200
        status, headers = await answered(address, "/health")
        assert status == 429
        assert 1 <= int(headers["Retry-After"]) <= 20
        assert await counted(server, "too_many_handshakes") == 1


async def test_tokens_are_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = TokenStore(tmp_path / "tokens.json").create("edge", "agent")
    door = DoorSettings(failed_tokens_per_minute=3)
    async with guarded(door, tokens=tmp_path / "tokens.json") as (server, address):
        for _ in range(5):
            assert (await answered(address))[0] == 401, "who shows none has guessed none"
        for _ in range(3):
            assert (await answered(address, Authorization="Bearer gst_wrong"))[0] == 401
        for right_or_wrong in (secret, "gst_wrong"):
            for path in ("/", "/metrics"):
                status, headers = await answered(address, path, Authorization=f"Bearer {right_or_wrong}")
                assert status == 429
                assert 1 <= int(headers["Retry-After"]) <= 20
        assert await counted(server, "too_many_failures") == 4
        assert (await answered(address, "/health"))[0] == 200
        monkeypatch.setattr(server._door, "_clock", lambda: time.monotonic() + 20.0)
        assert (await answered(address, Authorization=f"Bearer {secret}"))[0] == 101


async def test_an_idle_link_makes_way_and_one_at_work_does_not() -> None:
    async with guarded(DoorSettings(max_links=2, idle_s=0.0)) as (server, address):
        async with linked(address) as working, linked(address) as idle:
            opened = await working.open(0, PROMPT)
            async with linked(address) as newcomer:
                goodbye = await idle.expect(Goodbye)
                assert (goodbye.reason, goodbye.retry_after_s) == ("the server is full, and this link was idle", 10.0)
                with pytest.raises(ConnectionClosed) as closed:
                    await idle.receive()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == CloseCode.GOING_AWAY
                assert await counted(server, "idle") == 1
                other = await newcomer.open(0, PROMPT)
                assert await refused(address) == (503, "10")
                assert await counted(server, "too_many_links") == 1
                assert (await answered(address, "/health"))[0] == 200
                tasks = [working.go_on(opened, PROMPT), newcomer.go_on(other, PROMPT)]
                assert await asyncio.gather(*tasks) == [target_text(PROMPT, 8)] * 2
        await until(server)


async def test_who_is_not_let_in_makes_nobody_go(tmp_path: Path) -> None:
    """A request that becomes no link takes nobody's place."""
    secret = TokenStore(tmp_path / "tokens.json").create("edge", "agent")
    door = DoorSettings(max_links=1, idle_s=0.0)
    right: dict[str, Any] = {"Authorization": f"Bearer {secret}"}
    async with (
        guarded(door, tokens=tmp_path / "tokens.json") as (server, address),
        connect(address, additional_headers=right),
    ):
        assert (await answered(address))[0] == 401
        assert (await answered(address, Origin="http://evil.example", **right))[0] == 403
        assert (await answered(address, Upgrade="h2c", **right))[0] == 426
        await until(server, links=1)
        assert await counted(server, "idle") == 0


async def test_every_503_says_when_to_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tmp_path / "tokens.json"
    secret = TokenStore(tokens).create("edge", "agent")
    async with guarded(DoorSettings(), tokens=tokens, drain_s=2.5) as (server, address):
        tokens.write_text("not tokens")
        for path in ("/", "/metrics"):
            status, headers = await answered(address, path, Authorization=f"Bearer {secret}")
            assert (status, headers["Retry-After"]) == (503, "10")
        monkeypatch.setattr(server._drain, "_clock", lambda: 0.0)
        server._drain.begin()
        for path in ("/", "/ready"):
            status, headers = await answered(address, path)
            assert (status, headers["Retry-After"]) == (503, "4")


async def test_who_floods_is_closed_before_a_connection_is_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Connection] = []
    arrive = listener.Door.arrive

    def counting(door: listener.Door, connection: Connection) -> Any:
        made.append(connection)
        return arrive(door, connection)

    monkeypatch.setattr(listener.Door, "arrive", counting)
    async with guarded(DoorSettings(handshakes_per_minute=3)) as (server, address):
        for _ in range(100):
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port_of(address))
                writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                await end_of(reader)
                writer.close()
        while await counted(server, "too_many_handshakes") < 97:
            await asyncio.sleep(0)
        assert len(made) < 50


async def test_who_resets_at_once_is_counted_by_its_address_too() -> None:
    async with guarded(DoorSettings(handshakes_per_minute=3)) as (server, address):
        for _ in range(20):
            with socket.socket() as plain:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                plain.connect(("127.0.0.1", port_of(address)))
        while await counted(server, "too_many_handshakes") < 17:
            await asyncio.sleep(0)
        await until(server)


async def test_links_and_connections_are_counted() -> None:
    async with guarded(DoorSettings()) as (server, address), linked(address):
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(address))
        await until(server, links=1, pending=1)
        text = server._metrics.text(server.snapshot()).decode()
        assert "\ngoodspeed_links 1.0\n" in text
        assert "\ngoodspeed_connections_pending 1.0\n" in text
        writer.transport.abort()


def test_as_many_files_may_be_open_as_links_need(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import resource

    limits = (256, 100_000)
    made: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, what: made.append((which, what)))
    listener._allow_files(4096, 512)
    assert made == [(resource.RLIMIT_NOFILE, (5120, 100_000))]
    assert caplog.messages == []
    limits = (256, 1024)
    listener._allow_files(4096, 512)
    assert made[1:] == [(resource.RLIMIT_NOFILE, (1024, 1024))]
    assert "max-links is 4096 and this process may open no more than 1024 files" in caplog.messages[0]
    limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    listener._allow_files(10**6, 10**5)
    assert len(made) == 2


async def test_files_are_allowed_for_connections_that_are_no_links_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 10**6))
    monkeypatch.setattr(resource, "setrlimit", lambda _, what: made.append(what))
    async with guarded(DoorSettings(max_links=80_000)) as (server, _):
        assert made == [(80_000 + 10_000 + 512, 10**6)]
        assert server._door.gate.max_pending == 10_000
