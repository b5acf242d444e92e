"""Connections as an attacker makes them: bare sockets, frames by hand, nothing that a library would forbid."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from goodspeed.errors import LinkLost
from goodspeed.messages import PROTOCOL_VERSION, AgentMessage, Hello, encode

__all__ = ["BINARY", "PING", "RawLink", "Tally", "Target", "frame"]

BINARY, PING = 0x2, 0x9
_MASK = bytes(4)
"""Of zeros: a frame has to have a mask, and the attacker no wish to compute."""
_RESET = struct.pack("ii", 1, 0)
_READ_BYTES = 2**16


@dataclass
class Tally:
    """What an attacker got."""

    counts: Counter[str] = field(default_factory=Counter)
    stood_s: list[float] = field(default_factory=list)
    """How long each connection stood that was closed by the server."""
    there: int = 0
    """Connections that stand."""
    most_there: int = 0

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """Count a connection while it stands."""
        began_s = time.monotonic()
        self.there += 1
        self.most_there = max(self.most_there, self.there)
        try:
            yield
        except (OSError, EOFError, LinkLost):  # its end; cancellation is the attacker's own
            self.stood_s.append(time.monotonic() - began_s)
            raise
        finally:
            self.there -= 1


@dataclass(frozen=True, slots=True)
class Target:
    """What is attacked, and where from."""

    host: str
    port: int
    token: str
    """An agent's, for attackers who were handed one."""
    source: str
    """The address to come from."""

    def request(self, token: str | None = None, extension: str | None = None) -> bytes:
        """The HTTP request that asks for a link."""
        headers = {
            "Host": f"{self.host}:{self.port}", "Connection": "Upgrade", "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }  # fmt: skip
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if extension is not None:
            headers["Sec-WebSocket-Extensions"] = extension
        return "\r\n".join(["GET / HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode()

    def socket(self) -> socket.socket:
        """A socket that comes from `source`, blocking, and is reset rather than closed."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        made.bind((self.source, 0))
        return made

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection, over which nothing has been said.

        Raises:
            OSError: it cannot be made.
        """
        made = self.socket()
        made.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(made, (self.host, self.port))
            reader, writer = await asyncio.open_connection(sock=made, limit=2**24)
        except BaseException:
            made.close()
            raise
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    @contextlib.asynccontextmanager
    async def linked(self, name: str, extension: str | None = None) -> AsyncIterator[RawLink]:
        """A link that shows the token, and has said that it is an agent's.

        Raises:
            OSError: it cannot be made.
            EOFError: the server closed it.
            LinkLost: the server refused it, which its status says.
        """
        async with self.connected() as (reader, writer):
            writer.write(self.request(self.token, extension))
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(maxsplit=2)[1])
            if status != 101:
                raise LinkLost(f"refused with {status}")
            link = RawLink(reader, writer)
            await link.send(Hello(PROTOCOL_VERSION, "agent", name, "none"))
            yield link


class RawLink:
    """A link whose frames are made by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *messages: AgentMessage) -> None:
        """Send messages, in one piece."""
        await self.send_raw(b"".join(frame(encode(message)) for message in messages))

    async def send_raw(self, data: bytes) -> None:
        """Send whatever it is."""
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> bytes:
        """What is in the next frame that holds a message.

        Raises:
            EOFError: there is none any more.
        """
        while True:
            first, length = await self._reader.readexactly(2)
            if length >= 126:
                length = int.from_bytes(await self._reader.readexactly(2 if length == 126 else 8))
            payload = await self._reader.readexactly(length)
            if first & 0xF == BINARY:
                return payload

    async def read_out(self) -> None:
        """Read, whatever comes, until the connection is closed."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(_READ_BYTES):
                pass


def frame(payload: bytes, *, opcode: int = BINARY, flags: int = 0x8, claimed: int | None = None) -> bytes:
    """A frame as a client sends it.

    Args:
        payload: what it holds.
        opcode: its kind.
        flags: the upper four bits: 0x8 ends a message, 0x4 says that it is compressed.
        claimed: its length as its head says; None for the true one.
    """
    length = len(payload) if claimed is None else claimed
    head: Any
    if length < 126:
        head = struct.pack("!BB", flags << 4 | opcode, 0x80 | length)
    elif length < 2**16:
        head = struct.pack("!BBH", flags << 4 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", flags << 4 | opcode, 0x80 | 127, length)
    return bytes(head + _MASK + payload)
