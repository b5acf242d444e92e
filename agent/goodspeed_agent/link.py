"""One WebSocket link to a server: the handshake, many streams side by side, and coming back after a loss.

A link that is lost is made again by itself. The streams on it are told (`Relinked`) and open themselves anew from
their own transcripts; whatever was under way on the old connection is void, and no stream sees or sends anything
across the gap. So nothing here has to be repeated, acknowledged or kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import ssl
from types import TracebackType
from typing import Self, TypeVar

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import Close as CloseFrame
from websockets.frames import CloseCode
from websockets.protocol import State

from goodspeed.addresses import check_url, proxy_for
from goodspeed.catalog import Files
from goodspeed.credentials import NOBODY, Credentials, hint_of_handshake, refused_by_status, untrusted
from goodspeed.errors import (
    GoodSpeedError,
    LinkLost,
    Overloaded,
    ProtocolError,
    Refused,
    TargetChanged,
    TokenizerMismatch,
)
from goodspeed.messages import (
    MAX_SERVER_FRAME_BYTES,
    Failure,
    GetTokenizer,
    Goodbye,
    Hello,
    Opened,
    Redraft,
    ServerMessage,
    Tokenizer,
    Verdict,
    Welcome,
    decode_server,
    encode,
)
from goodspeed.rules import rule_named
from goodspeed_agent.backoff import Backoff, Patience
from goodspeed_agent.channel import Channel
from goodspeed_agent.tokenizer import TokenizerCache

__all__ = ["Link", "refusal"]

T = TypeVar("T", Welcome, Tokenizer)

_log = logging.getLogger(__name__)

_ATTEMPT_S = 10.0
"""The longest that one attempt to connect and shake hands may take."""
_LEAST_ATTEMPT_S = 1.0
"""However little patience there is: a refusal takes a moment to come."""
_TRANSFER_S = 300.0
"""The longest that a tokenizer may take: 11 MB through 0.3 Mbit/s."""
_SOUND_S = 10.0
"""A link that has stood this long, or brought a verdict, counts as made: the next loss starts a new count."""


class Link:
    """A link to a server, kept up while the block runs.

    Args:
        url: `ws://HOST:PORT` or `wss://HOST:PORT`.
        hello: what this agent is.
        cache: where tokenizers are kept.
        backoff: how patiently a link that fails is made again.
        credentials: to be let in with.

    Raises:
        InvalidRequest: on construction, the address is not one, or a file of the credentials cannot be used.
    """

    welcome: Welcome
    files: Files
    """The target's tokenizer."""

    def __init__(
        self,
        url: str,
        hello: Hello,
        cache: TokenizerCache,
        backoff: Backoff | None = None,
        credentials: Credentials = NOBODY,
    ) -> None:
        check_url(url)
        self._tls, self._headers = credentials.tls(url), credentials.headers(url)
        self._credentials = credentials
        self.url = url
        self.reconnections = 0
        self._hello = hello
        self._cache = cache
        self._backoff = backoff or Backoff()
        self._channels: dict[int, Channel] = {}
        self._ids = itertools.count(1)
        self._connection: ClientConnection
        self._keeper: asyncio.Task[None]
        self._over: Exception | None = None
        self._patience = Patience(self._backoff)
        self._retry_after_s = 0.0

    async def __aenter__(self) -> Self:
        """Connect and shake hands.

        Raises:
            LinkLost: no connection could be made in time.
            Refused: the server said no.
            InvalidRequest: the server's rule of verification is not here.
            TokenizerMismatch: the draft's tokenizer is not the target's.
            ProtocolError: the server does not speak this protocol.
        """
        self.welcome, self.files, self._connection = await self._connect()
        self._keeper = asyncio.create_task(self._keep(), name="link")
        _log.info("linked up to %s: %s, served by %s", self.url, self.welcome.model, self.welcome.server)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeper.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        finally:
            await self._connection.close()

    @property
    def up(self) -> bool:
        """Whether there is a connection now."""
        return self._over is None and self._connection.state is State.OPEN

    @property
    def ended(self) -> bool:
        """Whether it has ended for good: lost, or refused."""
        return self._over is not None

    async def over(self) -> Exception:
        """Wait until the link has ended for good, and say why."""
        await asyncio.wait([self._keeper])
        assert self._over is not None
        return self._over

    async def ping(self) -> float:
        """The round trip of a ping, seconds.

        Raises:
            LinkLost: the connection went away meanwhile.
        """
        try:
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
        channel = Channel(next(self._ids), self._connection, lambda stream: self._channels.pop(stream, None))
        self._channels[channel.stream] = channel
        return channel

    async def redraft(self, drafter: str, fingerprint: str | None) -> None:
        """Tell the server, and every server from now on, that another drafter drafts here; see `messages.Redraft`."""
        self._hello = msgspec.structs.replace(self._hello, drafter=drafter, fingerprint=fingerprint)
        # A connection that is gone is made again with the new greeting.
        with contextlib.suppress(ConnectionClosed):
            await self._connection.send(encode(Redraft(drafter, fingerprint)))

    async def _keep(self) -> None:
        """Read until the link is lost, make it again, and so on, until it cannot be made."""
        try:
            while True:
                await self._read()
                await self._wait_for_next_attempt("the connection was lost")
                greeting = self._hello
                welcome, _, self._connection = await self._connect()
                self._check_same(welcome)
                if self._hello is not greeting:
                    # Another drafter meanwhile; which of the two was greeted with is not known, and twice does no harm.
                    await self.redraft(self._hello.drafter, self._hello.fingerprint)
                self.welcome = welcome
                self.reconnections += 1
                _log.warning("the link to %s is there again", self.url)
                for channel in self._channels.values():
                    channel.relinked(self._connection)
        except Exception as error:
            # Whatever it is, nobody may wait for a link that nobody keeps.
            self._over = error
            for channel in self._channels.values():
                channel.end(error)
            if not isinstance(error, GoodSpeedError):
                raise

    async def _read(self) -> None:
        """Hand on what comes until the connection closes."""
        connection = self._connection
        sound = asyncio.get_running_loop().call_later(_SOUND_S, self._patience.succeeded)
        try:
            while True:
                self._take(await _receive(connection))
        except ConnectionClosed as closed:
            self._raise_if_hopeless(closed)
        except ProtocolError:
            await connection.close(1002)
            raise
        finally:
            sound.cancel()

    def _take(self, message: ServerMessage) -> None:
        match message:
            case Opened():
                self._dispatch(message, message.stream)
            case Verdict():
                self._patience.succeeded()
                self._dispatch(message, message.stream)
            case Failure(stream=int(stream)):
                self._dispatch(message, stream)
            case Failure(code="overloaded"):
                self._retry_after_s = message.retry_after_s or 1.0
            case Failure():
                raise refusal(message)
            case Welcome():
                # Its rounds are of the other kind from here on, which each stream has to know in the same place.
                self._check_same(message)
                self.welcome = message
                for channel in self._channels.values():
                    channel.put(message, self._connection)
            case Goodbye():
                self._retry_after_s = message.retry_after_s or 0.0
                _log.warning("the server is going away: %s", message.reason)
            case _:
                raise ProtocolError(f"the server sent a {type(message).__name__} that nobody asked for")

    def _dispatch(self, message: Opened | Verdict | Failure, stream: int) -> None:
        channel = self._channels.get(stream)
        if channel is not None:  # else the last words to a stream that was closed here meanwhile
            channel.put(message, self._connection)

    async def _connect(self) -> tuple[Welcome, Files, ClientConnection]:
        """Try until there is a link."""
        while True:
            try:
                return await self._attempt(max(_LEAST_ATTEMPT_S, min(_ATTEMPT_S, self._backoff.give_up_after_s)))
            except Overloaded as error:
                self._retry_after_s = error.retry_after_s
                reason: Exception = error
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake) as error:
                self._raise_if_hopeless(error)
                reason = refused_by_status(self.url, error.response) if isinstance(error, InvalidStatus) else error
            hint = hint_of_handshake(self.url, self._credentials, reason)
            await self._wait_for_next_attempt(f"{str(reason) or 'no answer'}{hint}")

    async def _wait_for_next_attempt(self, reason: str) -> None:
        wait_s = self._patience.failed(asyncio.get_running_loop().time(), at_least_s=self._retry_after_s)
        self._retry_after_s = 0.0
        if wait_s is None:
            raise LinkLost(
                f"no link to {self.url} for {self._backoff.give_up_after_s:.0f} s ({reason}): "
                "check the address, and that a goodspeed-server runs there"
            )
        level = logging.WARNING if self._patience.failures == 1 else logging.INFO
        _log.log(level, "no link to %s (%s); trying again in %.1f s", self.url, reason, wait_s)
        await asyncio.sleep(wait_s)

    async def _attempt(self, timeout_s: float) -> tuple[Welcome, Files, ClientConnection]:
        async with asyncio.timeout(timeout_s) as limit:
            connection = await connect(
                self.url,
                compression=None,
                max_size=MAX_SERVER_FRAME_BYTES,
                open_timeout=None,
                close_timeout=2.0,
                user_agent_header="goodspeed-agent",
                proxy=proxy_for(self.url),
                ssl=self._tls,
                additional_headers=self._headers,
            )
            try:
                await connection.send(encode(self._hello))
                welcome = _expect(await _receive(connection), Welcome)
                rule_named(welcome.rule)
                return *await self._tokenizer(connection, welcome, limit), connection
            except BaseException:
                await connection.close()
                raise

    async def _tokenizer(
        self, connection: ClientConnection, welcome: Welcome, limit: asyncio.Timeout
    ) -> tuple[Welcome, Files]:
        digest = welcome.tokenizer
        files = self._cache.load(digest)
        if files is None:
            limit.reschedule(asyncio.get_running_loop().time() + _TRANSFER_S)
            # The answer to a ping waits behind the file.
            usual_s, connection.ping_timeout = connection.ping_timeout, _TRANSFER_S
            await connection.send(encode(GetTokenizer()))
            while isinstance(answer := await _receive(connection), Welcome):
                welcome = answer
            files = _expect(answer, Tokenizer).files
            connection.ping_timeout = usual_s
            self._cache.store(digest, files)
        return welcome, files

    def _raise_if_hopeless(self, error: Exception) -> None:
        if isinstance(error, InvalidStatus) and error.response.status_code < 500:
            raise refused_by_status(self.url, error.response) from None
        if isinstance(error, ssl.SSLCertVerificationError):
            raise Refused(untrusted(self.url, error), code="untrusted") from None
        if isinstance(error, ConnectionClosed):
            # Sent again it would be too large again. Whoever closes is answered with the same code.
            if error.rcvd_then_sent is not False and _too_big(error.rcvd):
                assert error.rcvd is not None
                raise Refused(f"the server takes no message so large: {error.rcvd.reason}", code="too_large") from None
            if _too_big(error.sent):
                raise ProtocolError(
                    f"{self.url} sent a message of more than {MAX_SERVER_FRAME_BYTES} bytes, which no agent takes"
                ) from None

    def _check_same(self, welcome: Welcome) -> None:
        if _target(welcome) != _target(self.welcome):
            raise TargetChanged(
                f"the server at {self.url} came back with another target or rule ({welcome.model}, {welcome.rule}): "
                "what was generated so far cannot be continued there; start anew"
            )


def _too_big(close: CloseFrame | None) -> bool:
    return close is not None and close.code == CloseCode.MESSAGE_TOO_BIG


def refusal(failure: Failure) -> GoodSpeedError:
    """The exception that a server's failure stands for."""
    if failure.code == "overloaded":
        return Overloaded(failure.message, retry_after_s=failure.retry_after_s or 1.0)
    if failure.code == TokenizerMismatch.code:
        return TokenizerMismatch(failure.message)
    return Refused(f"the server refused: {failure.message}", code=failure.code)


def _target(welcome: Welcome) -> tuple[object, ...]:
    """All that has to stay the same for a text to go on as it began; a name may change, and so may limits."""
    return (
        welcome.weights, welcome.fingerprint, welcome.tokenizer, welcome.rule, welcome.vocab_size,
        welcome.eos_tokens,
    )  # fmt: skip


async def _receive(connection: ClientConnection) -> ServerMessage:
    return decode_server(await connection.recv())


def _expect(message: ServerMessage, kind: type[T]) -> T:
    if isinstance(message, kind):
        return message
    if isinstance(message, Failure):
        raise refusal(message)
    raise ProtocolError(f"the server sent a {type(message).__name__} where a {kind.__name__} was due")
