"""One WebSocket link: the handshake, then messages in and out until either side closes.

A reader slower than the queue of what is on its way to it is dropped: its agent resumes from its own transcript.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from goodspeed.errors import GoodSpeedError, InvalidRequest, Overloaded, ProtocolError
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.logs import about
from goodspeed.messages import (
    AgentMessage,
    Close,
    Control,
    Controlled,
    Draft,
    Failure,
    GetTokenizer,
    Goodbye,
    Hello,
    Open,
    Redraft,
    ServerMessage,
    decode_agent,
    encode,
)
from goodspeed_server.allowance import Allowance
from goodspeed_server.control import LiveControl
from goodspeed_server.draining import Drain
from goodspeed_server.greeting import ServedModel, check_role
from goodspeed_server.live import AgentAccount
from goodspeed_server.outgoing import Outgoing
from goodspeed_server.pacing import LinkPace
from goodspeed_server.round_loop import RoundLoop
from goodspeed_server.sessions import Sessions
from goodspeed_server.showing import SNAPSHOT_INTERVAL_S, Showing
from goodspeed_server.telemetry import Telemetry
from goodspeed_server.tokens import Token

__all__ = ["Link"]

logger = logging.getLogger(__name__)

_HANDSHAKE_TIMEOUT_S = 10.0
_FLUSH_TIMEOUT_S = 5.0
_LONGEST_SENTENCE = 1000
_BAD_FRAMES = (CloseCode.PROTOCOL_ERROR, CloseCode.MESSAGE_TOO_BIG)
"""What a link is closed with before anything of a frame has come here."""


class Link:
    """One peer.

    Args:
        connection: the open WebSocket.
        model: what the peer is told.
        rounds: where its streams live.
        telemetry: is told who comes and goes.
        showing: what a monitor is shown.
        control: changes the server while it runs.
        sessions: knows which link an agent is on.
        trusts_everybody: whether who shows no token may change it: nobody but this machine reaches the server.
        token: what the peer showed at the door; None where nobody has to show anything.
        allowance: of that token.
        drain: says whether the server goes away.
        refused: is told the code of everything that is refused.
        heard: is told of every message.
        pace: how much the peer is listened to.
    """

    def __init__(
        self,
        connection: ServerConnection,
        *,
        model: ServedModel,
        rounds: RoundLoop,
        telemetry: Telemetry,
        showing: Showing,
        control: LiveControl,
        sessions: Sessions,
        trusts_everybody: bool,
        drain: Drain,
        token: Token | None = None,
        allowance: Allowance | None = None,
        refused: Callable[[str], None] = lambda code: None,
        heard: Callable[[], None] = lambda: None,
        pace: LinkPace,
    ) -> None:
        self.agent: str | None = None
        """Its name, once it has said it."""
        self._refused = refused
        self._heard = heard
        self._pace = pace
        self._account: AgentAccount | None = None
        self._drain = drain
        self._sent_away = False
        self._token = token
        self._allowance = allowance
        self.connection = connection
        self._model = model
        self._rounds = rounds
        self._telemetry = telemetry
        self._showing = showing
        self._control = control
        self._sessions = sessions
        self._trusts_everybody = trusts_everybody
        self._drafts = False
        self._dropped = False
        self._tokenizer_sent = False
        self._peer = f"{connection.remote_address[0]}:{connection.remote_address[1]}"
        self._outgoing = Outgoing(connection, largest_bytes=len(model.tokenizer_frame))

    @property
    def busy(self) -> bool:
        """Whether it has streams."""
        return self._account is not None and self._account.streams > 0

    def post(self, message: ServerMessage) -> None:
        """Queue a message; a peer that does not read is cut off rather than waited for."""
        if isinstance(message, Failure):
            self._refused(message.code)
            self._pace.answered(self._rounds.now())
        self._post_frame(encode(message))

    def abort(self) -> None:
        """Cut the peer off without a word."""
        self._dropped = True
        self.connection.transport.abort()

    def expel(self) -> None:
        """Cut the peer off, and keep nothing for it."""
        self._rounds.drop(self)
        self.abort()

    def supersede(self) -> None:
        """The agent is back on another link, where it goes on with what is parked here."""
        with about(agent=self.agent):
            logger.info("link %s ends: its agent is back on another", self._peer)
        self._rounds.park(self)
        self.abort()

    async def run(self) -> None:
        """Serve the peer until the link is closed; never raises what a peer can cause."""
        with contextlib.ExitStack() as ids:
            await self._run(ids)

    async def _run(self, ids: contextlib.ExitStack) -> None:
        try:
            hello = await self._greet()
            if hello.role == "monitor":
                await self._show()
            elif hello.role == "control":
                await self._obey(hello)
            else:
                self.agent = hello.name
                ids.enter_context(about(agent=hello.name))
                await self._serve_agent(hello)
        except ConnectionClosed as closed:
            logger.info("link %s is gone: %s", self._peer, closed)
            if closed.sent is not None and closed.sent.code in _BAD_FRAMES and not closed.rcvd_then_sent:
                self._refused(CloseCode(closed.sent.code).name.lower())
        except ProtocolError as error:
            await self._close_with(error, CloseCode.PROTOCOL_ERROR)
        except GoodSpeedError as error:
            await self._close_with(error, CloseCode.POLICY_VIOLATION)
        except Exception:
            # A defect of ours: the peer is told so, and the operator sees where it is.
            logger.exception("link %s is closed for a defect in the server", self._peer)
            await self._close_with(GoodSpeedError("the server failed; its log says where"), CloseCode.INTERNAL_ERROR)
        finally:
            self._outgoing.stop()

    def send_away(self, reason: str, retry_after_s: float) -> None:
        """Tell an agent to go elsewhere; until the link is closed it may stay, and end what it has begun."""
        if self._drafts and not self._sent_away:
            self._sent_away = True
            self.post(Goodbye(reason, retry_after_s))

    async def say_goodbye(self, reason: str, retry_after_s: float | None = None) -> None:
        """Send what is queued, then a `Goodbye` if there was none yet, and close."""
        if not self._sent_away:
            self.post(Goodbye(reason, retry_after_s))
        await self._flush_and_close(CloseCode.GOING_AWAY, reason)

    def _post_frame(self, frame: bytes) -> None:
        if self._dropped or self._outgoing.put(frame):
            return
        with about(agent=self.agent):  # whoever posts
            logger.warning("link %s reads too slowly and is dropped", self._peer)
        self._refused("slow_reader")
        self.abort()

    async def _greet(self) -> Hello:
        try:
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT_S):
                hello = await self._receive()
        except TimeoutError:
            raise ProtocolError(f"no Hello came within {_HANDSHAKE_TIMEOUT_S:g} s") from None
        if not isinstance(hello, Hello):
            raise ProtocolError(f"the first message is a {type(hello).__name__}: it must be a Hello")
        check_role(hello, self._token, trusts_everybody=self._trusts_everybody)
        if hello.role == "agent":  # whoever looks, or steers, may do so to the end
            self._drain.check()
        self._model.check_fingerprint(hello)
        self.welcome()
        self._drafts = hello.role == "agent"
        return hello

    def announce_rounds(self) -> None:
        """Tell an agent that its drafts are waited for from now on, or no longer are."""
        if self._drafts:
            self.welcome()

    def welcome(self) -> None:
        """Say what this server is."""
        self.post(self._model.welcome(waits=self._rounds.waits))

    async def _serve_agent(self, hello: Hello) -> None:
        # Of who shows no token an address is known, and what it calls itself.
        holder = f"{hello.name} {self.connection.remote_address[0]}"
        account = AgentAccount(
            hello.name, hello.drafter, PRIOR_ALPHA, allowance=self._allowance, hearing=self._pace, holder=holder
        )
        self._account = account
        if self._token is not None:
            account.weight, account.holder = self._token.weight, f"token {self._token.name}"
        if hello.session:
            account.session = ("" if self._token is None else self._token.name, hello.session)
            if not self._sessions.begin(account.session, hello.attempt, self):
                raise InvalidRequest("the agent is on a newer link, and this one is not needed", code="superseded")
        self._telemetry.joined(account, self._rounds.now())
        self._control.joined(account)
        logger.info("agent %s (%s) has linked up from %s", hello.name, hello.drafter, self._peer)
        leave = self._rounds.drop
        try:
            while not self._dropped:
                message = await self._receive()
                # What was read before the link was cut off may still come; its streams are another link's by now.
                if not self._dropped:
                    self._handle(account, message)
            leave = self._rounds.park
        except ConnectionClosed as closed:
            if not _left_in_order(closed):
                leave = self._rounds.park
            raise
        finally:
            leave(self)
            if account.session is not None:
                self._sessions.end(account.session, self)
            self._telemetry.left(account)
            self._control.left(account)

    async def _obey(self, hello: Hello) -> None:
        shown = "without a token" if self._token is None else f"with the token {self._token.name!r}"
        # Also for the log, where what it asks for cannot be.
        self._peer = who = f"{hello.name!r} from {self._peer} {shown}"
        while not self._dropped:
            message = await self._receive()
            if not isinstance(message, Control):
                raise ProtocolError(f"a {type(message).__name__} on a link that controls the server")
            self.post(Controlled((await self._control.obey(message.change, who)).to_json()))

    def _handle(self, account: AgentAccount, message: AgentMessage) -> None:
        stream = _stream_of(message)
        with about(stream=stream):
            try:
                self._take(account, message)
            except (Overloaded, InvalidRequest) as error:
                # One stream's trouble: the link, and every other stream on it, goes on.
                logger.info("refused: %s", error)
                self._refuse(error, stream)

    def _take(self, account: AgentAccount, message: AgentMessage) -> None:
        match message:
            case Draft():
                account.draft_came(len(message.tokens))
                self._rounds.draft(self, message)
            case Open():
                self._drain.check()
                self._rounds.open(self, account, message)
            case Close():
                self._rounds.close(self, message.stream, account.session)
            case Redraft():
                self._model.check_fingerprint(message)
                self._rounds.redraft(self, account, message.drafter)
                logger.info("agent %s drafts with %s from now on", account.name, message.drafter)
            case GetTokenizer():
                if self._tokenizer_sent:
                    raise ProtocolError("the tokenizer was asked for twice on one link")
                self._tokenizer_sent = True
                self._post_frame(self._model.tokenizer_frame)
            case Hello():
                raise ProtocolError("a second Hello on one link")
            case Control():
                raise ProtocolError("an agent's link does not control the server: say so in the Hello")

    def _refuse(self, error: GoodSpeedError, stream: int | None = None) -> None:
        retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else None
        # A sentence may quote what the peer sent, and may not be longer than the peer accepts.
        self.post(Failure(error.code, str(error)[:_LONGEST_SENTENCE], stream, retry_after_s))

    async def _show(self) -> None:
        # Nothing that it might send is kept.
        reading = asyncio.create_task(self.connection.recv())
        try:
            while not reading.done():
                if self._outgoing.empty:
                    self._post_frame(await self._showing.frame())
                await asyncio.wait([reading], timeout=SNAPSHOT_INTERVAL_S)
            reading.result()
            raise ProtocolError("a monitor's link shows, and takes no message")
        finally:
            reading.cancel()

    async def _receive(self) -> AgentMessage:
        frame = await self.connection.recv()
        self._heard()
        if len(frame) > self._model.max_frame_bytes:
            raise ProtocolError(
                f"a frame of {len(frame)} bytes came and {self._model.max_frame_bytes} are the most this server takes: "
                f"a stream holds {self._model.max_length} tokens, prompt and text together"
            )
        return decode_agent(frame)

    async def _close_with(self, error: GoodSpeedError, close_code: CloseCode) -> None:
        logger.warning("link %s is closed: %s", self._peer, error)
        self._refuse(error)
        await self._flush_and_close(close_code, error.code)

    async def _flush_and_close(self, close_code: CloseCode, reason: str) -> None:
        await self._outgoing.flush(_FLUSH_TIMEOUT_S)
        await self.connection.close(close_code, reason)


def _left_in_order(closed: ConnectionClosed) -> bool:
    """Whether the peer itself said that it goes; whoever does, comes back for nothing."""
    if closed.rcvd is None or not closed.rcvd_then_sent:
        return False
    return closed.rcvd.code in (CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY)


def _stream_of(message: AgentMessage) -> int | None:
    return message.stream if isinstance(message, Open | Draft | Close) else None
