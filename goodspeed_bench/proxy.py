"""A TCP proxy that does to bytes what its toxics say, on the event loop of whoever uses it.

Each direction of a connection is two tasks with a queue between them: one reads, and works out when each piece is due;
the other delivers when it is. So latency delays bytes and throttles nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

from goodspeed_bench.toxics import Direction, Passage, Piece, Toxics

__all__ = ["proxied"]

_READ_BYTES = 2**16
_UNDER_WAY = 1024
"""So many pieces may be on their way in one direction; then the sender has to wait, as it would for a full pipe."""
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""Linger for no time: closing resets."""

Sleep = Callable[[float], Awaitable[object]]


@contextlib.asynccontextmanager
async def proxied(
    host: str,
    port: int,
    toxics: Toxics,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Sleep = asyncio.sleep,
) -> AsyncIterator[int]:
    """Listen on loopback while the context is open, and carry every connection to `host:port`; yields the port.

    Args:
        host: of the server.
        port: of the server.
        toxics: of the link.
        seed: of what is random in them.
        clock: seconds, monotonic.
        sleep: waits for so many seconds of that clock.

    Raises:
        OSError: nothing can be listened on.
    """
    noise = random.Random(seed)
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_carry(reader, writer, host, port, _Line(toxics, noise, clock, sleep)))
        connections.add(task)
        task.add_done_callback(connections.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in connections:
            task.cancel()
        if connections:
            await asyncio.wait(connections)
        await listener.wait_closed()


class _Line:
    """What both directions of a connection go through."""

    def __init__(self, toxics: Toxics, noise: random.Random, clock: Callable[[], float], sleep: Sleep) -> None:
        self._toxics = toxics
        self._noise = noise
        self.clock = clock
        self.sleep = sleep

    def passages(self, direction: Direction) -> list[Passage]:
        return [toxic.open(self._noise) for where, toxic in self._toxics if where == direction]


async def _carry(
    client: asyncio.StreamReader, to_client: asyncio.StreamWriter, host: str, port: int, line: _Line
) -> None:
    """Carry one connection until both its directions have ended; if anything else ends it, both peers see a reset."""
    ends, at_rest = [to_client], False
    pumps: list[asyncio.Task[None]] = []
    try:
        server, to_server = await asyncio.open_connection(host, port)
        ends.append(to_server)
        pumps = [
            asyncio.create_task(_pump(client, to_server, line.passages("upstream"), line)),
            asyncio.create_task(_pump(server, to_client, line.passages("downstream"), line)),
        ]
        await asyncio.gather(*pumps)
        at_rest = True
    except (OSError, _Reset):
        # Not only errors of a connection: to end one that its peer has reset is none of those.
        pass
    finally:
        for pump in pumps:
            pump.cancel()
        for end in ends:
            end.close() if at_rest else _reset(end)
        await asyncio.gather(*pumps, *(end.wait_closed() for end in ends), return_exceptions=True)


class _Reset(Exception):
    """A toxic, or the peer, has reset the connection."""


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passages: Sequence[Passage], line: _Line
) -> None:
    """Carry one direction to its end."""
    under_way: asyncio.Queue[Piece] = asyncio.Queue(_UNDER_WAY)
    reading = asyncio.create_task(_read(reader, passages, under_way, line.clock))
    try:
        while True:
            piece = await under_way.get()
            wait_s = piece.at - line.clock()
            if wait_s > 0:
                await line.sleep(wait_s)
            if piece.reset:
                raise _Reset
            if not piece.data:
                writer.write_eof()
                return
            writer.write(piece.data)
            await writer.drain()
    finally:
        reading.cancel()
        await asyncio.wait([reading])


async def _read(
    reader: asyncio.StreamReader,
    passages: Sequence[Passage],
    under_way: asyncio.Queue[Piece],
    clock: Callable[[], float],
) -> None:
    """Put what comes on its way; the end of the stream, or that it was reset, comes last."""
    data = None
    while data != b"":
        try:
            data = await reader.read(_READ_BYTES)
            piece = Piece(clock(), data)
        except ConnectionError:
            data = b""
            piece = Piece(clock(), data, reset=True)
        for part in _through(passages, piece):
            await under_way.put(part)


def _through(passages: Sequence[Passage], piece: Piece) -> Iterable[Piece]:
    pieces: Iterable[Piece] = [piece]
    for passage in passages:
        pieces = [part for whole in pieces for part in passage.take(whole)]
    return pieces


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close the connection so that its other end sees a reset."""
    end: socket.socket = writer.get_extra_info("socket")
    if end.fileno() >= 0:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    writer.transport.abort()
