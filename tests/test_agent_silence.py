"""A server that is linked up to, and owes an answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

from goodspeed.errors import LinkLost
from goodspeed.messages import AgentMessage, Draft, Failure, Open, Opened, Queued, Verdict, Welcome
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.channel import Alone, Event, Relinked
from goodspeed_agent.channels import Channels
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.hearing import Hearing
from goodspeed_agent.silence import PATIENCE_S, Silence
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer, Hook, saying
from tests.linking import QUICK
from tests.test_agent_moving import NEVER_WAITING, PROMPT, STORY, listening

LONG_S = 100 * PATIENCE_S


class Hourglass:
    """The time in which servers are silent: it stands, but where a test turns it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._waiting: dict[asyncio.Timeout, float] = {}
        self._somebody = asyncio.Event()

    @contextlib.asynccontextmanager
    async def until(self, when_s: float) -> AsyncIterator[None]:
        async with asyncio.timeout(None) as limit:
            self._waiting[limit] = when_s
            self._somebody.set()
            try:
                yield
            finally:
                del self._waiting[limit]
                if not self._waiting:
                    self._somebody.clear()

    def turn(self, seconds: float) -> None:
        """So much time passes."""
        self.now_s += seconds
        for limit, when_s in self._waiting.items():
            if when_s <= self.now_s:
                limit.reschedule(0.0)

    async def turn_on_somebody(self, seconds: float) -> None:
        """The same, once a stream waits."""
        await self._somebody.wait()
        self.turn(seconds)


@pytest.fixture
def glass(monkeypatch: pytest.MonkeyPatch) -> Hourglass:
    glass = Hourglass()
    monkeypatch.setattr(Hearing, "now_s", lambda hearing: glass.now_s)
    monkeypatch.setattr(Hearing, "until", lambda hearing, when_s: glass.until(when_s))
    return glass


def mute(glass: Hourglass, links: int, *, begun: int = 0) -> Hook:
    """On its first links a server takes whatever comes and answers nothing, from so many tokens of a text on."""

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if server.links > links or not isinstance(message, Open | Draft) or _length(message) < len(PROMPT) + begun:
            return False
        await glass.turn_on_somebody(LONG_S)
        return True

    return hook


def _length(message: Open | Draft) -> int:
    return message.base if isinstance(message, Draft) else len(message.tokens)


def telling(hook: Hook | None = None) -> FakeServer:
    return FakeServer(target=saying(STORY, len(PROMPT)), budget=2, hook=hook)


def agent_of(urls: list[str], folder: Path, backoff: Backoff = QUICK) -> Agent:
    return Agent(urls, SuffixDrafter(), cache=TokenizerCache(folder), backoff=backoff, draft_ahead="off")


@pytest.mark.parametrize("begun", [0, 9])
async def test_a_text_to_which_a_server_says_nothing_is_finished_by_the_next(
    begun: int, glass: Hourglass, tmp_path: Path
) -> None:
    first, second = telling(mute(glass, 9, begun=begun)), telling()
    async with listening(first, second) as urls, agent_of(urls, tmp_path, NEVER_WAITING) as agent:
        assert (await agent.complete(TextRequest(PROMPT))).text == STORY
        assert agent.link.url == second.url
    assert (first.links, second.links) == (1, 1)
    assert len(second.got(Open)[0].tokens) >= len(PROMPT) + begun


