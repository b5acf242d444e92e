"""One server's address, and the handshake there."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import Close as CloseFrame
from websockets.frames import CloseCode

from goodspeed.addresses import check_url, proxy_for
from goodspeed.catalog import Files
from goodspeed.credentials import Credentials, hint_of_handshake, refused_by_status, untrusted
from goodspeed.errors import GoodSpeedError, LinkLost, Overloaded, ProtocolError, Refused, TokenizerMismatch
from goodspeed.messages import (
    MAX_SERVER_FRAME_BYTES,
    Failure,
    GetTokenizer,
    Hello,
    ServerMessage,
    Tokenizer,
    Welcome,
    decode_server,
    encode,
)
from goodspeed.rules import rule_named
from goodspeed_agent.connection import Connection
from goodspeed_agent.dialing import dial
from goodspeed_agent.tokenizer import TokenizerCache

__all__ = ["Connected", "Door", "lost_for_good", "part", "receive", "refusal"]

T = TypeVar("T", Welcome, Tokenizer)

_TRANSFER_S = 300.0
"""The longest that a tokenizer may take: 11 MB through 0.3 Mbit/s."""
_CLOSE_S = 2.0
"""The longest that the answer to a close is waited for."""
_PARTING_S = 2 * _CLOSE_S


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection that has been welcomed."""

    url: str
    hello: Hello
    """What the server was greeted with."""
    connection: ClientConnection
    welcome: Welcome
    files: Files
    """The target's tokenizer."""


class Door:
    """An address to link up to.

    Args:
        url: `ws://HOST:PORT` or `wss://HOST:PORT`.
        cache: where tokenizers are kept.
        credentials: to be let in with.

    Raises:
        InvalidRequest: on construction, the address is not one, or a file of the credentials cannot be used.
    """

    def __init__(self, url: str, cache: TokenizerCache, credentials: Credentials) -> None:
        check_url(url)
        self.url = url
        self._tls, self._headers = credentials.tls(url), credentials.headers(url)
        self._credentials = credentials
        self._cache = cache

    async def connect(self, hello: Hello, timeout_s: float) -> Connected:
        """Connect and shake hands, once.

        Args:
            hello: what to greet with.
            timeout_s: how long it may take; a tokenizer that has to come first takes longer.

        Raises:
            LinkLost: it could not be done now.
            Overloaded: likewise, as the server said.
            Refused: the server said no.
            InvalidRequest: the server's rule of verification is not here.
            TokenizerMismatch: the draft's tokenizer is not the target's.
            ProtocolError: the server does not speak this protocol.
        """
        try:
            return await self._shake_hands(hello, timeout_s)
        except InvalidStatus as error:
            raise refused_by_status(self.url, error.response) from None
        except ssl.SSLCertVerificationError as error:
            raise Refused(untrusted(self.url, error), code="untrusted") from None
        except ConnectionClosed as closed:
            if (hopeless := lost_for_good(self.url, closed)) is not None:
                raise hopeless from None
            raise LinkLost(str(closed)) from None
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise LinkLost(
                f"{str(error) or 'no answer'}{hint_of_handshake(self.url, self._credentials, error)}"
            ) from None

    async def _shake_hands(self, hello: Hello, timeout_s: float) -> Connected:
        async with asyncio.timeout(timeout_s) as limit:
            connection = await _Directly(
                self.url,
                compression=None,
                max_size=MAX_SERVER_FRAME_BYTES,
                create_connection=Connection,
                open_timeout=None,
                close_timeout=_CLOSE_S,
                user_agent_header="goodspeed-agent",
                proxy=proxy_for(self.url),
                ssl=self._tls,
                additional_headers=self._headers,
            )
            try:
                await connection.send(encode(hello))
                welcome = _expect(await receive(connection), Welcome)
                rule_named(welcome.rule)
                welcome, files = await self._with_tokenizer(connection, welcome, limit)
                return Connected(self.url, hello, connection, welcome, files)
            except BaseException:
                await part(connection)
                raise

    async def _with_tokenizer(
        self, connection: ClientConnection, welcome: Welcome, limit: asyncio.Timeout
    ) -> tuple[Welcome, Files]:
        digest = welcome.tokenizer
        files = self._cache.load(digest)
        if files is None:
            limit.reschedule(asyncio.get_running_loop().time() + _TRANSFER_S)
            # The answer to a ping waits behind the file.
            usual_s, connection.ping_timeout = connection.ping_timeout, _TRANSFER_S
            await connection.send(encode(GetTokenizer()))
            while isinstance(answer := await receive(connection), Welcome):
                welcome = answer
            files = _expect(answer, Tokenizer).files
            connection.ping_timeout = usual_s
            self._cache.store(digest, files)
        return welcome, files


async def receive(connection: ClientConnection) -> ServerMessage:
    """What the server says next.

    Raises:
        ProtocolError: it is no message.
        ConnectionClosed: nothing comes any more.
    """
    return decode_server(await connection.recv())


async def part(connection: ClientConnection, code: CloseCode = CloseCode.NORMAL_CLOSURE) -> None:
    """Close a connection in order, if that can be done in time: to a peer that does not read nothing can be said."""
    try:
        async with asyncio.timeout(_PARTING_S):
            await connection.close(code)
    except TimeoutError:
        connection.transport.abort()


class _Directly(connect):
    """Goes where it was told: no server of ours sends anybody elsewhere over HTTP. Whichever address answers first."""

    async def open_tcp_connection(self) -> ClientConnection:
        if self.proxy is None:
            self.create_connection_kwargs["sock"] = await dial(self.ws_uri.host, self.ws_uri.port)
        return await super().open_tcp_connection()

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


def refusal(failure: Failure) -> GoodSpeedError:
    """The exception that a server's failure stands for."""
    if failure.code == GoodSpeedError.code:
        # A defect there, which the next link need not meet.
        return LinkLost(failure.message)
    if failure.code == "overloaded":
        return Overloaded(failure.message, retry_after_s=failure.retry_after_s or 1.0)
    if failure.code == TokenizerMismatch.code:
        return TokenizerMismatch(failure.message)
    return Refused(f"the server refused: {failure.message}", code=failure.code)


def lost_for_good(url: str, closed: ConnectionClosed) -> GoodSpeedError | None:
    """Why a connection that was closed would only be closed again; None if it may be made anew.

    What was too large once would be too large again. Whoever closes is answered with the same code.
    """
    if closed.rcvd_then_sent is not False and _too_big(closed.rcvd):
        assert closed.rcvd is not None
        return Refused(f"the server takes no message so large: {closed.rcvd.reason}", code="too_large")
    if _too_big(closed.sent):
        return ProtocolError(f"{url} sent a message of more than {MAX_SERVER_FRAME_BYTES} bytes, which no agent takes")
    return None


def _too_big(close: CloseFrame | None) -> bool:
    return close is not None and close.code == CloseCode.MESSAGE_TOO_BIG


def _expect(message: ServerMessage, kind: type[T]) -> T:
    if isinstance(message, kind):
        return message
    if isinstance(message, Failure):
        raise refusal(message)
    raise ProtocolError(f"the server sent a {type(message).__name__} where a {kind.__name__} was due")
