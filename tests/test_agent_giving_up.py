"""Texts that their users leave while the link is down, or seems to stand: the server hears of it on the next link."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

from goodspeed.messages import AgentMessage, Close, Draft, Hello, Open, decode_agent
from goodspeed.sampling import SamplingParams
from goodspeed_agent import channels
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.channels import Channels
from goodspeed_agent.drafters import NoDrafter, SuffixDrafter
from goodspeed_agent.hearing import Hearing
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer, saying
from tests.linking import QUICK
from tests.serving import serving
from tests.test_server import PROMPT as REAL_PROMPT

PROMPT = "once upon a time"
STORY = " there was a story"


class Places:
    """A server that holds up its first link at the first draft, and the second link's handshake."""

    def __init__(self) -> None:
        self.server = FakeServer(saying(STORY, len(PROMPT)), budget=2, hook=self._hook)
        self.held, self.lose = asyncio.Event(), asyncio.Event()
        self.back, self.let_in = asyncio.Event(), asyncio.Event()
        self.connections: list[ServerConnection] = []
        self.closed: list[tuple[int, Close]] = []
        """On which link, counted from 1."""

    @contextlib.asynccontextmanager
    async def agent(self, folder: Path) -> AsyncIterator[Agent]:
        cache = TokenizerCache(folder)
        async with (
            asyncio.timeout(60),
            self.server.listening(),
            Agent(self.server.url, SuffixDrafter(), cache=cache, backoff=QUICK, draft_ahead="off") as agent,
        ):
            yield agent

    async def _hook(self, server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Hello):
            self.connections.append(connection)
            if len(self.connections) == 2:
                self.back.set()
                await self.let_in.wait()
        link = self.connections.index(connection) + 1
        if isinstance(message, Close):
            self.closed.append((link, message))
        if isinstance(message, Draft) and link == 1:
            self.held.set()
            await self.lose.wait()
            connection.transport.abort()
            return True
        return False


async def left(writing: asyncio.Task[object]) -> None:
    writing.cancel()
    await asyncio.wait([writing])
    assert writing.cancelled()


async def test_a_text_left_while_the_link_is_down_is_closed_on_the_next(tmp_path: Path) -> None:
    places = Places()
    async with places.agent(tmp_path) as agent:
        writing = asyncio.create_task(agent.complete(TextRequest(PROMPT)))
        places.lose.set()
        await places.back.wait()
        await left(writing)
        places.let_in.set()
        assert (await agent.complete(TextRequest(PROMPT))).text == STORY
    first, second = places.server.got(Open)
    assert places.closed == [(2, Close(first.stream))]
    assert places.server.received.index(Close(first.stream)) < places.server.received.index(second)


async def test_a_text_left_on_a_link_that_only_seems_to_stand_is_closed_on_the_next(tmp_path: Path) -> None:
    places = Places()
    places.let_in.set()
    async with places.agent(tmp_path) as agent:
        writing = asyncio.create_task(agent.complete(TextRequest(PROMPT)))
        await places.held.wait()
        await left(writing)
        places.lose.set()
        await places.back.wait()
        assert (await agent.complete(TextRequest(PROMPT))).text == STORY
    assert (2, Close(places.server.got(Open)[0].stream)) in places.closed


async def test_what_a_server_has_kept_of_a_text_goes_with_it(cache: TokenizerCache) -> None:
    begun = asyncio.Event()
    async with (
        asyncio.timeout(60),
        serving() as (server, address),
        Agent(address, NoDrafter(), cache=cache, backoff=QUICK) as agent,
    ):
        request = TextRequest(REAL_PROMPT, max_new_tokens=80, ignore_eos=True)
        writing = asyncio.create_task(agent.complete(request, lambda piece: begun.set()))
        await begun.wait()
        for link in server._links:
            link.abort()
        while agent.link.up:
            await asyncio.sleep(0)
        await left(writing)
        await agent.complete(TextRequest(REAL_PROMPT, max_new_tokens=4, ignore_eos=True))
        assert agent.link.reconnections == 1
        assert server.snapshot().parked == 0


class Line:
    """A connection that keeps what is sent on it."""

    def __init__(self) -> None:
        self.state = State.OPEN
        self.sent: list[AgentMessage] = []

    async def send(self, frame: bytes) -> None:
        self.sent.append(decode_agent(frame))


def as_connection(line: Line) -> ClientConnection:
    return cast(ClientConnection, line)


async def test_what_was_said_long_ago_is_said_no_more_and_what_was_never_opened_is_not_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(Hearing, "now_s", lambda hearing: now[0])
    hearing, first, second = Hearing(), Line(), Line()
    streams = Channels(hearing)
    hearing.begin(as_connection(first), "ws://there")
    early, late, unsaid, finished = (streams.open(as_connection(first)) for _ in range(4))
    for channel in (early, late, finished):
        await channel.send(Open(channel.stream, [1], 1, SamplingParams(), 8, 4))
    first.sent.clear()
    await early.give_up()
    now[0] = channels._DOUBT_S + 1.0
    await late.give_up()
    await unsaid.give_up()
    finished.close()
    assert first.sent == [Close(early.stream), Close(late.stream)]
    assert len(streams) == 0

    hearing.begin(as_connection(second), "ws://there")
    await streams.say_what_is_given_up()
    assert second.sent == [Close(late.stream)]
