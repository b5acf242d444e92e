"""How long a server may owe a stream an answer.

A connection's pings are answered whatever has become of the server's rounds: only what is said to the stream itself
tells of them.
"""

from __future__ import annotations

import asyncio

from goodspeed.errors import LinkLost
from goodspeed.messages import Queued, Verdict
from goodspeed_agent.channel import Alone, Channel, Event

__all__ = ["PATIENCE_S", "Silence"]

PATIENCE_S = 120.0
"""Reading a long prompt takes a while, and a server says nothing of it meanwhile."""
_MOST = 3


class Silence:
    """Hears a stream's channel, and has the link leave a server that owes the stream an answer for too long.

    What was left is opened anew, here or elsewhere, and waited for twice as long: a text that only takes long comes to
    its end. After the third time in a row without a verdict it is given up.

    In a queue for rows nothing is owed: nothing is said there while nobody's text ends.

    Args:
        channel: the stream's.
        patience_s: how long the first silence may last.
    """

    def __init__(self, channel: Channel, patience_s: float) -> None:
        self._channel = channel
        self._patience_s = patience_s
        self._times = 0
        """How often in a row a server was left for it."""
        self._owed = True

    async def broken(self) -> Event:
        """Wait for what the server says next, and no longer than it may take.

        Raises:
            LinkLost: no server that was asked has said anything.
            GoodSpeedError: as `Channel.receive`.
        """
        event = await (self._in_time() if self._owed else self._channel.receive())
        # Without a link it is the link's own patience that counts.
        self._owed = not isinstance(event, Queued | Alone)
        if isinstance(event, Verdict):
            self._times = 0
        return event

    async def _in_time(self) -> Event:
        patience_s = self._patience_s * 2.0**self._times
        try:
            async with asyncio.timeout(patience_s):
                return await self._channel.receive()
        except TimeoutError:
            if self._channel.leave_server():
                self._times += 1
        if self._times == _MOST:
            raise LinkLost(
                f"no server has said anything to this text, asked {_MOST} times and waited for {patience_s:.0f} s at "
                "last: ask again later, or wait longer (--patience-s)"
            )
        return await self._channel.receive()
