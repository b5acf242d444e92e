"""Where connections come in: each is shown to the gate once it is accepted, before it has said or encrypted a word.

TLS is started here rather than by the listener, which would tell nobody of a connection before its handshake is done.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import http
import logging
import math
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.frames import Frame
from websockets.http11 import Request, Response
from websockets.protocol import Event
from websockets.server import ServerProtocol

import goodspeed
from goodspeed.errors import GoodSpeedError
from goodspeed_server.accepting import Acceptor
from goodspeed_server.gate import Gate, Refusal, Visitor
from goodspeed_server.pacing import LinkPace, PeerPace
from goodspeed_server.records import Records
from goodspeed_server.settings import DoorSettings
from goodspeed_server.unread import Unread

__all__ = ["Connection", "Door", "later"]

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 10.0
"""For the TLS handshake, and then for the HTTP request, however slowly it comes."""
_PING_TIMEOUT_S = 120.0
_CLOSE_TIMEOUT_S = 4.0
_MOST_UNSENT_BYTES = 2**20
"""A peer that has so much unread only asks and does not listen: pongs wait for nobody, and all else for who reads."""
_OTHER_FILES = 512
"""That are no connections."""
_TLS_HANDSHAKE = b"\x16"
"""What TLS begins with, and no HTTP request does."""
_IDLE = "the server is full, and this link was idle"
_IDLE_RETRY_S = 10.0


class Served(Protocol):
    """What is served on a connection."""

    @property
    def busy(self) -> bool:
        """Whether it has streams."""

    async def say_goodbye(self, reason: str, retry_after_s: float | None = None) -> None:
        """Close in order."""


class Connection(ServerConnection):
    """A connection that the gate knows.

    Args:
        door: where it came in.
        host: the other side's address.
        arguments: of a `ServerConnection`.
        options: likewise.
    """

    def __init__(self, *arguments: Any, door: Door, host: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._door = door
        self.host = host
        self._raw: asyncio.Transport | None = None
        self._early: list[bytes] | None = []
        """What came before the connection was made, which takes until TLS is spoken; None from then on."""
        self._encrypting: asyncio.Task[None] | None = None
        self._records: Records | None = None
        self._begun = False
        """Whether anything has come."""
        self._unread: Unread
        """What came since then."""
        self._frames = 0
        """How many of them there were in what was read last."""
        self.pace = LinkPace(None)
        """How much of it is read."""
        self._cut = False
        """Whether it was ended without a word."""
        self.served: Served | None = None
        self.visitor = self._door.arrive(self)
        self._cut |= self.visitor.cut

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It has its transport."""
        self._raw = raw = cast(asyncio.Transport, transport)  # uvloop's have that type's methods alone
        if self._cut:
            raw.abort()
        elif self._door.tls is None:
            self._made(raw)
        else:
            # What comes before TLS is spoken would come here, and be lost to it; it is read on when TLS begins.
            raw.pause_reading()
            self._encrypting = self.loop.create_task(self._encrypt(raw, self._door.tls))

    def data_received(self, data: bytes) -> None:
        """Something came."""
        if self._records is not None:
            self._records.handed_on(len(data))
        if self._early is None:
            self._bring(data)
        else:
            self._early.append(data)

    def _bring(self, data: bytes) -> None:
        if not self._begun and self._door.tls is None and data.startswith(_TLS_HANDSHAKE):
            # It is no request, and would be waited for until the handshake's time is over.
            logger.info("somebody asks for TLS (wss://), which this server speaks only with --tls-cert")
            self._door.refused("no_tls")
            self.cut_off()
            return
        self._begun = True
        self._unread.bring(data)

    def process_event(self, event: Event) -> None:
        """The request came, or a frame."""
        super().process_event(event)
        self._frames += isinstance(event, Frame)

    def _read(self, piece: bytes) -> tuple[int, float]:
        self._frames = 0
        super().data_received(piece)
        if self.transport.get_write_buffer_size() > _MOST_UNSENT_BYTES:
            self._door.refused("slow_reader")
            self._unread.drop()
            self.cut_off()
            return self._frames, 0.0
        return self._frames, self._throttled(self.pace.came(self.loop.time(), len(piece), self._frames))

    def _idled(self, records: int) -> float:
        return self._throttled(self.pace.idled(self.loop.time(), records))

    def _throttled(self, wait_s: float) -> float:
        if wait_s > 0.0:
            self._door.throttled(wait_s)
        return wait_s

    def eof_received(self) -> None:
        """Nothing more will come."""
        if self._early is None:
            self._unread.end(super().eof_received)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._door.left(self)
        self.pace.gone()
        if self._early is None:
            self._unread.drop()
            super().connection_lost(exc)

    def listen_as(self, peer: PeerPace) -> None:
        """It is known whose link it is."""
        self.pace = LinkPace(peer)

    def hear_out(self) -> None:
        """It is told goodbye, and its answer stands behind whatever else it has said: wait for none of that."""
        self.pace.gone()
        self.pace = LinkPace(PeerPace(1.0))  # which is as much as anybody may send at once
        self._unread.read_on()

    def cut_off(self) -> None:
        """End it without a word."""
        self._cut = True
        if self._raw is not None:
            self._raw.abort()

    async def _encrypt(self, raw: asyncio.Transport, tls: ssl.SSLContext) -> None:
        encrypted = None
        try:
            if not raw.is_closing():
                self._records = Records(raw, self._idled)
                self.loop.call_soon(self._records.interpose)  # TLS has taken the transport then, and read nothing
                encrypted = await self.loop.start_tls(
                    raw, self, tls, server_side=True, ssl_handshake_timeout=OPEN_TIMEOUT_S,
                    ssl_shutdown_timeout=_CLOSE_TIMEOUT_S,
                )  # fmt: skip
        except (OSError, asyncio.CancelledError) as error:  # a failed or late handshake is one of the former
            logger.info("no TLS with %s: %s", self.host, error)
            self._door.refused("no_tls")
        finally:
            if encrypted is None:  # it went away meanwhile
                self.cut_off()
                self._door.left(self)
        if encrypted is not None:
            self._made(encrypted)

    def _made(self, transport: asyncio.Transport) -> None:
        early, self._early = self._early, None
        super().connection_made(transport)
        if self._records is not None:
            self._records.begin(transport)
        self._unread = Unread(self._records or transport, self._read)
        self.recv_messages.pause, self.recv_messages.resume = self._unread.fill, self._unread.drain
        for data in early or ():
            self._bring(data)


