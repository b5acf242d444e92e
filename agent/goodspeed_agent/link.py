"""A WebSocket link to one of the servers there are: many streams side by side, and coming back after a loss.

A link that is lost is made again by itself, to the same server or to another (`Itinerary`). The streams on it are told
(`Relinked`) and open themselves anew from their own transcripts; whatever was under way on the old connection is void,
and no stream sees or sends anything across the gap. So nothing here has to be repeated, acknowledged or kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from goodspeed.catalog import Files
from goodspeed.credentials import NOBODY, Credentials
from goodspeed.errors import GoodSpeedError, LinkLost, ProtocolError
from goodspeed.messages import Failure, Goodbye, Hello, Opened, Queued, Redraft, ServerMessage, Verdict, Welcome, encode
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.channel import Channel
from goodspeed_agent.channels import Channels
from goodspeed_agent.connecting import Connected, Door, lost_for_good, part, receive, refusal
from goodspeed_agent.hearing import Hearing
from goodspeed_agent.itinerary import Itinerary, addresses
from goodspeed_agent.journey import Journey
from goodspeed_agent.outage import Outage
from goodspeed_agent.targets import check_same, check_tokens
from goodspeed_agent.tokenizer import TokenizerCache

__all__ = ["Adopt", "Link"]

_log = logging.getLogger(__name__)

Adopt = Callable[[Welcome, Files], Awaitable[None]]
"""Prepares for a target before anything is said to it; raises where it cannot be worked for."""

_SESSION_BYTES = 16
_SOUND_S = 10.0
"""A link that has stood this long, or brought a verdict, counts as made: the next loss starts a new count."""


class Link:
    """A link to a server, kept up while the block runs.

    Args:
        servers: `ws://HOST:PORT` or `wss://HOST:PORT`; or several (`itinerary.addresses`), the most preferred first.
        hello: what this agent is.
        cache: where tokenizers are kept.
        backoff: how patiently a link that fails is made again.
        credentials: to be let in with.
        adopt: is awaited with the first server's target before streams are opened there, and with a remembered one.
        alone_after_s: after how long without a link texts are begun without a server (`alone`); from then on a link is
            tried for until there is one. None waits for a server as long as there is patience.

    Raises:
        InvalidRequest: on construction, an address is none, or a file of the credentials cannot be used.
    """

    welcome: Welcome
    files: Files
    """The target's tokenizer."""

    def __init__(
        self,
        servers: str | Sequence[str],
        hello: Hello,
        cache: TokenizerCache,
        backoff: Backoff | None = None,
        credentials: Credentials = NOBODY,
        *,
        adopt: Adopt | None = None,
        alone_after_s: float | None = None,
    ) -> None:
        doors = [Door(url, cache, credentials) for url in addresses(servers)]
        self.url = doors[0].url
        """The address where the link stands, or did last."""
        backoff = backoff or Backoff()
        patient = backoff if alone_after_s is None else replace(backoff, give_up_after_s=math.inf)
        itinerary = Itinerary(len(doors), patient)
        self._journey = Journey(doors, itinerary, backoff, self._greeting, self._check)
        self.reconnections = 0
        # The server knows this link by it when it comes back, and keeps what is cached of its streams until then.
        self._hello = msgspec.structs.replace(hello, session=secrets.token_bytes(_SESSION_BYTES))
        self._cache = cache
        self._adopt = adopt
        self._outage: Outage | None = None
        if alone_after_s is not None:
            self._outage = Outage(alone_after_s, backoff.give_up_after_s, self._go_alone, self._give_up)
        self.alone = False
        """Whether no server can be reached, and texts are to be begun without one."""
        self._hearing = Hearing()
        self._channels = Channels(self._hearing)
        self._connection: ClientConnection | None = None
        self._parting: set[asyncio.Task[None]] = set()
        """Connections that are being closed, since there is another."""
        self._keeper: asyncio.Task[None]
        self._settled = asyncio.Event()
        """Whether there is a link, or never will be, or for now none is to be waited for."""
        self._over: Exception | None = None
        self._rest_s: float | None = None
        """How long the server has asked to be left alone from when it closes the connection, if it has."""
        self._leaving = False
        """Whether it is being left for another."""

    async def __aenter__(self) -> Self:
        """Connect and shake hands; or go `alone`, where that is wanted and the target is known from before.

        Raises:
            LinkLost: no connection could be made in time.
            Refused: the server said no.
            InvalidRequest: the server's rule of verification is not here.
            TokenizerMismatch: the draft's tokenizer is not the target's.
            ProtocolError: the server does not speak this protocol.
            Exception: whatever `adopt` raised.
        """
        self._keeper = asyncio.create_task(self._keep(), name="link")
        self._fell()
        try:
            await self._settled.wait()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        if self._over is not None:
            await self.__aexit__(None, None, None)
            raise self._over
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._outage is not None:
            self._outage.end()
        self._keeper.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        finally:
            self._part()
            if self._parting:
                await asyncio.wait(self._parting)

    @property
    def up(self) -> bool:
        """Whether there is a connection now."""
        return self._over is None and self._connection is not None and self._hearing.stands(self._connection)

    @property
    def ended(self) -> bool:
        """Whether it has ended for good: lost, or refused."""
        return self._over is not None

    async def over(self) -> Exception:
        """Wait until the link has ended for good, and say why."""
        await asyncio.wait([self._keeper])
        assert self._over is not None
        return self._over

    async def settled(self) -> None:
        """Wait until it is certain whether texts are begun at a server, or `alone`, or not at all."""
        await self._settled.wait()

    async def ping(self) -> float:
        """The round trip of a ping, seconds.

        Raises:
            LinkLost: the connection went away meanwhile.
        """
        try:
            assert self._connection is not None
            return await (await self._connection.ping())
        except ConnectionClosed:
            raise LinkLost(f"the connection to {self.url} went away") from None

    def channel(self) -> Channel:
        """Put one more stream on the link.

        Raises:
            GoodSpeedError: the link has ended for good.
        """
        if self._over is not None:
            raise self._over
        assert self._connection is not None
        return self._channels.open(self._connection)

    async def redraft(self, drafter: str, fingerprint: str | None) -> None:
        """Tell the server, and every server from now on, that another drafter drafts here; see `messages.Redraft`."""
        self._hello = msgspec.structs.replace(self._hello, drafter=drafter, fingerprint=fingerprint)
        # A connection that is gone is made again with the new greeting.
        if self._connection is not None:
            with contextlib.suppress(ConnectionClosed):
                await self._connection.send(encode(Redraft(drafter, fingerprint)))

    async def _keep(self) -> None:
        """Read until the link is lost, make it again, and so on, until it cannot be made."""
        try:
            connected = await self._journey.connect()
            while True:
                await self._take_up(connected)
                connected = await self._stand() or await self._journey.connect()
        except Exception as error:
            # Whatever it is, nobody may wait for a link that nobody keeps.
            self._end(error)
            if not isinstance(error, GoodSpeedError):
                raise

    def _end(self, error: Exception) -> None:
        self._over, self.alone = error, False
        if self._outage is not None:
            self._outage.end()
        self._settled.set()
        self._channels.end(error)

    def _fell(self) -> None:
        """There is no link now."""
        if self._outage is not None:
            if not self.alone:
                self._settled.clear()
            self._outage.begin()

    async def _go_alone(self) -> None:
        """There has been no link for a while: let the draft answer, if the target is known."""
        try:
            if self._connection is None:
                known = self._cache.recall(self._journey.urls)
                if known is None:
                    _log.warning("nothing is known yet of what %s serves: the draft cannot answer alone", self.url)
                    return
                if self._adopt is not None:
                    await self._adopt(*known)
                self.welcome, self.files = known
        except GoodSpeedError as error:
            _log.warning("the draft cannot answer alone: %s", error)
            return
        except Exception as error:
            self._end(error)
            self._keeper.cancel()
            return
        self.alone = True
        _log.warning("no server can be reached: the draft answers new texts alone, and nobody verifies them")
        self._settled.set()
        self._channels.alone()

    def _give_up(self) -> None:
        """There has been no link for so long that nothing waits for one any more."""
        error = self._journey.given_up()
        if not self.alone:
            self._end(error)
            self._keeper.cancel()
            return
        self._channels.end(error)
        self._channels.clear()

    async def _take_up(self, connected: Connected) -> None:
        again = self._connection is not None
        if self._outage is not None:
            self._outage.end()
        self._part()
        silent = self._hearing.left
        self._hearing.begin(connected.connection, connected.url)
        self._connection, self.url = connected.connection, connected.url
        self.welcome, self.files = connected.welcome, connected.files
        await self._channels.say_what_is_given_up()
        if self._hello is not connected.hello:
            # Another drafter meanwhile; which of the two was greeted with is not known, and twice does no harm.
            await self.redraft(self._hello.drafter, self._hello.fingerprint)
        if again:
            self.reconnections += 1
            _log.warning("the link to %s is there again", connected.url)
        else:
            _log.info("linked up to %s: %s, served by %s", connected.url, self.welcome.model, self.welcome.server)
        if self.alone:
            _log.warning("new texts are verified again")
        self.alone = False
        self._cache.remember(connected.url, connected.welcome)
        self._channels.relinked(connected.connection, silent=silent)
        self._settled.set()

    def _part(self) -> None:
        """Close the connection in order, beside whatever comes next."""
        if self._connection is not None:
            task = asyncio.create_task(part(self._connection), name="parting")
            self._parting.add(task)
            task.add_done_callback(self._parting.discard)

    async def _stand(self) -> Connected | None:
        """Hand on what comes until the connection is lost; another one, where the server has sent the agent away."""
        self._rest_s, self._leaving = None, False
        sound = asyncio.get_running_loop().call_later(_SOUND_S, self._journey.itinerary.succeeded)
        try:
            if await self._read():
                self._leaving = True
                sound.cancel()
                return await self._move()
        except GoodSpeedError as error:
            if self._leaving:
                raise
            self._fell()
            await self._journey.get_over(error)
            return None
        finally:
            sound.cancel()
        self._fell()
        # A server that was left does not rest: where there is no other, it is asked again.
        await self._journey.lost(0.0 if self._hearing.left and self._rest_s is None else self._rest_s)
        return None

    async def _read(self) -> bool:
        """Hand on what comes until the connection closes; True where the server is to be left for another before."""
        connection = self._connection
        assert connection is not None
        try:
            while True:
                message = await receive(connection)
                self._take(message, connection)
                if isinstance(message, Goodbye) and not self._leaving and self._journey.leave(self._rest_s or 0.0):
                    return True
        except ConnectionClosed as closed:
            if (hopeless := lost_for_good(self.url, closed)) is not None:
                raise hopeless from None
            return False
        except ProtocolError:
            await part(connection, CloseCode.PROTOCOL_ERROR)
            raise

    async def _move(self) -> Connected:
        """Link up elsewhere, and hand on what the server that is being left says until then.

        Raises:
            GoodSpeedError: there is no other after all, and this one has closed the connection.
        """
        moving, reading = asyncio.create_task(self._journey.connect()), asyncio.create_task(self._read())
        try:
            await asyncio.wait({moving, reading}, return_when=asyncio.FIRST_COMPLETED)
            if moving.done() and moving.exception() is not None:
                await asyncio.wait({reading})
            self._journey.left()
            if not moving.done():
                self._fell()
            return await moving
        except asyncio.CancelledError:
            if moving.done() and not moving.cancelled() and moving.exception() is None:
                await part(moving.result().connection)
            raise
        finally:
            for task in (moving, reading):
                task.cancel()
            _, said = await asyncio.gather(moving, reading, return_exceptions=True)
            if isinstance(said, GoodSpeedError):
                _log.warning("the server that is left: %s", said)
            elif isinstance(said, Exception):
                raise said

    def _take(self, message: ServerMessage, connection: ClientConnection) -> None:
        match message:
            case Queued() | Opened():
                self._channels.put(message, message.stream, connection)
            case Verdict():
                check_tokens(message, self.welcome.vocab_size)
                if not self._leaving:
                    self._journey.itinerary.succeeded()
                self._channels.put(message, message.stream, connection)
            case Failure(stream=int(stream)):
                self._channels.put(message, stream, connection)
            case Failure(code="overloaded"):
                self._rest_s = message.retry_after_s or 1.0
            case Failure():
                raise refusal(message)
            case Welcome():
                # Its rounds are of the other kind from here on, which each stream has to know in the same place.
                check_same(message, self.welcome, self.url)
                self.welcome = message
                self._channels.put_all(message, connection)
            case Goodbye():
                self._rest_s = message.retry_after_s or 0.0
                _log.warning("the server is going away: %s", message.reason)
            case _:
                raise ProtocolError(f"the server sent a {type(message).__name__} that nobody asked for")

    def _greeting(self) -> Hello:
        # One that is given up may reach the server late, after the next.
        self._hello = msgspec.structs.replace(self._hello, attempt=self._hello.attempt + 1)
        return self._hello

    async def _check(self, connected: Connected) -> None:
        """See whether the streams can go on there, or, where there are none yet, whether the draft fits."""
        if self._connection is not None:
            check_same(connected.welcome, self.welcome, connected.url)
        elif self._adopt is not None:
            await self._adopt(connected.welcome, connected.files)
