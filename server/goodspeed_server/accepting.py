"""Accepts connections, and closes at once, before it has cost anything, what the gate would only cut off.

A listener that makes a transport and a protocol of everything it is sent spends its event loop on whoever connects
fastest. Here who floods costs an `accept` and a `close`, and wakes nobody: while connections are closed at once, they
are taken out of the kernel's queue every now and then, as many as there are, and no more than so many.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Callable

__all__ = ["Acceptor"]

logger = logging.getLogger(__name__)

_BACKLOG = 256
_AT_ONCE = 8
_REST_S = 0.08
"""So a flood is met 100 times a second at most, and who comes behind a full queue of it waits 2.6 s."""
_GONE = frozenset({
    errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.EINTR, errno.ENETDOWN, errno.ENETUNREACH,
    errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.EPERM, errno.EPROTO, errno.ETIMEDOUT,
})  # fmt: skip
"""It went before it was accepted, or its network did: Linux hands that to `accept`."""
_FAULT_REST_S = 1.0
"""Behind anything else, as having no files left."""
_RESET = struct.pack("ii", 1, 0)


class Acceptor:
    """In place of an `asyncio.Server` that has bound its sockets and does not accept, and as one to who asks.

    Args:
        bound: that server.
        make: what serves a connection from this host, which has arrived with that: who comes next is decided upon then.
        sheds: whether a connection from this host is to be closed at once; it is counted where it is decided.

    Raises:
        OSError: somebody else listens there.
    """

    def __init__(
        self, bound: asyncio.Server, make: Callable[[str], asyncio.Protocol], sheds: Callable[[str], bool]
    ) -> None:
        self._bound = bound
        self._make = make
        self._sheds = sheds
        self._loop = asyncio.get_running_loop()
        self._making: set[asyncio.Task[None]] = set()
        self._resting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._listening = [sock.dup() for sock in bound.sockets]
        self.sockets = bound.sockets
        try:
            for listening in self._listening:
                listening.setblocking(False)
                listening.listen(_BACKLOG)
                self._listen(listening)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Accept nothing any more."""
        for listening in self._listening:
            self._loop.remove_reader(listening)
            if listening in self._resting:
                self._resting.pop(listening).cancel()
            listening.close()
        self._listening.clear()
        self._bound.close()

    def is_serving(self) -> bool:
        """Whether it is open."""
        return bool(self._listening)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Which it runs on."""
        return self._loop

    async def wait_closed(self) -> None:
        """Wait until all that was accepted is handed on."""
        if self._making:
            await asyncio.wait(self._making)
        await self._bound.wait_closed()

    def _listen(self, listening: socket.socket) -> None:
        self._resting.pop(listening, None)
        self._loop.add_reader(listening, self._accept, listening)

    def _rest(self, listening: socket.socket, rest_s: float) -> None:
        self._loop.remove_reader(listening)
        self._resting[listening] = self._loop.call_later(rest_s, self._listen, listening)

    def _accept(self, listening: socket.socket) -> None:
        shed = False
        for _ in range(_AT_ONCE):
            try:
                made, peer = listening.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _GONE:
                    continue
                logger.warning("connections cannot be accepted now: %s", error.strerror)
                self._rest(listening, _FAULT_REST_S)
                return
            host = str(peer[0])
            if self._sheds(host):
                with made, contextlib.suppress(OSError):  # some systems let nobody set what is reset already
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                shed = True
            else:
                self._hand_on(made, host)
        if shed:
            self._rest(listening, _REST_S)

    def _hand_on(self, made: socket.socket, host: str) -> None:
        made.setblocking(False)
        making = self._loop.create_task(self._connect(made, self._make(host)))
        self._making.add(making)
        making.add_done_callback(self._making.discard)

    async def _connect(self, made: socket.socket, serving: asyncio.Protocol) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: serving, made)
        except Exception as error:
            made.close()
            serving.connection_lost(error)
            if not isinstance(error, OSError):
                logger.exception("a connection is lost for a defect in the server")
