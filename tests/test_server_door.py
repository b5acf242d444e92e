"""What strangers and single links may have of a server, on real sockets: floods in small, and all others go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode

from goodspeed.messages import Close, Goodbye
from goodspeed_server import listener
from goodspeed_server.listener import Connection
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import DoorSettings, TlsSettings
from goodspeed_server.tokens import TokenStore
from tests.fuzzing.watching import complaints
from tests.serving import Peer, linked, serving, tiny_settings
from tests.test_server import PROMPT, target_text

NOTHING = b""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[TlsSettings, ssl.SSLContext]:
    """A server's own, and what a client trusts."""
    authority, folder = trustme.CA(), tmp_path_factory.mktemp("certificates")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "cert.pem"))
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return TlsSettings(folder / "cert.pem"), client


@contextlib.asynccontextmanager
async def guarded(door: DoorSettings, **changes: Any) -> AsyncIterator[tuple[VerificationServer, str]]:
    async with asyncio.timeout(60), serving(tiny_settings(door=door, **changes)) as (server, address):
        yield server, address


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


async def answered(
    address: str, path: str = "/", tls: ssl.SSLContext | None = None, **headers: Any
) -> tuple[int, dict[str, str]]:
    """A plain GET that asks for a link, as far as its answer's head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(address), ssl=tls)
    asked = {
        "Host": "x", "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    } | headers  # fmt: skip
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in asked.items()), "", ""]
    writer.write("\r\n".join(lines).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    writer.transport.abort()
    found = dict(line.split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), found


async def refused(address: str) -> tuple[int, str | None]:
    """The status of a link that is refused, and when to come back."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(address)
    return caught.value.response.status_code, caught.value.response.headers.get("Retry-After")


async def counted(server: VerificationServer, code: str) -> float:
    value = server._metrics._registry.get_sample_value("goodspeed_refusals_total", {"code": code})
    return value or 0.0


async def until(server: VerificationServer, *, links: int = 0, pending: int = 0) -> None:
    gate = server._door.gate
    while (gate.links, gate.pending) != (links, pending):
        await asyncio.sleep(0)


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


@pytest.mark.parametrize("secure", [False, True])
async def test_who_never_says_a_word_counts_from_the_start(
    secure: bool, certificates: tuple[TlsSettings, ssl.SSLContext]
) -> None:
    tls, client = certificates if secure else (TlsSettings(), None)
    async with guarded(DoorSettings(max_links_per_address=3), tls=tls) as (server, address):
        silent = [await asyncio.open_connection("127.0.0.1", port_of(address)) for _ in range(3)]
        await until(server, pending=3)
        status, headers = await answered(address, tls=client)
        assert (status, headers["Retry-After"]) == (429, "10")
        # Whoever floods is not even told.
        await until(server, pending=3)
        more = []
        for _ in range(12):
            with contextlib.suppress(ConnectionResetError):  # so soon that it is heard of as it is made
                more.append(await asyncio.open_connection("127.0.0.1", port_of(address)))
        ends = [asyncio.create_task(end_of(reader)) for reader, _ in more]
        while sum(not end.done() for end in ends) > 4:
            await asyncio.sleep(0)
        await until(server, pending=7)
        for end in ends:
            end.cancel()
        for _, writer in silent + more:
            writer.transport.abort()
        await until(server)
        assert (await answered(address, tls=client))[0] == 101


async def test_a_role_that_is_said_twice_is_none() -> None:
    async with guarded(DoorSettings()) as (server, address):
        server._drain.begin()
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(address))
        with complaints() as seen:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nGoodSpeed-Role: monitor\r\nGoodSpeed-Role: control\r\n\r\n")
            head = await reader.readuntil(b"\r\n")
        writer.transport.abort()
    assert b" 503 " in head
    assert seen == []


