"""`top` against a small server that speaks our messages."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
from rich.console import Console
from websockets.asyncio.server import ServerConnection, serve

from goodspeed.errors import InvalidRequest, LinkLost, MalformedMessage, Refused, VersionMismatch
from goodspeed.messages import (
    PROTOCOL_VERSION,
    Failure,
    Goodbye,
    Hello,
    Opened,
    ServerMessage,
    Snapshot,
    Welcome,
    decode_agent,
    encode,
)
from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor import top
from goodspeed_server.monitor.live import plain_line
from goodspeed_server.monitor.top import snapshots
from tests.monitor_examples import SNAPSHOT, drawn, make_console, written

WELCOME = Welcome(
    protocol=PROTOCOL_VERSION,
    server="test",
    model="tiny-target",
    fingerprint="f",
    tokenizer="t",
    weights="w",
    rule="coupled",
    vocab_size=97,
    max_length=96,
    max_draft=8,
    eos_tokens=[],
)

Handler = Callable[[ServerConnection], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}"


def saying(*messages: ServerMessage | str | bytes) -> Handler:
    async def handler(connection: ServerConnection) -> None:
        frame = await connection.recv()
        assert isinstance(frame, bytes)
        hello = decode_agent(frame)
        assert isinstance(hello, Hello)
        assert hello.role == "monitor"
        for message in messages:
            await connection.send(message if isinstance(message, str | bytes) else encode(message))
        await connection.wait_closed()

    return handler


SHOWN = Snapshot(SNAPSHOT.to_json())


async def test_top_once_as_json_is_the_snapshot() -> None:
    console = make_console(40)
    async with serving(saying(WELCOME, SHOWN)) as url:
        await top(url, once=True, as_json=True, console=console)
    assert written(console).count("\n") == 1
    assert ServerSnapshot.from_json(written(console).encode()) == SNAPSHOT
    assert json.loads(written(console))["agents"][0]["name"] == "edge-1"


async def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with serving(saying(WELCOME, SHOWN)) as url, contextlib.aclosing(snapshots(url)) as arriving:
        assert await anext(arriving) == SNAPSHOT


async def test_top_once_is_a_picture() -> None:
    console = make_console(100)
    async with serving(saying(WELCOME, SHOWN)) as url:
        await top(url, once=True, as_json=False, console=console)
    assert written(console).splitlines() == drawn(SNAPSHOT, 100)


async def test_top_comes_back_when_the_server_does() -> None:
    connections = 0
    second = msgspec.structs.replace(SNAPSHOT, model="after the restart")

    async def handler(connection: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        await connection.recv()
        match connections:
            case 1:
                await connection.send(encode(SHOWN))
                await connection.send(encode(Goodbye("restarting")))
            case 2:
                await connection.send(encode(Snapshot(second.to_json())))
                await connection.wait_closed()

    seen = asyncio.Event()

    class Paper(io.StringIO):
        def write(self, text: str) -> int:
            if "after the restart" in text:
                seen.set()
            return super().write(text)

    console = Console(file=Paper(), width=120)
    async with serving(handler) as url:
        watching = asyncio.create_task(top(url, once=False, as_json=True, console=console))
        await asyncio.wait_for(seen.wait(), 20)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
    assert [json.loads(line)["model"] for line in written(console).splitlines()] == ["tiny-target", "after the restart"]


async def test_top_gives_up_when_the_server_stays_away() -> None:
    console = make_console()
    async with serving(saying(WELCOME, SHOWN, Goodbye("shutting down"))) as url:
        with pytest.raises(LinkLost, match="shutting down"):
            await top(url, once=False, as_json=False, console=console, patience_s=0.0)
    assert written(console).splitlines() == [plain_line(SNAPSHOT)]


async def test_top_says_that_there_is_no_server() -> None:
    async with serving(saying()) as url:
        pass
    with pytest.raises(LinkLost, match="Is goodspeed-server running there"):
        await top(url, once=False, as_json=False, console=make_console())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://127.0.0.1:8000", "ws://", "ws://host:port"])
async def test_top_says_what_an_address_looks_like(url: str) -> None:
    with pytest.raises(InvalidRequest, match="ws://HOST:PORT"):
        await top(url, once=True, as_json=False, console=make_console())


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (Failure("overloaded", "no more monitors"), Refused, "no more monitors"),
        (msgspec.structs.replace(WELCOME, protocol=PROTOCOL_VERSION + 1), VersionMismatch, "has to be upgraded"),
        (Snapshot(b"{}"), MalformedMessage, "not a snapshot"),
        (Opened(1, 1, 1), MalformedMessage, "sends a monitor a Opened"),
        ("hello", MalformedMessage, "no GoodSpeed server"),
        (b"\xc1", MalformedMessage, "not a message"),
    ],
)
async def test_top_reports_what_a_server_should_not_say(
    said: ServerMessage | str | bytes, error: type[Exception], words: str
) -> None:
    async with serving(saying(said)) as url:
        with pytest.raises(error, match=words):
            await top(url, once=False, as_json=False, console=make_console())


async def test_leaving_the_snapshots_closes_the_connection() -> None:
    closed = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        await saying(SHOWN)(connection)
        closed.set()

    async with serving(handler) as url:
        async with contextlib.aclosing(snapshots(url)) as arriving:
            assert await anext(arriving) == SNAPSHOT
        await asyncio.wait_for(closed.wait(), 10)
