"""An agent among several servers: who is tried, who is left, and what its streams notice of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from goodspeed.errors import GoodSpeedError, LinkLost, Refused, TargetChanged
from goodspeed.messages import AgentMessage, Draft, Failure, Goodbye, Hello, Open, Opened, Verdict
from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.channel import Relinked
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.itinerary import Itinerary
from goodspeed_agent.link import Link
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer, Hook, byte_tokenizer, refusing, saying
from tests.linking import HELLO, NEVER_AGAIN, QUICK, opening
from tests.serving import serving

PROMPT = "once upon a time"
STORY = " there was a naïve 😀 and there was a naïve 😀."
NEVER_WAITING = Backoff(first_s=3600.0, longest_s=3600.0, give_up_after_s=10800.0)
"""A test that waits with it does not end, nor does one in which a server wants an hour for itself."""


@contextlib.asynccontextmanager
async def listening(*servers: FakeServer) -> AsyncIterator[list[str]]:
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server.listening())
        yield [server.url for server in servers]


async def nobodys_address() -> str:
    """Where nothing listens."""
    server = FakeServer()
    async with server.listening():
        pass
    return server.url


def telling(**options: Any) -> FakeServer:
    return FakeServer(target=saying(STORY, len(PROMPT)), **options)


def going_away(upon: type[AgentMessage], retry_after_s: float | None = None, *, then_closing: bool) -> Hook:
    """A server that says goodbye when it gets a message of that kind for the first time, and answers it."""
    said = False

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        nonlocal said
        if isinstance(message, upon) and not said:
            said = True
            await server.send(connection, Goodbye("upgrade", retry_after_s))
            if then_closing:
                await connection.close()
                return True
        return False

    return hook


async def test_the_first_that_is_there_is_linked_to_without_a_wait(cache: TokenizerCache) -> None:
    second, third = FakeServer(), FakeServer()
    nobody = await nobodys_address()
    async with listening(second, third) as urls, Link([nobody, *urls], HELLO, cache, NEVER_WAITING) as link:
        assert link.url == second.url
        assert link.up
    assert (second.links, third.links) == (1, 0)


async def test_a_text_is_finished_by_another_server_when_its_own_dies(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Draft) and message.base > len(PROMPT) + 10:
            listener.close(close_connections=False)
            connection.transport.abort()
            return True
        return False

    first, second = telling(budget=2, hook=hook), telling(budget=2)
    async with asyncio.timeout(60), serve(first._link, "127.0.0.1", 0, compression=None) as listener:
        first.url = f"ws://127.0.0.1:{next(iter(listener.sockets)).getsockname()[1]}"
        async with listening(second) as (other,):
            cache = TokenizerCache(tmp_path)
            async with Agent([first.url, other], SuffixDrafter(), cache=cache, backoff=NEVER_WAITING) as agent:
                completion = await agent.complete(TextRequest(PROMPT))
                assert agent.link.url == other
    assert completion.text == STORY
    (resumed,) = second.got(Open)
    assert len(resumed.tokens) > len(PROMPT) + 10
    assert resumed.prompt_tokens == len(PROMPT)


async def test_a_connection_that_is_lost_once_is_made_again_to_the_same_server(cache: TokenizerCache) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        # The first draft is answered, so that the link counts as one that works.
        if isinstance(message, Draft) and message.base > 3 and server.links == 1:
            connection.transport.abort()
            return True
        return False

    first, second = FakeServer(hook=hook), FakeServer()
    async with listening(first, second) as urls, Link(urls, HELLO, cache, NEVER_WAITING) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        assert await channel.receive() == Opened(channel.stream, 3, 4)
        await channel.send(Draft(channel.stream, 3, []))
        assert isinstance(await channel.receive(), Verdict)
        await channel.send(Draft(channel.stream, 4, []))
        assert await channel.receive() == Relinked()
        assert link.url == first.url
    assert (first.links, second.links) == (2, 0)


@pytest.mark.parametrize("then_closing", [True, False])
async def test_goodbye_moves_an_agent_at_once(then_closing: bool, tmp_path: Path) -> None:
    first = telling(budget=2, hook=going_away(Draft, 3600.0, then_closing=then_closing))
    second = telling(budget=2)
    async with listening(first, second) as urls:
        cache = TokenizerCache(tmp_path)
        async with Agent(urls, SuffixDrafter(), cache=cache, backoff=NEVER_WAITING) as agent:
            completions = await asyncio.gather(*(agent.complete(TextRequest(PROMPT)) for _ in range(4)))
            assert agent.link.url == second.url
            assert agent.link.reconnections == 1
    assert {completion.text for completion in completions} == {STORY}
    assert (first.links, second.links) == (1, 1)


async def test_the_old_server_is_heard_until_the_new_one_has_answered(cache: TokenizerCache) -> None:
    greeted, go_on = asyncio.Event(), asyncio.Event()

    async def slow(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Hello):
            greeted.set()
            await go_on.wait()
        return False

    first, second = FakeServer(hook=going_away(Open, 3600.0, then_closing=False)), FakeServer(hook=slow)
    async with listening(first, second) as urls, Link(urls, HELLO, cache, NEVER_WAITING) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        assert await channel.receive() == Opened(channel.stream, 3, 4)
        await greeted.wait()
        await channel.send(Draft(channel.stream, 3, [4]))
        assert await channel.receive() == Verdict(channel.stream, 3, 1, [5], 4, 1)
        assert link.url == first.url
        go_on.set()
        assert await channel.receive() == Relinked()
        assert link.url == second.url


async def test_a_server_that_says_goodbye_is_waited_for_where_the_other_does_not_answer(cache: TokenizerCache) -> None:
    first = FakeServer(hook=going_away(Open, 0.01, then_closing=False))
    nobody = await nobodys_address()
    async with listening(first) as (url,), Link([url, nobody], HELLO, cache, QUICK) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        while not isinstance(await channel.receive(), Relinked):
            pass
        assert link.url == url
    assert first.links == 2


class Leaping(Itinerary):
    """Its time leaps with every failure, until the server that is left is gone."""

    leap_s = 0.0
    gone = False

    def failed(self, now_s: float, at_least_s: float = 0.0) -> float | None:
        self.leap_s += 0.0 if self.gone else 100.0
        return super().failed(now_s + self.leap_s, at_least_s)

    def left(self, now_s: float) -> None:
        self.gone = True
        super().left(now_s + self.leap_s)


async def test_a_server_that_speaks_for_longer_than_an_agent_is_patient_is_waited_for(cache: TokenizerCache) -> None:
    """Patience is for the time without any server."""
    asked, enough = 0, asyncio.Event()

    def answer(connection: ServerConnection, request: Request) -> Response:
        nonlocal asked
        asked += 1
        if asked == 3:
            enough.set()
        return connection.respond(503, "starting")

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open) and server.links == 1:
            await server.send(connection, Goodbye("upgrade", 0.0))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), 5.0)  # who has given up asks nobody
        elif enough.is_set():
            return False
        await connection.close()
        return True

    async def never(connection: ServerConnection) -> None:
        raise AssertionError

    first = FakeServer()
    async with listening(first) as (url,), serve(never, "127.0.0.1", 0, process_request=answer) as second:
        other = f"ws://127.0.0.1:{next(iter(second.sockets)).getsockname()[1]}"
        async with Link([url, other], HELLO, cache, QUICK) as link:
            first.hook = hook
            link._journey.itinerary = Leaping(2, QUICK)
            channel = link.channel()
            await channel.send(opening(channel))
            assert await channel.receive() == Relinked()
            assert link.url == url


async def test_a_stream_that_waits_for_room_is_opened_elsewhere_at_once(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if not isinstance(message, Open):
            return False
        await server.send(connection, Failure("overloaded", "draining", message.stream, 3600.0), Goodbye("upgrade"))
        return True

    first, second = telling(hook=hook), telling()
    async with listening(first, second) as urls:
        cache = TokenizerCache(tmp_path)
        async with Agent(urls, SuffixDrafter(), cache=cache, backoff=NEVER_WAITING) as agent:
            assert (await agent.complete(TextRequest(PROMPT))).text == STORY
    assert len(first.got(Open)) == len(second.got(Open)) == 1


@pytest.mark.parametrize(
    "change", [{"rule": "ratio"}, {"weights": "others"}, {"files": byte_tokenizer("a template")}, {"vocab_size": 300}]
)
async def test_a_server_with_another_target_is_passed_over(
    change: dict[str, Any], cache: TokenizerCache, caplog: pytest.LogCaptureFixture
) -> None:
    first = FakeServer(hook=going_away(Open, 3600.0, then_closing=True))
    second, third = FakeServer(**change), FakeServer()
    async with listening(first, second, third) as urls, Link(urls, HELLO, cache, NEVER_WAITING) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        assert await channel.receive() == Relinked()
        assert link.url == third.url
        assert link.files == third.files
    assert second.links == 1
    assert [f"{second.url} is passed over from now on" in message for message in caplog.messages].count(True) == 1


async def test_only_where_no_other_is_left_the_target_has_changed(cache: TokenizerCache) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open):
            server.weights = "others"
            await connection.close()
        return isinstance(message, Open)

    first, second = FakeServer(hook=hook), FakeServer(weights="yet others")
    async with listening(first, second) as urls, Link(urls, HELLO, cache, QUICK) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        with pytest.raises(TargetChanged, match="came back with another target"):
            await channel.receive()
    assert (first.links, second.links) == (2, 1)


@pytest.mark.parametrize("moment", [Hello, Open])
async def test_a_server_that_refuses_is_passed_over(
    moment: type[AgentMessage], cache: TokenizerCache, caplog: pytest.LogCaptureFixture
) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, moment):
            await server.send(connection, Failure("forbidden", "because"))
        return isinstance(message, moment)

    first, second = FakeServer(hook=hook), FakeServer()
    async with listening(first, second) as urls, Link(urls, HELLO, cache, NEVER_WAITING) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        while not isinstance(await channel.receive(), Opened):
            await channel.send(opening(channel))
        assert link.url == second.url
    assert first.links == 1
    assert f"{first.url} is passed over from now on: the server refused: because" in caplog.messages


async def test_servers_that_all_refuse_are_asked_once_each(cache: TokenizerCache) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        await server.send(connection, Failure("forbidden", "because"))
        return True

    servers = [FakeServer(hook=hook), FakeServer(hook=hook)]
    with pytest.raises(Refused, match="because"):
        async with listening(*servers) as urls, Link(urls, HELLO, cache, QUICK):
            pass
    assert [server.links for server in servers] == [1, 1]


async def test_nobody_at_any_address(cache: TokenizerCache) -> None:
    urls = [await nobodys_address(), await nobodys_address()]
    if len(set(urls)) == 1:  # the same free port twice
        urls[1] = "ws://127.0.0.1:9"
    with pytest.raises(LinkLost, match=f"no link to {urls[0]} or {urls[1]} for 0 s .*: check the addresses"):
        async with Link(urls, HELLO, cache, NEVER_AGAIN):
            pass


@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_says_when_to_come_back_by_http_rests_until_then(
    status: int, cache: TokenizerCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked: list[float] = []

    def answer(connection: ServerConnection, request: Request) -> Response:
        asked.append(asyncio.get_running_loop().time())
        response = connection.respond(status, "busy")
        response.headers["Retry-After"] = "1"
        return response

    async def never(connection: ServerConnection) -> None:
        raise AssertionError

    async with serve(never, "127.0.0.1", 0, process_request=answer) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        backoff = Backoff(first_s=0.01, longest_s=0.01, give_up_after_s=1.5, rng=random.Random(1))
        with pytest.raises(LinkLost, match=f"HTTP {status}: busy"):
            async with Link(url, HELLO, cache, backoff):
                pass
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 1.0
    assert any("trying again in 1.0 s" in message for message in caplog.messages)


async def test_a_server_without_room_for_a_text_is_asked_again_and_not_left(tmp_path: Path) -> None:
    first, second = telling(hook=refusing("overloaded", retry_after_s=0.01)), telling()
    cache = TokenizerCache(tmp_path)
    async with listening(first, second) as urls, Agent(urls, SuffixDrafter(), cache=cache, backoff=QUICK) as agent:
        assert (await agent.complete(TextRequest(PROMPT))).text == STORY
    assert second.links == 0


async def test_a_draft_that_one_target_does_not_share_a_tokenizer_with_moves_on(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Hello):
            await server.send(connection, Failure("tokenizer_mismatch", "another family"))
        return isinstance(message, Hello)

    first, second = telling(hook=hook), telling()
    cache = TokenizerCache(tmp_path)
    async with (
        listening(first, second) as urls,
        Agent(urls, SuffixDrafter(), cache=cache, backoff=NEVER_WAITING) as agent,
    ):
        assert agent.link.url == second.url


async def test_an_agent_that_ends_while_it_moves_leaves_nothing_open(cache: TokenizerCache) -> None:
    """What was made and not taken up is closed too: servers that end wait for their connections."""
    greeted = asyncio.Event()

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        greeted.set()
        return True

    first, second = FakeServer(hook=going_away(Open, 3600.0, then_closing=False)), FakeServer(hook=hook)
    async with listening(first, second) as urls:
        async with Link(urls, HELLO, cache, NEVER_WAITING) as link:
            channel = link.channel()
            await channel.send(opening(channel))
            await greeted.wait()
        assert link._over is None
        assert not [task for task in asyncio.all_tasks() if task.get_name() in ("link", "parting")]


async def test_a_real_server_that_is_stopped_hands_its_texts_to_another(tmp_path: Path) -> None:
    requests = [TextRequest("w5 w17 w3", SamplingParams(t, seed=3), 80, ignore_eos=True) for t in (0.0, 0.8)]
    begun = asyncio.Event()

    def hear(piece: Piece) -> None:
        if piece.tokens:
            begun.set()

    cache = TokenizerCache(tmp_path)
    stopping = contextlib.AsyncExitStack()
    async with stopping, serving() as (_, second):
        _, first = await stopping.enter_async_context(serving())
        async with Agent([first, second], SuffixDrafter(), cache=cache, backoff=NEVER_WAITING) as agent:
            undisturbed = [(await agent.complete(request)).tokens for request in requests]
            assert agent.link.url == first
            writing = [asyncio.create_task(agent.complete(request, hear)) for request in requests]
            await begun.wait()
            await stopping.aclose()
            assert [(await text).tokens for text in writing] == undisturbed
            assert (agent.link.url, agent.link.reconnections) == (second, 1)


def test_errors_that_say_when_to_come_back_are_of_the_tree() -> None:
    error = LinkLost("gone", retry_after_s=3.0)
    assert isinstance(error, GoodSpeedError)
    assert (error.retry_after_s, LinkLost("gone").retry_after_s) == (3.0, 0.0)