class Door:
    """Listens, and shows whoever comes to the gate.

    Args:
        settings: the operator's choices.
        tls: how links are encrypted; None for links in the clear.
        refused: is told the code of everything that is refused.
        throttled: is told for how long a connection is not read.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        settings: DoorSettings,
        tls: ssl.SSLContext | None,
        *,
        refused: Callable[[str], None],
        throttled: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tls = tls
        self.refused = refused
        self.throttled = throttled
        self._max_links = settings.max_links
        self._clock = clock
        self._goodbyes: set[asyncio.Task[None]] = set()
        self._closed = False
        self.gate: Gate[Connection] = Gate(
            settings,
            cut_off=self._cut_off,
            make_way=self._make_way,
            is_busy=lambda connection: connection.served is not None and connection.served.busy,
        )

    async def listen(
        self,
        host: str,
        port: int,
        handler: Callable[[Connection], Awaitable[None]],
        answer: Callable[[Connection, Request], Response | Awaitable[Response] | None],
        *,
        max_bytes: int,
    ) -> Server:
        """Listen.

        Args:
            host: address to listen on.
            port: 0 for any free one.
            handler: serves a link.
            answer: a plain request; None to one that may become a link.
            max_bytes: of a frame.

        Raises:
            GoodSpeedError: the port is taken, or the address cannot be used.
        """
        _allow_files(self._max_links, self.gate.max_pending)
        try:
            server = await serve(
                # What is told of a connection is told of one that `_connection` made, and those are all ours.
                handler,  # type: ignore[arg-type]
                host,
                port,
                process_request=answer,  # type: ignore[arg-type]  # likewise
                process_response=self._let_in,  # type: ignore[arg-type]  # likewise
                open_timeout=OPEN_TIMEOUT_S,
                server_header=f"goodspeed/{goodspeed.__version__}",
                start_serving=False,
            )
            made = functools.partial(self._connection, server, max_bytes)
            server.server = Acceptor(server.server, made, self._sheds)  # type: ignore[assignment]
        except OSError as error:
            where = f"{host}:{port}"
            if error.errno == errno.EADDRINUSE:
                raise GoodSpeedError(
                    f"{where} is in use by another program: choose another --port, or 0 for any free one"
                ) from None
            raise GoodSpeedError(f"cannot listen on {where}: {error.strerror or error}") from None
        return server

    def pace_of(self, connection: Connection) -> PeerPace:
        """For a link that shows no token."""
        return self.gate.pace(connection.visitor)

    def arrive(self, connection: Connection) -> Visitor[Connection]:
        """A connection was accepted."""
        visitor = self.gate.arrive(connection, connection.host, self._clock())
        if visitor.refusal is not None:
            self.refused(visitor.refusal.code)
        if self._closed:
            connection.cut_off()
        return visitor

    def heard(self, connection: Connection) -> None:
        """A link brought a message."""
        self.gate.heard(connection.visitor, self._clock())

    def left(self, connection: Connection) -> None:
        """A connection has gone."""
        self.gate.left(connection.visitor, self._clock())

    def barred(self, connection: Connection) -> Response | None:
        """The answer to who may not show a token now."""
        refusal = self.gate.barred(connection.visitor, self._clock())
        return None if refusal is None else self.answered(connection, refusal)

    def failed(self, connection: Connection) -> None:
        """A token was wrong."""
        self.gate.failed(connection.visitor, self._clock())

    def answered(self, connection: Connection, refusal: Refusal) -> Response:
        """What who is refused is answered."""
        logger.info("%s is refused: %s", connection.host, refusal.sentence)
        return later(connection, refusal.status, refusal.sentence, refusal.retry_after_s)

    def hear_out(self) -> None:
        """All links are told goodbye: `Connection.hear_out`."""
        for connection in self.gate.everybody():
            if connection.served is not None:
                connection.hear_out()

    def close(self) -> None:
        """Cut off everybody, and whoever still comes: the listener may have accepted it already."""
        self._closed = True
        for connection in self.gate.everybody():
            connection.cut_off()

    def _sheds(self, host: str) -> bool:
        refusal = self.gate.sheds(host, self._clock())
        if refusal is not None:
            self.refused(refusal.code)
        return refusal is not None

    def _connection(self, server: Server, max_bytes: int, host: str) -> Connection:
        # No agent is a web page: one that a user happens to look at is not to use this machine's server.
        return Connection(
            ServerProtocol(origins=[None], max_size=max_bytes, logger=server.logger),
            server,
            door=self,
            host=host,
            # A ping waits behind whatever is being sent, and a tokenizer takes its time on a slow link.
            ping_timeout=_PING_TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
        )

    def _let_in(self, connection: Connection, _: Request, response: Response) -> Response | None:
        if response.status_code != http.HTTPStatus.SWITCHING_PROTOCOLS or connection.visitor.gone:
            return None
        refusal = self.gate.admit(connection.visitor, self._clock())
        if refusal is None:
            return None
        self.refused(refusal.code)
        return self.answered(connection, refusal)

    def _cut_off(self, connection: Connection) -> None:
        logger.info("%s is cut off: it has not become a link, and others come", connection.host)
        self.refused("displaced")
        connection.cut_off()

    def _make_way(self, connection: Connection) -> None:
        logger.info("%s makes way for another: it was idle", connection.host)
        self.refused("idle")
        if connection.served is None:
            connection.cut_off()
        else:
            goodbye = asyncio.create_task(connection.served.say_goodbye(_IDLE, _IDLE_RETRY_S))
            self._goodbyes.add(goodbye)
            goodbye.add_done_callback(self._goodbyes.discard)


def _allow_files(links: int, pending: int) -> None:
    """Let this process have so many links open, and connections that are none yet, if the system does."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    wanted = links + pending + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard) and hard < wanted:
        logger.warning(
            "max-links is %d and this process may open no more than %d files: raise its limit (ulimit -n; LimitNOFILE "
            "in a unit), or connections fail before they are refused",
            links,
            hard,
        )
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def later(connection: ServerConnection, status: int, sentence: str, retry_after_s: float) -> Response:
    """An answer that says when to come back."""
    response = connection.respond(http.HTTPStatus(status), f"{sentence}: try again in {math.ceil(retry_after_s)} s\n")
    response.headers["Retry-After"] = str(math.ceil(retry_after_s))
    return response
