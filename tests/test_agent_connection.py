"""A server that takes nothing of what it is sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from goodspeed.messages import AgentMessage, Open, Opened
from goodspeed_agent import connection as connections
from goodspeed_agent.channel import Relinked
from goodspeed_agent.connection import Connection
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer
from tests.linking import linked, opening

LARGE = (2**30,) * 400_000
"""A prompt of 2 MB: a few of them fill what the system keeps of a connection."""


async def test_a_link_to_a_server_that_reads_nothing_is_lost_and_made_again(
    cache: TokenizerCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "TAKING_S", 0.1)
    done = asyncio.Event()

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if not isinstance(message, Open) or server.links > 1:
            return False
        connection.transport.pause_reading()
        await done.wait()
        connection.transport.abort()
        return True

    server = FakeServer(hook=hook)
    async with linked(server, cache) as link:
        one, two = link.channel(), link.channel()
        await one.send(opening(one))
        # Both the texts that send and the link's keeper go on.
        await asyncio.gather(*(two.send(opening(two, LARGE)) for _ in range(16)))
        assert await one.receive() == await two.receive() == Relinked()
        await one.send(opening(one))
        assert await one.receive() == Opened(one.stream, 3, 4)
        done.set()
    assert "the server has taken nothing of what it is sent for 0.1 s" in caplog.messages


class Pipe(asyncio.Transport):
    """Takes what a test has it take."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.connection: Connection | None = None
        self.aborts = 0

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        self.waiting += len(data)
        if self.waiting > 1000 and self.connection is not None and not self.connection.paused:
            self.connection.pause_writing()

    def take(self, size: int) -> None:
        self.waiting -= size
        if not self.waiting and self.connection is not None:
            self.connection.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        self.aborts += 1


class Clock:
    """Rings when a test has it ring, instead of the loop's."""

    def __init__(self) -> None:
        self.due: list[asyncio.TimerHandle] = []

    def call_later(self, _: float, call: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(0.0, call, arguments, asyncio.get_running_loop())
        self.due.append(handle)
        return handle

    def ring(self) -> bool:
        """Whether anything rang."""
        due, self.due = [handle for handle in self.due if not handle.cancelled()], []
        for handle in due:
            handle._run()
        return bool(due)


async def test_whoever_takes_something_now_and_then_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    pipe, clock = Pipe(), Clock()
    connection = pipe.connection = Connection(ClientProtocol(parse_uri("ws://there")))
    connection.connection_made(pipe)
    connection.loop = cast(asyncio.AbstractEventLoop, clock)

    def send(size: int) -> None:
        connection.protocol.writes.append(bytes(size))
        connection.send_data()

    send(900)
    assert not clock.ring()
    send(900)
    for _ in range(3):
        # What others have to say meanwhile is more than what is taken.
        pipe.take(1)
        send(500)
        assert clock.ring()
    assert pipe.aborts == 0
    pipe.take(pipe.waiting)
    assert not clock.ring()

    send(2000)
    send(500)
    assert clock.ring()
    assert pipe.aborts == 1
    assert caplog.messages == ["the server has taken nothing of what it is sent for 60 s"]
