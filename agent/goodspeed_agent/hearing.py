"""What a server says of its rounds on the connection that a link has to it.

A connection's pings are answered whatever has become of the server's rounds: only what is said to its streams tells of
them, and what is said to one tells the others too.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import AbstractAsyncContextManager

from websockets.asyncio.client import ClientConnection
from websockets.protocol import State

from goodspeed.messages import Failure, Opened, Queued, Verdict

__all__ = ["Hearing"]

_log = logging.getLogger(__name__)


class Hearing:
    """Hears whether a link's server goes on with its rounds, and leaves one that does not."""

    def __init__(self) -> None:
        self.last_s = -math.inf
        """When anything was heard last, by `now_s`."""
        self.silences = 0
        """How often in a row, without a verdict in between, a server was left for saying nothing."""
        self._connection: ClientConnection | None = None
        self._url = ""
        self.left = False
        """Whether the connection was left for saying nothing: it looks open until its loss is noticed."""

    @property
    def connection(self) -> ClientConnection:
        """Where it is heard, or was last; there has been a link."""
        assert self._connection is not None
        return self._connection

    def now_s(self) -> float:
        """The time, by the clock of `until`."""
        return asyncio.get_running_loop().time()

    def until(self, when_s: float) -> AbstractAsyncContextManager[object]:
        """Raises `TimeoutError` where the block takes longer."""
        return asyncio.timeout_at(when_s)

    def begin(self, connection: ClientConnection, url: str) -> None:
        """Hear another connection from here on."""
        self._connection, self._url, self.left = connection, url, False

    def heard(self, message: Queued | Opened | Verdict | Failure) -> None:
        """A stream was told something."""
        self.last_s = self.now_s()
        if isinstance(message, Verdict):
            self.silences = 0

    def stands(self, connection: ClientConnection) -> bool:
        """Whether it is heard on that connection."""
        return connection is self._connection and not self.left and connection.state is State.OPEN

    def leave(self, connection: ClientConnection) -> None:
        """Break off a connection that `stands`, to a server that says nothing."""
        _log.warning("%s is there, and says nothing", self._url)
        self.left = True
        self.silences += 1
        # Not closed in order: what the server holds of the streams is of use if it is met again.
        connection.transport.abort()
