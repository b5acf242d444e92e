"""The other end of live control: one change of a server, from wherever its operator is."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import platform
from collections.abc import AsyncIterator

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

import goodspeed
from goodspeed.control import Change, ControlState
from goodspeed.credentials import NOBODY, Credentials
from goodspeed.errors import GoodSpeedError, InvalidRequest, LinkLost, MalformedMessage, Refused
from goodspeed.messages import (
    PROTOCOL_VERSION,
    Control,
    Controlled,
    Failure,
    Goodbye,
    Hello,
    ServerMessage,
    Welcome,
    decode_server,
    encode,
)
from goodspeed_server.monitor.top import connected

__all__ = ["Controls", "controlling", "drained"]

_SILENCE_S = 60.0
"""A change waits for the pass that runs, and with a long prompt in it that takes its time."""
_LOOK_EVERY_S = 0.25


class Controls:
    """A link that controls a server. Made by `controlling`.

    Args:
        url: the server's address, for what is said of it.
        connection: to the server, and greeted.
    """

    def __init__(self, url: str, connection: ClientConnection) -> None:
        self._url = url
        self._connection = connection

    async def ask(self, change: Change | None = None) -> ControlState:
        """Make a change, or only ask; says what is in force then.

        Raises:
            InvalidRequest: it cannot be; nothing has changed.
            GoodSpeedError: as `controlling`.
        """
        if change is not None:
            change.validate()
        await _send(self._connection, Control(change))
        match await _answer(self._url, self._connection):
            case Controlled(state):
                return ControlState.from_json(state)
            case other:
                raise MalformedMessage(f"{self._url} answers a change with a {type(other).__name__}")


@contextlib.asynccontextmanager
async def controlling(url: str, credentials: Credentials = NOBODY) -> AsyncIterator[Controls]:
    """A link that controls a server.

    Raises:
        InvalidRequest: the address is none.
        LinkLost: there is no server at the address, or it went away.
        Refused: it does not take orders from here, or is too old to take any.
        ProtocolError: it is no GoodSpeed server, or one of another version.
    """
    async with connected(url, credentials, "control") as connection:
        hello = Hello(PROTOCOL_VERSION, "control", _operator(), software=f"goodspeed {goodspeed.__version__}")
        await _send(connection, hello)
        try:
            answer = await _answer(url, connection)
        except Refused as error:
            if error.code != MalformedMessage.code:
                raise
            raise Refused(
                f"{url} runs a goodspeed that is too old to be changed while it runs: upgrade it, or restart it with "
                "other settings",
                code="too_old",
            ) from None
        if not isinstance(answer, Welcome):
            raise MalformedMessage(f"{url} answers a greeting with a {type(answer).__name__}")
        yield Controls(url, connection)


async def drained(controls: Controls, agent: str) -> ControlState:
    """Wait until an agent that is drained has no more streams; says what is in force then.

    Raises:
        GoodSpeedError: it is served again, or the server went away.
    """
    while True:
        state = await controls.ask()
        seen = state.agent(agent)
        if seen is None or seen.service == "served":
            raise GoodSpeedError(f"somebody has undrained {agent!r} meanwhile, and it begins texts again")
        if seen.streams == 0:
            return state
        # The server tells nobody that a stream has ended: it is asked as often as it draws for a monitor.
        await asyncio.sleep(_LOOK_EVERY_S)


async def _send(connection: ClientConnection, message: Hello | Control) -> None:
    # One that is closed says why when it is read from.
    with contextlib.suppress(ConnectionClosed):
        await connection.send(encode(message))


async def _answer(url: str, connection: ClientConnection) -> ServerMessage:
    try:
        async with asyncio.timeout(_SILENCE_S):
            frame = await connection.recv()
    except TimeoutError:
        raise LinkLost(f"{url} has not answered for {_SILENCE_S:g} s; look with ctl show what is in force") from None
    except ConnectionClosed:
        raise LinkLost(f"{url} has closed the connection: is the server still running?") from None
    match decode_server(frame):
        case Failure(code=InvalidRequest.code, message=message):
            raise InvalidRequest(message)
        case Failure(code=code, message=message):
            raise Refused(f"{url} refuses: {message}", code=code)
        case Goodbye(reason=reason):
            raise LinkLost(f"{url} is going away: {reason}")
        case message:
            return message


def _operator() -> str:
    """Who somebody is on this machine, for the server's log."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "somebody"
    return f"{user}@{platform.node() or 'a machine'}"