async def test_where_there_is_no_other_it_is_asked_again(
    glass: Hourglass, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server = telling(mute(glass, 2))
    async with listening(server) as urls, agent_of(urls, tmp_path) as agent:
        assert (await agent.complete(TextRequest(PROMPT))).text == STORY
    assert server.links == 3
    assert caplog.messages.count(f"{server.url} is there, and says nothing") == 2


async def test_a_text_that_is_given_up_leaves_the_link_standing(glass: Hourglass, tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if not isinstance(message, Open | Draft) or message.stream != 1:
            return False
        await glass.turn_on_somebody(LONG_S)
        return True

    server = telling(hook)
    async with listening(server) as urls, agent_of(urls, tmp_path) as agent:
        with pytest.raises(LinkLost, match="asked 3 times and waited for 1200 s at last: ask again later"):
            await agent.complete(TextRequest(PROMPT))
        assert agent.link.up
        assert (await agent.complete(TextRequest(PROMPT))).text == STORY
    assert server.links == 3


async def test_a_queue_is_waited_in(glass: Hourglass, tmp_path: Path) -> None:
    places: list[int] = []

    def stand(place: int) -> None:
        places.append(place)
        glass.turn(LONG_S)
        if place == 1:
            moved.set()

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open):
            await server.send(connection, Queued(message.stream, 2), Queued(message.stream, 1))
            await moved.wait()
            # Whoever was owed an answer has run out of patience by then.
            glass.turn(LONG_S)
        return False

    moved, server = asyncio.Event(), telling(hook)
    async with listening(server) as urls, agent_of(urls, tmp_path) as agent:
        assert (await agent.complete(TextRequest(PROMPT), on_queued=stand)).text == STORY
    assert places == [2, 1]
    assert server.links == 1


async def test_a_text_whose_prompt_takes_long_is_waited_for_while_another_is_written(
    glass: Hourglass, tmp_path: Path
) -> None:
    verdicts = 0

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        nonlocal verdicts
        if isinstance(message, Draft) and message.stream == 2:
            verdicts += 1
            glass.turn(0.9 * PATIENCE_S)
        if isinstance(message, Open) and message.stream == 1:
            first.set_result(message)
            return True
        return False

    server = telling(hook)
    async with listening(server) as urls, agent_of(urls, tmp_path) as agent:
        first: asyncio.Future[Open] = asyncio.get_running_loop().create_future()
        slow = asyncio.create_task(agent.complete(TextRequest(PROMPT)))
        await first
        assert (await agent.complete(TextRequest(PROMPT))).text == STORY
        slow.cancel()
        await asyncio.wait([slow])
    assert verdicts > 3
    assert server.links == 1


class Line:
    """A connection that looks open after it was broken off, until its loss is noticed."""

    def __init__(self) -> None:
        self.state = State.OPEN
        self.transport = self
        self.broken_off = 0

    def abort(self) -> None:
        self.broken_off += 1


class World:
    """A link's streams without the link."""

    def __init__(self, glass: Hourglass) -> None:
        self.glass = glass
        self.hearing = Hearing()
        self.channels = Channels(self.hearing)
        self.line = Line()
        self.hearing.begin(self.connection, "ws://there")

    @property
    def connection(self) -> ClientConnection:
        return cast(ClientConnection, self.line)

    def silence(self) -> Silence:
        """Of one more stream."""
        return Silence(self.channels.open(self.connection), PATIENCE_S)

    def say(self, message: Queued | Opened | Verdict | Failure) -> None:
        assert message.stream is not None
        self.channels.put(message, message.stream, self.connection)

    def link_up_again(self) -> None:
        silent, self.line = self.hearing.left, Line()
        self.hearing.begin(self.connection, "ws://there")
        self.channels.relinked(self.connection, silent=silent)

    def broken_off(self) -> int:
        """How often the connection was."""
        return self.line.broken_off

    async def pass_time(self, seconds: float) -> None:
        self.glass.turn(seconds)
        await turns()


async def turns() -> None:
    """Let every task do what it can do."""
    for _ in range(10):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def hearing(*silences: Silence) -> AsyncIterator[list[asyncio.Task[Event]]]:
    """Streams that wait."""
    tasks = [asyncio.create_task(silence.broken()) for silence in silences]
    await turns()
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


WELCOME = FakeServer().welcome()


@pytest.mark.parametrize(
    ("event", "owes"),
    [
        (Opened(1, 3, 4), True),
        (Verdict(1, 3, 0, [9], 4), True),
        (Failure("invalid_q", "bad", 1), True),
        (Queued(1, 2), False),
        (Alone(), False),
    ],
)
@pytest.mark.parametrize("welcomed", [False, True])
async def test_who_has_no_row_and_who_has_no_server_is_owed_nothing(
    event: Event, owes: bool, welcomed: bool, glass: Hourglass
) -> None:
    world = World(glass)
    channel = world.channels.open(world.connection)
    silence = Silence(channel, PATIENCE_S)
    channel.put(event, world.connection)
    assert await silence.broken() == event
    if welcomed:
        # Said to all links alike, when the server's operator changes something.
        world.channels.put_all(WELCOME, world.connection)
        assert isinstance(await silence.broken(), Welcome)
    async with hearing(silence):
        await world.pass_time(PATIENCE_S)
        assert world.hearing.left == owes


async def test_a_welcome_is_no_answer(glass: Hourglass) -> None:
    world = World(glass)
    silence = world.silence()
    async with hearing(silence) as (waiting,):
        await world.pass_time(0.9 * PATIENCE_S)
        world.channels.put_all(WELCOME, world.connection)
        assert isinstance(await waiting, Welcome)
    async with hearing(silence):
        await world.pass_time(0.1 * PATIENCE_S)
        assert world.hearing.left


@pytest.mark.parametrize(
    "message", [Queued(2, 1), Opened(2, 3, 4), Verdict(2, 3, 0, [9], 4), Failure("invalid_q", "bad", 2)]
)
async def test_a_server_that_tells_any_stream_anything_is_not_silent(
    message: Queued | Opened | Verdict | Failure, glass: Hourglass
) -> None:
    world = World(glass)
    async with hearing(world.silence()):
        for _ in range(5):
            await world.pass_time(0.9 * PATIENCE_S)
            world.say(message)
        await world.pass_time(0.9 * PATIENCE_S)
        assert not world.broken_off()
        await world.pass_time(0.1 * PATIENCE_S)
        assert world.broken_off() == 1


async def test_streams_that_wait_together_leave_a_server_once(
    glass: Hourglass, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(glass)
    silences = [world.silence(), world.silence()]
    for patience_s in (PATIENCE_S, 2 * PATIENCE_S):
        async with hearing(*silences) as waiting:
            await world.pass_time(0.9 * patience_s)
            assert not world.broken_off()
            await world.pass_time(0.1 * patience_s)
            assert world.broken_off() == 1
            assert not world.hearing.stands(world.connection)
            world.link_up_again()
            assert await asyncio.gather(*waiting) == [Relinked(silent=True)] * 2
    assert caplog.messages == ["ws://there is there, and says nothing"] * 2
    async with hearing(*silences) as waiting:
        await world.pass_time(4 * PATIENCE_S)
        assert [type(task.exception()) for task in waiting] == [LinkLost] * 2
    assert not world.broken_off()


async def test_who_came_later_lets_a_prompt_be_read_as_long_as_the_others_do(glass: Hourglass) -> None:
    world = World(glass)
    async with hearing(world.silence()):
        await world.pass_time(PATIENCE_S)
        world.link_up_again()
    async with hearing(world.silence()):
        await world.pass_time(1.9 * PATIENCE_S)
        assert not world.broken_off()


async def test_a_verdict_makes_the_next_silence_the_first(glass: Hourglass) -> None:
    world = World(glass)
    silence = world.silence()

    async def left_and_back(patience_s: float) -> None:
        async with hearing(silence) as (waiting,):
            await world.pass_time(patience_s)
            assert world.broken_off()
            world.link_up_again()
            assert await waiting == Relinked(silent=True)

    for _ in range(2):
        await left_and_back(PATIENCE_S)
        await left_and_back(2 * PATIENCE_S)
        world.say(Verdict(1, 3, 0, [9], 4))
        await silence.broken()
    await left_and_back(PATIENCE_S)
    await left_and_back(2 * PATIENCE_S)
    async with hearing(silence) as (waiting,):
        await world.pass_time(4 * PATIENCE_S)
        with pytest.raises(LinkLost):
            await waiting


async def test_without_a_link_it_is_the_links_patience_that_counts(glass: Hourglass) -> None:
    world = World(glass)
    silence = world.silence()
    for _ in range(5):
        async with hearing(silence) as (waiting,):
            world.line.state = State.CLOSED
            await world.pass_time(LONG_S)
            assert not world.broken_off()
            world.link_up_again()
            assert await waiting == Relinked()
