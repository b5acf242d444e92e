"""How long a server may owe a stream an answer."""

from __future__ import annotations

from goodspeed.errors import LinkLost
from goodspeed.messages import Queued, Verdict, Welcome
from goodspeed_agent.channel import Alone, Channel, Event, Relinked

__all__ = ["LEAST_PATIENCE_S", "PATIENCE_S", "Silence"]

PATIENCE_S = 300.0
"""Reading a long prompt takes a while, and a server says nothing of it meanwhile."""
LEAST_PATIENCE_S = 1.0
"""With less, servers would be left that have only just been asked."""
_MOST = 3


class Silence:
    """Hears a stream's channel, and has the link leave a server that owes the stream an answer and says nothing.

    Nobody leaves while other streams of the link are told anything: the server's rounds go on, and this stream's turn
    comes. What was left is opened anew, here or elsewhere, and waited for twice as long: a text that only takes long
    comes to its end. The third time in a row without a verdict it is given up, and the link stands.

    In a queue for rows nothing is owed: nothing is said there while nobody's text ends.

    Args:
        channel: the stream's.
        patience_s: how long the first silence may last.
    """

    def __init__(self, channel: Channel, patience_s: float) -> None:
        self._channel = channel
        self._hearing = channel.hearing
        self._patience_s = patience_s
        self._times = 0
        """How often in a row a server was left that owed this stream an answer."""
        self._owed = True
        self._since_s: float | None = None
        """Since when; None while it is not waited for."""

    async def broken(self) -> Event:
        """Wait for what the server says next, and no longer than it may take.

        Raises:
            LinkLost: no server that was asked has said anything.
            GoodSpeedError: as `Channel.receive`.
        """
        event = await (self._in_time() if self._owed else self._channel.receive())
        if isinstance(event, Welcome):
            return event  # said to every stream alike: what this one is owed, it still is
        if isinstance(event, Verdict):
            self._times = 0
        elif isinstance(event, Relinked) and event.silent and self._owed:
            self._times += 1
        # Without a link it is the link's own patience that counts.
        self._owed = not isinstance(event, Queued | Alone)
        self._since_s = None
        return event

    async def _in_time(self) -> Event:
        if self._since_s is None:
            self._since_s = self._hearing.now_s()
        while (silent_until_s := self._silent_until_s(self._since_s)) > self._hearing.now_s():
            try:
                async with self._hearing.until(silent_until_s):
                    return await self._channel.receive()
            except TimeoutError:
                continue  # others may have been told something meanwhile
        if self._channel.linked and self._times >= _MOST - 1:
            raise LinkLost(
                f"no server has said anything to this text, asked {_MOST} times and waited for "
                f"{self._allowed_s:.0f} s at last: ask again later, or wait longer (--patience-s)"
            )
        self._channel.leave_server()
        return await self._channel.receive()

    @property
    def _allowed_s(self) -> float:
        # The link's count: a stream that came later lets the others' prompts be read as long as they let them.
        return self._patience_s * 2.0 ** min(self._hearing.silences, _MOST - 1)

    def _silent_until_s(self, since_s: float) -> float:
        return max(since_s, self._hearing.last_s) + self._allowed_s
