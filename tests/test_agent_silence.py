"""A server that is linked up to, and owes an answer."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import cast

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection

from goodspeed.errors import LinkLost
from goodspeed.messages import AgentMessage, Draft, Open, Opened, Queued, Verdict
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.channel import Alone, Channel, Event, Relinked
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.silence import Silence
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer, Hook, queueing, saying
from tests.linking import QUICK
from tests.test_agent_moving import NEVER_WAITING, PROMPT, STORY, listening

NOBODY = cast(ClientConnection, None)


def mute(links: int, *, begun: int = 0) -> Hook:
    """On its first links a server takes whatever comes and answers nothing, from so many tokens of a text on."""

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        return server.links <= links and isinstance(message, Open | Draft) and _length(message) >= len(PROMPT) + begun

    return hook


def _length(message: Open | Draft) -> int:
    return message.base if isinstance(message, Draft) else len(message.tokens)


def telling(hook: Hook) -> FakeServer:
    return FakeServer(target=saying(STORY, len(PROMPT)), budget=2, hook=hook)


def agent_of(urls: list[str], folder: Path, backoff: Backoff = QUICK) -> Agent:
    cache = TokenizerCache(folder)
    return Agent(urls, SuffixDrafter(), cache=cache, backoff=backoff, draft_ahead="off", patience_s=0.05)


@pytest.mark.parametrize("begun", [0, 9])
async def test_a_text_to_which_a_server_says_nothing_is_finished_by_the_next(begun: int, tmp_path: Path) -> None:
    first, second = telling(mute(9, begun=begun)), telling(mute(0))
    async with listening(first, second) as urls, agent_of(urls, tmp_path, NEVER_WAITING) as agent:
        assert (await agent.complete(TextRequest(PROMPT))).text == STORY
        assert agent.link.url == second.url
    assert (first.links, second.links) == (1, 1)
    assert len(second.got(Open)[0].tokens) >= len(PROMPT) + begun


async def test_where_there_is_no_other_it_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    server = telling(mute(2))
    async with listening(server) as urls, agent_of(urls, tmp_path) as agent:
        assert (await agent.complete(TextRequest(PROMPT))).text == STORY
    assert server.links == 3
    assert caplog.messages.count(f"{server.url} is there, and says nothing") == 2


async def test_the_others_of_a_link_go_on_where_one_is_given_up(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        return isinstance(message, Open | Draft) and message.stream == 1

    server = telling(hook)
    async with listening(server) as urls, agent_of(urls, tmp_path) as agent:
        with pytest.raises(LinkLost, match="asked 3 times and waited for 0 s at last: ask again later"):
            await agent.complete(TextRequest(PROMPT))
        assert not agent.link.ended
        assert (await agent.complete(TextRequest(PROMPT))).text == STORY
    assert server.links == 4


async def test_a_queue_is_waited_in(tmp_path: Path) -> None:
    server = telling(queueing(2, 1))
    async with listening(server) as urls, agent_of(urls, tmp_path) as agent:
        assert (await agent.complete(TextRequest(PROMPT))).text == STORY


async def heard_in_vain(event: Event) -> bool:
    """Whether a server is left that says nothing more after the event."""
    left = asyncio.Event()

    def leave(connection: ClientConnection) -> bool:
        left.set()
        return True

    channel = Channel(1, NOBODY, lambda stream: None, leave)
    silence = Silence(channel, 0.0)
    channel.put(event, NOBODY)
    assert await silence.broken() == event
    hearing = asyncio.create_task(silence.broken())
    for _ in range(10):
        await asyncio.sleep(0)
    found = left.is_set()
    channel.put(Relinked(), NOBODY)
    assert await hearing == Relinked()
    return found


@pytest.mark.parametrize(
    ("event", "owes"),
    [(Opened(1, 3, 4), True), (Verdict(1, 3, 0, [9], 4), True), (Queued(1, 2), False), (Alone(), False)],
)
async def test_who_has_no_row_and_who_has_no_server_is_owed_nothing(event: Event, owes: bool) -> None:
    assert await heard_in_vain(event) == owes


async def test_a_verdict_makes_the_next_silence_the_first() -> None:
    channel = Channel(1, NOBODY, lambda stream: None, lambda connection: True)
    silence = Silence(channel, 0.0)

    async def left_and_back() -> None:
        hearing = asyncio.create_task(silence.broken())
        for _ in range(10):
            await asyncio.sleep(0)
        channel.relinked(NOBODY)
        assert await hearing == Relinked()

    for _ in range(2):
        await left_and_back()
        await left_and_back()
        channel.put(Verdict(1, 3, 0, [9], 4), NOBODY)
        await silence.broken()
    await left_and_back()
    await left_and_back()
    with pytest.raises(LinkLost):
        await silence.broken()


async def test_without_a_link_it_is_the_links_patience_that_counts() -> None:
    channel = Channel(1, NOBODY, lambda stream: None, lambda connection: False)
    silence = Silence(channel, 0.0)
    for _ in range(5):
        hearing = asyncio.create_task(silence.broken())
        for _ in range(10):
            await asyncio.sleep(0)
        channel.relinked(NOBODY)
        assert await hearing == Relinked()
