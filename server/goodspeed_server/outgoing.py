"""What is on its way to a peer: a queue with a task behind it, so that nobody who sends waits for a slow reader."""

from __future__ import annotations

import asyncio
import contextlib

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

__all__ = ["Outgoing"]

_MAX_QUEUED = 4096
_MAX_QUEUED_BYTES = 2**23
"""With more than that waiting, beside its tokenizer, a peer does not read."""


class Outgoing:
    """The frames that wait for one connection, written in their order from when it is made.

    Args:
        connection: the open WebSocket.
        largest_bytes: of a frame that may wait besides all others.
    """

    def __init__(self, connection: ServerConnection, *, largest_bytes: int) -> None:
        self._connection = connection
        self._most_bytes = _MAX_QUEUED_BYTES + largest_bytes
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_QUEUED)
        self._bytes = 0
        self._writer = asyncio.create_task(self._write())

    @property
    def empty(self) -> bool:
        """Whether everything is written."""
        return self._frames.empty()

    def put(self, frame: bytes) -> bool:
        """Let a frame wait for its turn; whether there was room for it."""
        if self._frames.full() or self._bytes > self._most_bytes:
            return False
        self._frames.put_nowait(frame)
        self._bytes += len(frame)
        return True

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, as far as that is done in time, and nothing that comes later."""
        with contextlib.suppress(asyncio.QueueFull):
            self._frames.put_nowait(None)
        await asyncio.wait([self._writer], timeout=timeout_s)

    def stop(self) -> None:
        """Write nothing any more."""
        self._writer.cancel()

    async def _write(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while (frame := await self._frames.get()) is not None:
                await self._connection.send(frame)
                self._bytes -= len(frame)
