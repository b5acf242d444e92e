"""`goodspeed-server top URL`: another server's monitor, from afar."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import platform
import random
import signal
import ssl
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Literal

from rich.console import Console
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

import goodspeed
from goodspeed.addresses import check_url, proxy_for
from goodspeed.credentials import NOBODY, ROLE_HEADER, Credentials, hint_of_handshake, refused_by_status, untrusted
from goodspeed.errors import LinkLost, MalformedMessage, Refused
from goodspeed.messages import (
    MAX_SERVER_FRAME_BYTES,
    PROTOCOL_VERSION,
    Failure,
    Goodbye,
    Hello,
    Snapshot,
    Welcome,
    decode_server,
    encode,
)
from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor.live import Show, print_raw, showing
from goodspeed_server.monitor.view import draw

__all__ = ["connected", "fetch_snapshot", "snapshots", "top"]

_OPEN_TIMEOUT_S = 10.0
_SILENCE_S = 10.0
"""A server sends four snapshots a second; one that is silent for so long is taken for gone."""
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 4.0


async def top(
    url: str,
    *,
    once: bool,
    as_json: bool,
    credentials: Credentials = NOBODY,
    console: Console | None = None,
    patience_s: float = 30.0,
) -> None:
    """Show a server's monitor until `q` or Ctrl-C.

    Args:
        url: its address, `ws://HOST:PORT` or `wss://HOST:PORT`.
        once: show one snapshot and return.
        as_json: print snapshots as JSON, one on a line, instead of drawing them.
        credentials: to be let in with.
        console: where to draw; standard output if None.
        patience_s: how long to look for a server that was there and is gone.

    Raises:
        InvalidRequest: the address is none.
        LinkLost: there is no server at the address, or it went away and did not come back in time.
        Refused: the server does not want this monitor.
        ProtocolError: it is no GoodSpeed server, or one of another version.
    """
    console = console or Console()
    if once:
        _show_once(console, await fetch_snapshot(url, credentials), as_json=as_json)
        return
    stop = asyncio.Event()
    shown = _showing_json(console) if as_json else showing(console, keyboard=sys.stdin, on_quit=stop.set)
    with _quit_on_signal(stop):
        await _until(stop, _watch(_frames(url, credentials, patience_s), shown))


async def fetch_snapshot(url: str, credentials: Credentials = NOBODY) -> ServerSnapshot:
    """Look at a server once; raises what `snapshots` raises."""
    async with contextlib.aclosing(snapshots(url, credentials)) as arriving:
        return await anext(arriving)


async def snapshots(url: str, credentials: Credentials = NOBODY) -> AsyncGenerator[ServerSnapshot]:
    """Everything one connection to a server brings, until it ends.

    Raises:
        LinkLost: the connection cannot be made, or has ended.
        (and what `top` raises)
    """
    async with connected(url, credentials, "monitor") as connection:
        await connection.send(
            encode(
                Hello(
                    protocol=PROTOCOL_VERSION,
                    role="monitor",
                    name=platform.node() or "monitor",
                    software=f"goodspeed {goodspeed.__version__}",
                )
            )
        )
        while True:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    frame = await connection.recv()
            except TimeoutError:
                raise LinkLost(f"{url} has been silent for {_SILENCE_S:g} s") from None
            except ConnectionClosed:
                raise LinkLost(f"{url} has closed the connection: is the server still running?") from None
            if isinstance(frame, str):
                raise MalformedMessage(f"{url} speaks text: it is no GoodSpeed server")
            match decode_server(frame):
                case Snapshot(snapshot):
                    yield ServerSnapshot.from_json(snapshot)
                case Failure(code=code, message=message):
                    raise Refused(f"{url} refuses: {message}", code=code)
                case Goodbye(reason=reason):
                    raise LinkLost(f"{url} is going away: {reason}")
                case Welcome():
                    pass
                case other:
                    raise MalformedMessage(f"{url} sends a monitor a {type(other).__name__}")


@contextlib.asynccontextmanager
async def connected(
    url: str, credentials: Credentials, role: Literal["monitor", "control"]
) -> AsyncIterator[ClientConnection]:
    """A connection to a server, before anything is said on it; raises what `top` raises."""
    check_url(url)
    try:
        connection = await connect(
            url,
            compression=None,
            max_size=MAX_SERVER_FRAME_BYTES,
            open_timeout=_OPEN_TIMEOUT_S,
            proxy=proxy_for(url),
            ssl=credentials.tls(url),
            additional_headers={**credentials.headers(url), ROLE_HEADER: role},
        )
    except InvalidStatus as error:
        raise refused_by_status(url, error.response) from None
    except InvalidHandshake as error:
        hint = hint_of_handshake(url, credentials, error)
        raise LinkLost(f"{url} answers, but not as a GoodSpeed server: {error}{hint}") from None
    except ssl.SSLCertVerificationError as error:
        raise Refused(untrusted(url, error), code="untrusted") from None
    except (OSError, TimeoutError) as error:
        reason = f"{str(error) or 'no answer'}{hint_of_handshake(url, credentials, error)}"
        raise LinkLost(f"no server can be reached at {url}: {reason}. Is goodspeed-server running there?") from None
    try:
        yield connection
    finally:
        await connection.close()


async def _watch(coming: AsyncGenerator[tuple[ServerSnapshot, str]], shown: AbstractAsyncContextManager[Show]) -> None:
    async with contextlib.aclosing(coming) as frames:
        # The first one before the screen is taken: an error about the address belongs on the screen as it was.
        snapshot, notice = await anext(frames)
        async with shown as show:
            await show(snapshot, notice)
            async for snapshot, notice in frames:
                await show(snapshot, notice)


async def _frames(url: str, credentials: Credentials, patience_s: float) -> AsyncGenerator[tuple[ServerSnapshot, str]]:
    """Every snapshot with an empty notice, and between two connections the last one with what is going on."""
    last: ServerSnapshot | None = None
    lost_at = pause_s = 0.0
    clock = asyncio.get_running_loop().time
    while True:
        try:
            async with contextlib.aclosing(snapshots(url, credentials)) as arriving:
                async for last in arriving:
                    pause_s = 0.0
                    yield last, ""
        except LinkLost:
            if pause_s == 0.0:
                lost_at, pause_s = clock(), _FIRST_PAUSE_S
            if last is None or clock() - lost_at >= patience_s:
                raise
        if last is not None:
            yield last, "connection lost, trying again"
        # Jittered, so that the monitors of one server do not all come back at the same moment.
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _show_once(console: Console, snapshot: ServerSnapshot, *, as_json: bool) -> None:
    if as_json:
        print_raw(console, snapshot.to_json().decode())
    else:
        console.print(draw(snapshot))


@contextlib.asynccontextmanager
async def _showing_json(console: Console) -> AsyncIterator[Show]:
    async def show(snapshot: ServerSnapshot, notice: str) -> None:
        if not notice:
            print_raw(console, snapshot.to_json().decode())

    yield show


async def _until(stop: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Work until `stop` is set, or until the work ends by itself."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


@contextlib.contextmanager
def _quit_on_signal(stop: asyncio.Event) -> Iterator[None]:
    """Ctrl-C ends the monitor in order, and `kill` or a hangup the process: after the screen has been given back."""
    loop = asyncio.get_running_loop()
    killed_by: list[signal.Signals] = []

    def kill(number: signal.Signals) -> None:
        killed_by.append(number)
        stop.set()

    handlers: dict[signal.Signals, Callable[[], None]] = {signal.SIGINT: stop.set}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            # Who started it with nohup wants it to stay.
            if signal.getsignal(number) is not signal.SIG_IGN:
                handlers[number] = functools.partial(kill, number)
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        # Not on Windows, nor off the main thread; there KeyboardInterrupt does the same, less quietly.
        yield
        return
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
        for number in killed_by[:1]:
            signal.raise_signal(number)
