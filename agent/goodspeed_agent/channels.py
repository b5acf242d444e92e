"""The streams on a link: who is told what."""

from __future__ import annotations

import contextlib
import itertools

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from goodspeed.messages import Close, Failure, Opened, Queued, Verdict, Welcome, encode
from goodspeed_agent.channel import Channel
from goodspeed_agent.hearing import Hearing

__all__ = ["Channels"]

_DOUBT_S = 120.0
"""What was said so long ago on a connection that stands has come there: one that carries nothing is lost sooner."""


class Channels:
    """The channels of a link's streams.

    Args:
        hearing: of the link's server; hears whatever the streams are told.
    """

    def __init__(self, hearing: Hearing) -> None:
        self._hearing = hearing
        self._ids = itertools.count(1)
        self._channels: dict[int, Channel] = {}
        self._given_up: dict[int, float] = {}
        """Streams that the server may not know to be over, and when it was told so last, by the hearing's clock."""

    def __len__(self) -> int:
        return len(self._channels)

    def open(self, connection: ClientConnection) -> Channel:
        """Put one more stream on the link, which has that connection."""
        channel = Channel(next(self._ids), connection, self._forget, self._give_up, self._hearing)
        self._channels[channel.stream] = channel
        return channel

    def put(self, message: Queued | Opened | Verdict | Failure, stream: int, connection: ClientConnection) -> None:
        """Something has come for a stream on a connection."""
        self._hearing.heard(message)
        channel = self._channels.get(stream)
        if channel is not None:  # else the last words to a stream that was closed here meanwhile
            channel.put(message, connection)

    def put_all(self, welcome: Welcome, connection: ClientConnection) -> None:
        """Something has come for every stream."""
        for channel in self._channels.values():
            channel.put(welcome, connection)

    async def say_what_is_given_up(self) -> None:
        """The link is there again, and the server has kept what it had of streams that nobody wants any more."""
        for stream in list(self._given_up):
            await self._close(stream)

    def relinked(self, connection: ClientConnection, *, silent: bool) -> None:
        """The link is there again; whether it was left, since the server was `silent`."""
        for channel in self._channels.values():
            channel.relinked(connection, silent=silent)

    def alone(self) -> None:
        """There is no link, and for now none is to be waited for."""
        for channel in self._channels.values():
            channel.alone()

    def end(self, error: Exception) -> None:
        """Nothing is said to these streams any more."""
        for channel in self._channels.values():
            channel.end(error)

    def clear(self) -> None:
        """Take all streams off the link."""
        self._channels.clear()

    async def _give_up(self, stream: int) -> None:
        """Nobody wants a stream any more, of which the server may have heard."""
        if self._hearing.stands(self._hearing.connection):
            since_s = self._hearing.now_s() - _DOUBT_S
            self._given_up = {other: told_s for other, told_s in self._given_up.items() if told_s >= since_s}
        await self._close(stream)

    async def _close(self, stream: int) -> None:
        self._given_up[stream] = self._hearing.now_s()
        with contextlib.suppress(ConnectionClosed):
            await self._hearing.connection.send(encode(Close(stream)))

    def _forget(self, stream: int) -> None:
        self._channels.pop(stream, None)