async def end_of(reader: asyncio.StreamReader) -> bytes:
    """What comes before a connection ends, however it ends."""
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return NOTHING


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_who_never_comes_to_the_point_is_cut_off(
    secure: bool, said: bytes, certificates: tuple[TlsSettings, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "OPEN_TIMEOUT_S", 0.2)
    tls = certificates[0] if secure else TlsSettings()
    async with guarded(DoorSettings(), tls=tls) as (server, address):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(address))
        if not secure:
            writer.write(said)
        assert await end_of(reader) == NOTHING
        writer.close()
        await until(server)


async def test_a_link_that_does_not_say_what_it_is_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goodspeed_server.link._HANDSHAKE_TIMEOUT_S", 0.05)
    async with guarded(DoorSettings()) as (server, address), linked(address, greet=False) as silent:
        failure = await silent.failure()
        assert (failure.code, failure.message) == ("protocol_error", "no Hello came within 0.05 s")
        with pytest.raises(ConnectionClosed):
            await silent.receive()
        await until(server)


async def test_a_handshake_that_is_no_tls_leaves_nothing_behind(
    certificates: tuple[TlsSettings, ssl.SSLContext],
) -> None:
    async with guarded(DoorSettings(), tls=certificates[0]) as (server, address):
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", os.urandom(1000)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(address))
            writer.write(said)
            writer.write_eof()
            await end_of(reader)
            writer.close()
        await until(server)
        assert (await answered(address, tls=certificates[1]))[0] == 101
        await until(server)


