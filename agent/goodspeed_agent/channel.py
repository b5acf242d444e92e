"""One stream's end of a link: what it says goes out on the connection it belongs to, and on no later one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from goodspeed.errors import InvalidRequest
from goodspeed.messages import MAX_AGENT_FRAME_BYTES, AgentMessage, Failure, Opened, Queued, Verdict, Welcome, encode
from goodspeed_agent.hearing import Hearing

__all__ = ["Alone", "Channel", "Event", "Relinked"]


@dataclass(frozen=True, slots=True)
class Relinked:
    """The link was lost and is there again; what was under way on the old one is void."""

    silent: bool = False
    """Whether the old one was left, since the server said nothing."""


@dataclass(frozen=True, slots=True)
class Alone:
    """There has been no link for so long that the draft is to answer what no server has begun."""


Event: TypeAlias = Queued | Opened | Verdict | Failure | Welcome | Relinked | Alone


class Channel:
    """One stream's end of a link. Made by `Link.channel`.

    Args:
        stream: its number there.
        connection: the link's at this time.
        leave: takes the stream off the link.
        give_up: has the server told that the stream is over, on the link's connection or on the next one.
        hearing: of the link's server.
    """

    def __init__(
        self,
        stream: int,
        connection: ClientConnection,
        leave: Callable[[int], object],
        give_up: Callable[[int], Awaitable[object]],
        hearing: Hearing,
    ) -> None:
        self.stream = stream
        self.hearing = hearing
        self._leave = leave
        self._give_up = give_up
        self._connection = connection
        self._said = False
        """Whether any server may have heard of it."""
        self._events: asyncio.Queue[tuple[Event, ClientConnection] | Exception] = asyncio.Queue()
        self._elsewhere = asyncio.Event()
        """Whether there is no use in waiting for the server that was heard last."""

    async def send(self, message: AgentMessage) -> None:
        """Send a message, unless the connection it belongs to is gone: then `Relinked` is on its way here.

        Waits while the server takes nothing of what it is sent, until it does or the connection is given up for that.

        Raises:
            InvalidRequest: the message is larger than a server takes.
        """
        frame = encode(message)
        if len(frame) > MAX_AGENT_FRAME_BYTES:
            raise InvalidRequest(
                f"the prompt makes a message of {len(frame)} bytes; a server takes {MAX_AGENT_FRAME_BYTES}: shorten it",
                code="prompt_too_long",
            )
        self._said |= self._connection.state is State.OPEN
        with contextlib.suppress(ConnectionClosed):
            await self._connection.send(frame)

    async def receive(self) -> Event:
        """Wait for what the server says to this stream next.

        Raises:
            GoodSpeedError: the link has ended for good: `LinkLost`, or the server's refusal.
        """
        item = await self._events.get()
        if isinstance(item, Exception):
            self._events.put_nowait(item)
            raise item
        event, self._connection = item
        if isinstance(event, Relinked | Alone):
            self._elsewhere.clear()
        return event

    async def elsewhere(self) -> None:
        """Wait until `Relinked`, `Alone` or the end of the link is to be received."""
        await self._elsewhere.wait()

    @property
    def linked(self) -> bool:
        """Whether the connection that was heard last is there still."""
        return self.hearing.stands(self._connection)

    def leave_server(self) -> None:
        """Have the link leave the server that was heard last, since it says nothing, if it is `linked` there."""
        if self.linked:
            self.hearing.leave(self._connection)

    def close(self) -> None:
        """Take the stream off the link; what still comes for it is dropped."""
        self._leave(self.stream)

    async def give_up(self) -> None:
        """The same of one that the server would go on with, which is told so; if not now, when there is a link again.

        All that can be said now is said before anything is awaited.
        """
        self.close()
        if self._said:
            await self._give_up(self.stream)

    def put(self, event: Event, connection: ClientConnection) -> None:
        """Something has come for the stream on a connection."""
        self._events.put_nowait((event, connection))

    def relinked(self, connection: ClientConnection, *, silent: bool = False) -> None:
        """The link is there again: what has come on the connection before, `silent` at last, is void."""
        while not self._events.empty():
            self._events.get_nowait()
        self.put(Relinked(silent), connection)
        self._elsewhere.set()

    def alone(self) -> None:
        """There is no link, and for now none is to be waited for."""
        self.put(Alone(), self._connection)
        self._elsewhere.set()

    def end(self, error: Exception) -> None:
        """The link has ended for good."""
        self._events.put_nowait(error)
        self._elsewhere.set()
