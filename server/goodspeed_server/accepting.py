"""Accepts connections one by one, and closes at once, before it has cost anything, what the gate would only cut off.

A listener that makes a transport and a protocol of everything it is sent spends its event loop on whoever connects
fastest. Here who floods costs an `accept` and a `close`, and no more than so many of these a second: behind them the
kernel's queue fills, and the flood waits in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Callable

from goodspeed_server.gate import Bucket

__all__ = ["Acceptor"]

logger = logging.getLogger(__name__)

_BACKLOG = 512
"""At `_SHED_PER_S`, who comes behind a full queue of a flood's waits half a second."""
_SHED_AT_ONCE = 64
_SHED_PER_S = 1000.0
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_ROOM_REST_S = 1.0
_RESET = struct.pack("ii", 1, 0)


class Acceptor:
    """In place of an `asyncio.Server` that has bound its sockets and does not accept, and as one to who asks.

    Args:
        bound: that server.
        make: what serves a connection.
        sheds: whether a connection from this host is to be closed at once; it is counted where it is decided.

    Raises:
        OSError: somebody else listens there.
    """

    def __init__(
        self, bound: asyncio.Server, make: Callable[[], asyncio.Protocol], sheds: Callable[[str], bool]
    ) -> None:
        self._bound = bound
        self._make = make
        self._sheds = sheds
        self._shed = Bucket(_SHED_AT_ONCE, _SHED_PER_S)
        self._listening = [sock.dup() for sock in bound.sockets]
        for listening in self._listening:
            listening.setblocking(False)
            listening.listen(_BACKLOG)
        self._open = True
        self._tasks = [asyncio.create_task(self._accept(listening), name="accept") for listening in self._listening]
        self.sockets = bound.sockets

    def close(self) -> None:
        """Accept nothing any more."""
        self._open = False
        # A connection that was accepted in this very step is handed to its task before that is cancelled.
        for task in self._tasks:
            self.get_loop().call_soon(task.cancel)
        self._bound.close()

    def is_serving(self) -> bool:
        """Whether it is open."""
        return self._open

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Which it runs on."""
        return self._bound.get_loop()

    async def wait_closed(self) -> None:
        """Wait until nothing is accepted any more.

        Raises:
            Exception: whatever ended that before.
        """
        await asyncio.wait(self._tasks)
        for task, listening in zip(self._tasks, self._listening, strict=True):
            listening.close()
            if not task.cancelled():
                task.result()
        await self._bound.wait_closed()

    async def _accept(self, listening: socket.socket) -> None:
        with contextlib.closing(listening):
            while self._open:
                await self._accept_one(listening)

    async def _accept_one(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            made, peer = await loop.sock_accept(listening)
        except OSError as error:
            if error.errno in _NO_ROOM:  # else it has gone before it was accepted
                logger.warning("connections cannot be accepted now: %s", error.strerror)
                await asyncio.sleep(_NO_ROOM_REST_S)
            return
        if not self._open:
            made.close()
        elif self._sheds(str(peer[0])):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            made.close()
            await asyncio.sleep(self._shed.take(loop.time()))
        else:
            try:
                await loop.connect_accepted_socket(self._make, made)
            except OSError:
                made.close()