async def test_frames_that_come_with_the_request_are_not_lost(certificates: tuple[TlsSettings, ssl.SSLContext]) -> None:
    """Over TLS they may be there before the connection is made."""
    async with guarded(DoorSettings(), tls=certificates[0]) as (_, address):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(address), ssl=certificates[1])
        request = (
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        writer.write(request.encode() + b"\x82\x83\0\0\0\0bad")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert b"malformed_message" in await reader.readuntil(b"malformed_message")
        writer.transport.abort()


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


async def test_a_link_that_sends_too_fast_is_read_slowly_and_nobody_else() -> None:
    door = DoorSettings(messages_per_s=500)
    async with guarded(door) as (server, address), linked(address) as fast, linked(address) as other:
        (link,) = (link for link in server._links if link._peer.endswith(f":{port_at(fast)}"))
        for _ in range(1300):
            await fast.send(Close(99))
        while link.connection.transport.is_reading():
            await asyncio.sleep(0)
        assert await other.generate(0, PROMPT) == target_text(PROMPT, 8)
        # All that was sent is taken in the end, in order, and nobody is closed.
        assert await fast.generate(1, PROMPT) == target_text(PROMPT, 8)
        assert throttled(server) > 0


async def test_a_link_that_is_held_is_heard_to_say_goodbye() -> None:
    """What it sent before stands in front of its answer, and would be read slowly."""
    serving_it = serving(tiny_settings(door=DoorSettings(messages_per_s=1)))
    server, address = await serving_it.__aenter__()
    async with asyncio.timeout(60), linked(address) as peer:
        (link,) = server._links
        for _ in range(1300):
            await peer.send(Close(99))
        while not throttled(server):
            await asyncio.sleep(0)
        closing = asyncio.create_task(serving_it.__aexit__(None, None, None))
        with pytest.raises(ConnectionClosed):
            while True:
                await peer.receive()
        await closing
        assert link.connection.protocol.close_rcvd is not None


def port_at(peer: Peer) -> int:
    port: int = peer.connection.local_address[1]
    return port


def throttled(server: VerificationServer) -> float:
    return server._metrics._registry.get_sample_value("goodspeed_throttled_seconds_total") or 0.0


async def test_all_links_of_a_token_are_read_as_one(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    many, another = ({"Authorization": f"Bearer {store.create(name, 'agent')}"} for name in ("many", "another"))
    async with contextlib.AsyncExitStack() as stack:
        server, address = await stack.enter_async_context(
            guarded(DoorSettings(messages_per_s=1), tokens=tmp_path / "tokens.json")
        )
        first, second, other = [
            Peer(await stack.enter_async_context(connect(address, additional_headers=shown)))
            for shown in (many, many, another)
        ]
        for peer in (first, second, other):
            await peer.greet()
        for _ in range(1300):
            await first.send(Close(99))
        while not throttled(server):
            await asyncio.sleep(0)
        for _ in range(100):
            await second.send(Close(99))
        (link,) = (link for link in server._links if link._peer.endswith(f":{port_at(second)}"))
        while link.connection.transport.is_reading():
            await asyncio.sleep(0)
        assert await other.generate(0, PROMPT) == target_text(PROMPT, 8)
        for peer in (first, second):  # they would wait for their turn to say goodbye
            peer.connection.transport.abort()


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


async def test_who_asks_and_never_listens_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings are answered without waiting for anybody to read, and in the long run even a few are many."""
    monkeypatch.setattr(listener, "_MOST_UNSENT_BYTES", 2**16)
    async with guarded(DoorSettings(messages_per_s=1e9)) as (server, address), linked(address) as other:
        with socket.create_connection(("127.0.0.1", port_of(address))) as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.setblocking(False)
            loop = asyncio.get_running_loop()
            request = (
                "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            await loop.sock_sendall(plain, request.encode())
            pings = (b"\x89\xfd\0\0\0\0" + bytes(125)) * 1000
            with pytest.raises(ConnectionError):
                while True:
                    await loop.sock_sendall(plain, pings)
        await until(server, links=1)
        assert await counted(server, "slow_reader") == 1
        assert await other.generate(0, PROMPT) == target_text(PROMPT, 8)


@pytest.mark.parametrize("torn", [b"\x89\x80", b"\x00\x80"], ids=["pings", "fragments"])
async def test_pings_and_torn_messages_are_read_like_others(torn: bytes) -> None:
    async with (
        guarded(DoorSettings()) as (server, address),
        linked(address) as other,
        linked(address) as flooding,
    ):
        transport = flooding.connection.transport
        if torn[0] == 0:
            transport.write(b"\x02\x80" + bytes(4))
        transport.write((torn + bytes(4)) * 20_000)
        while not throttled(server):
            await asyncio.sleep(0)
        # It had 1,024 at once, and what was in the slice that went beyond.
        assert throttled(server) < 1.0
        assert await other.generate(0, PROMPT) == target_text(PROMPT, 8)
        transport.abort()  # it would wait for its turn to say goodbye


async def test_what_is_no_frame_of_this_protocol_is_counted() -> None:
    async with guarded(DoorSettings()) as (server, address):
        for head in (b"\xc2\x81" + bytes(5), b"\x82\xff" + (2**40).to_bytes(8)):
            async with linked(address) as peer:
                peer.connection.transport.write(head)
                with pytest.raises(ConnectionClosed):
                    await peer.receive()
        for code in ("protocol_error", "message_too_big"):
            while not await counted(server, code):
                await asyncio.sleep(0)


async def test_a_server_ends_in_order_while_somebody_says_nothing(
    certificates: tuple[TlsSettings, ssl.SSLContext],
) -> None:
    for tls in (TlsSettings(), certificates[0]):
        async with guarded(DoorSettings(), tls=tls) as (server, address):
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(address))
            await until(server, pending=1)
        assert await end_of(reader) == NOTHING
        writer.close()


async def test_links_and_connections_are_counted() -> None:
    async with guarded(DoorSettings()) as (server, address), linked(address):
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(address))
        await until(server, links=1, pending=1)
        text = server._metrics.text().decode()
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
    listener._allow_files(4096)
    assert made == [(resource.RLIMIT_NOFILE, (5120, 100_000))]
    assert caplog.messages == []
    limits = (256, 1024)
    listener._allow_files(4096)
    assert made[1:] == [(resource.RLIMIT_NOFILE, (1024, 1024))]
    assert "max-links is 4096 and this process may open no more than 1024 files" in caplog.messages[0]
    limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    listener._allow_files(10**6)
    assert len(made) == 2
