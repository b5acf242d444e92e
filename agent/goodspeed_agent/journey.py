"""From a lost link, or from none, to the next server that can be worked with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from goodspeed.errors import GoodSpeedError, LinkLost, ModelError, Overloaded, TargetChanged, TokenizerMismatch
from goodspeed.messages import Hello
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.connecting import Connected, Door, part
from goodspeed_agent.itinerary import Itinerary

__all__ = ["Journey"]

_log = logging.getLogger(__name__)

_ATTEMPT_S = 10.0
"""The longest that one attempt to connect and shake hands may take."""
_ATTEMPT_OF_SEVERAL_S = 4.0
"""The same where there is another server that may answer sooner."""
_LEAST_ATTEMPT_S = 1.0
"""However little patience there is: a refusal takes a moment to come."""


class Journey:
    """Follows an itinerary on the clock.

    Args:
        doors: the servers, the most preferred one first.
        itinerary: over them.
        backoff: how patient it is.
        hello: what to greet with at the time.
        check: is awaited with every connection that is made; raises where the server cannot be worked with.
    """

    def __init__(
        self,
        doors: Sequence[Door],
        itinerary: Itinerary,
        backoff: Backoff,
        hello: Callable[[], Hello],
        check: Callable[[Connected], Awaitable[None]],
    ) -> None:
        self.itinerary = itinerary
        self._doors = doors
        self._backoff = backoff
        self._hello = hello
        self._check = check
        self._reason = "no answer"
        """Why there is no link, as far as is known."""

    @property
    def urls(self) -> list[str]:
        """All addresses."""
        return [door.url for door in self._doors]

    async def connect(self) -> Connected:
        """Try until there is a link to some server.

        Raises:
            LinkLost: for too long there was none.
            GoodSpeedError: none of them can be worked with; what the last one said.
        """
        while True:
            try:
                return await self._attempt()
            except GoodSpeedError as error:
                await self.get_over(error)

    async def get_over(self, error: GoodSpeedError) -> None:
        """Wait until the next attempt is due, after the server's last word; raise where there is none to be made."""
        now_s, url = asyncio.get_running_loop().time(), self._next.url
        if isinstance(error, LinkLost | Overloaded):
            await self._wait(self.itinerary.failed(now_s, error.retry_after_s), url, str(error))
        elif self.itinerary.alone or _ours(error):
            raise error
        else:
            wait_s = self.itinerary.strike_off(now_s)
            _log.warning("%s is passed over from now on: %s", url, error)
            await self._wait(wait_s, url, str(error))

    async def lost(self, rest_s: float | None) -> None:
        """Wait until the next attempt is due, after a link was lost.

        Args:
            rest_s: how long the server asked to be left alone; None where it said nothing.
        """
        now_s, url = asyncio.get_running_loop().time(), self._next.url
        wait_s = self.itinerary.lost(now_s) if rest_s is None else self.itinerary.failed(now_s, rest_s)
        await self._wait(wait_s, url, "the connection was lost")

    def leave(self, rest_s: float) -> bool:
        """The server is going away and speaks until then; says whether there is another to go to at once."""
        return self.itinerary.leave(asyncio.get_running_loop().time(), rest_s)

    def left(self) -> None:
        """That server is not heard any more."""
        self.itinerary.left(asyncio.get_running_loop().time())

    def given_up(self) -> LinkLost:
        """What to raise where there was no link for too long."""
        several = "es" if len(self._doors) > 1 else ""
        return LinkLost(
            f"no link to {' or '.join(self.urls)} for {self._backoff.give_up_after_s:.0f} s ({self._reason}): "
            f"check the address{several}, and that a goodspeed-server runs there"
        )

    @property
    def _next(self) -> Door:
        return self._doors[self.itinerary.place]

    async def _attempt(self) -> Connected:
        several = not self.itinerary.alone and not self.itinerary.laps
        most_s = min(_ATTEMPT_OF_SEVERAL_S if several else _ATTEMPT_S, self._backoff.give_up_after_s)
        connected = await self._next.connect(self._hello(), max(_LEAST_ATTEMPT_S, most_s))
        try:
            await self._check(connected)
        except BaseException:
            await part(connected.connection)
            raise
        return connected

    async def _wait(self, wait_s: float | None, url: str, reason: str) -> None:
        self._reason = reason
        if wait_s is None:
            raise self.given_up()
        level = logging.WARNING if self.itinerary.laps <= 1 else logging.INFO
        where = "again" if self._next.url == url else self._next.url
        when = f" in {wait_s:.1f} s" if wait_s else ""
        _log.log(level, "no link to %s (%s); trying %s%s", url, reason, where, when)
        await asyncio.sleep(wait_s)


def _ours(error: GoodSpeedError) -> bool:
    """Whether it is the agent's own draft that cannot be used, whatever the server."""
    return isinstance(error, ModelError) and not isinstance(error, TokenizerMismatch | TargetChanged)
