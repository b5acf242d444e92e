"""What a single link may have of a server, on real sockets: it is read slowly or cut off, and all others go on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from goodspeed.messages import Close
from goodspeed_server import listener
from goodspeed_server.settings import DoorSettings
from goodspeed_server.tokens import TokenStore
from tests.doors import counted, guarded, port_of, throttled, until
from tests.serving import Peer, linked, serving, tiny_settings
from tests.test_server import PROMPT, target_text


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
