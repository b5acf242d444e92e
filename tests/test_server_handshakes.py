"""What strangers may have of a server before they are a link, on real sockets, with TLS and without."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl

import pytest
import trustme
from websockets.exceptions import ConnectionClosed

from goodspeed_server import listener
from goodspeed_server.settings import DoorSettings, TlsSettings
from tests.doors import NOTHING, answered, end_of, guarded, port_of, until
from tests.fuzzing.watching import complaints
from tests.serving import linked


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[TlsSettings, ssl.SSLContext]:
    """A server's own, and what a client trusts."""
    authority, folder = trustme.CA(), tmp_path_factory.mktemp("certificates")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "cert.pem"))
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return TlsSettings(folder / "cert.pem"), client


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


async def test_a_server_ends_in_order_while_somebody_says_nothing(
    certificates: tuple[TlsSettings, ssl.SSLContext],
) -> None:
    for tls in (TlsSettings(), certificates[0]):
        async with guarded(DoorSettings(), tls=tls) as (server, address):
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(address))
            await until(server, pending=1)
        assert await end_of(reader) == NOTHING
        writer.close()
