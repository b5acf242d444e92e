"""What is on its way to a peer: written at once as long as the peer reads, and a bounded queue as soon as it does not.

Nobody who sends waits for a slow reader. Messages are written past `Connection.send`, of which a task would have to be
told for each of them. A long one goes in several frames, each as its peer reads: what a transport holds is a copy, and
a tokenizer is large.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import NamedTuple

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

__all__ = ["Outgoing"]

logger = logging.getLogger(__name__)

_MAX_QUEUED = 4096
_MAX_QUEUED_BYTES = 2**23
"""With more than that waiting, beside its tokenizer, a peer does not read."""
_AT_ONCE_BYTES = 2**16
"""Of what waits, and of one message."""


class _Piece(NamedTuple):
    """Of a message: a frame."""

    data: bytes
    begins: bool = True
    ends: bool = True


class Outgoing:
    """The messages for one connection, in their order.

    Args:
        connection: the open WebSocket.
        largest_bytes: of a message that may wait besides all others.
    """

    def __init__(self, connection: ServerConnection, *, largest_bytes: int) -> None:
        self._connection = connection
        self._most_bytes = _MAX_QUEUED_BYTES + largest_bytes
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._begun = 0
        """How much of the first that waits is written, bytes."""
        self._writer: asyncio.Task[None] | None = None
        """Writes what waits; None while nothing does."""
        self._stopped = False

    @property
    def empty(self) -> bool:
        """Whether whatever comes is written at once."""
        return self._writer is None and not self._connection.paused

    def put(self, message: bytes) -> bool:
        """Write a message, or let it wait for its turn; whether there was room for it."""
        if self._stopped or self._connection.protocol.state is not State.OPEN:
            return True  # nobody will read it
        if self.empty and len(message) <= _AT_ONCE_BYTES:
            self._send([_Piece(message)])
            return True
        if len(self._waiting) >= _MAX_QUEUED or self._bytes > self._most_bytes:
            return False
        self._waiting.append(message)
        self._bytes += len(message)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return True

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, as far as that is done in time, and nothing that comes later."""
        self._stopped = True
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=timeout_s)

    def stop(self) -> None:
        """Write nothing any more."""
        self._stopped = True
        if self._writer is not None:
            self._writer.cancel()

    def _send(self, pieces: list[_Piece]) -> None:
        if self._connection.transport.is_closing():
            return
        protocol = self._connection.protocol
        try:
            for data, begins, ends in pieces:
                (protocol.send_binary if begins else protocol.send_continuation)(data, ends)
            self._connection.send_data()
        except Exception:  # whoever posts has other links to serve
            logger.exception("a link is cut off: what is sent to it fails")
            self._connection.transport.abort()

    async def _write(self) -> None:
        try:
            with contextlib.suppress(ConnectionClosed):
                while self._waiting:
                    async with self._connection.send_context():  # behind which it waits until the peer reads
                        self._send(self._next())
        finally:
            self._writer = None

    def _next(self) -> list[_Piece]:
        """As much of what waits as is written at once."""
        pieces, size = [], 0
        while self._waiting and size < _AT_ONCE_BYTES:
            message, begun = self._waiting[0], self._begun
            data = message[begun : begun + _AT_ONCE_BYTES]
            self._begun, size = begun + len(data), size + len(data)
            ends = self._begun == len(message)
            pieces.append(_Piece(data, begun == 0, ends))
            if ends:
                self._waiting.popleft()
                self._begun = 0
        self._bytes -= size
        return pieces
