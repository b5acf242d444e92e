from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest
from msgspec.structs import replace
from websockets.asyncio.server import ServerConnection

from goodspeed.errors import (
    InvalidRequest,
    LinkLost,
    Overloaded,
    TargetChanged,
)
from goodspeed.messages import (
    AgentMessage,
    Close,
    Draft,
    Failure,
    GetTokenizer,
    Goodbye,
    Hello,
    Open,
    Opened,
    Redraft,
    Verdict,
    encode,
)
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.channel import Relinked
from goodspeed_agent.connecting import refusal
from goodspeed_agent.itinerary import Itinerary
from goodspeed_agent.link import Link
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer
from tests.linking import HELLO, NEVER_AGAIN, linked, opening


async def test_the_handshake_brings_welcome_and_tokenizer(cache: TokenizerCache) -> None:
    server = FakeServer()
    async with linked(server, cache) as link:
        assert link.welcome == server.welcome()
        assert link.files == server.files
    hello, asked = server.received
    assert isinstance(hello, Hello)
    assert (replace(hello, session=b"", attempt=0), asked) == (HELLO, GetTokenizer())


async def test_a_cached_tokenizer_is_not_fetched_again(cache: TokenizerCache) -> None:
    server = FakeServer()
    cache.store(server.welcome().tokenizer, server.files)
    async with linked(server, cache) as link:
        assert link.files == server.files
    assert [type(message) for message in server.received] == [Hello]


async def test_a_link_says_the_same_session_whenever_it_is_made_again_and_no_other_link_does(
    cache: TokenizerCache,
) -> None:
    server = FakeServer(hook=losing(1))
    async with linked(server, cache) as link, Link(server.url, HELLO, cache, NEVER_AGAIN):
        one = link.channel()
        await one.send(opening(one))
        assert await one.receive() == Relinked()
        await link.redraft("another", None)
    first, other, again = server.got(Hello)
    assert first.session == again.session != other.session
    assert len(first.session) == len(other.session) == 16
    assert again.attempt > first.attempt, "and which of them is the newer"


async def test_the_rounds_may_change_while_a_tokenizer_is_on_its_way(cache: TokenizerCache) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, GetTokenizer):
            await connection.send(encode(replace(server.welcome(), waits=False)))
        return False

    async with linked(FakeServer(hook=hook), cache) as link:
        assert link.welcome.waits is False


async def test_every_stream_hears_in_its_place_that_the_rounds_change(cache: TokenizerCache) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Redraft):
            await connection.send(encode(replace(server.welcome(), waits=False)))
            await connection.send(encode(Verdict(1, 3, 0, [], 2)))
        return False

    server = FakeServer(hook=hook)
    async with linked(server, cache) as link:
        one, two = link.channel(), link.channel()
        await one.send(opening(one))
        await one.send(Redraft("another"))
        heard = [await one.receive() for _ in range(3)]
        changed = replace(server.welcome(), waits=False)
        assert heard == [Opened(1, 3, 4), changed, Verdict(1, 3, 0, [], 2)]
        assert await two.receive() == changed
        assert link.welcome == changed


async def test_a_welcome_of_another_target_ends_the_link(cache: TokenizerCache) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open):
            await connection.send(encode(replace(server.welcome(), weights="others")))
        return False

    async with linked(FakeServer(hook=hook), cache) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        with pytest.raises(TargetChanged):
            while True:
                await channel.receive()


async def test_streams_share_a_link_and_do_not_see_each_other(cache: TokenizerCache) -> None:
    async with linked(FakeServer(budget=2), cache) as link:
        one, two = link.channel(), link.channel()
        await one.send(opening(one, (1,)))
        await two.send(opening(two, (11, 12)))
        assert await two.receive() == Opened(two.stream, 2, 2)
        assert await one.receive() == Opened(one.stream, 1, 2)
        await one.send(Draft(one.stream, 1, [2, 9]))
        await two.send(Draft(two.stream, 2, [13]))
        assert await one.receive() == Verdict(one.stream, 1, 1, [3], 2, 2)
        assert await two.receive() == Verdict(two.stream, 2, 1, [14], 2, 1)


async def test_last_words_to_a_closed_stream_are_dropped(cache: TokenizerCache) -> None:
    async with linked(FakeServer(), cache) as link:
        one, two = link.channel(), link.channel()
        await one.send(opening(one))
        one.close()
        await two.send(opening(two))
        assert await two.receive() == Opened(two.stream, 3, 4)


def losing(times: int, *messages: Any) -> Any:
    """A hook that sends messages and hangs up when a stream is opened."""
    left = times

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        nonlocal left
        if not isinstance(message, Open) or left == 0:
            return False
        left -= 1
        await server.send(connection, *messages)
        await connection.close()
        return True

    return hook


async def test_a_lost_link_is_made_again_and_its_streams_are_told(
    cache: TokenizerCache, caplog: pytest.LogCaptureFixture
) -> None:
    server = FakeServer(hook=losing(1))
    async with linked(server, cache) as link:
        one, two = link.channel(), link.channel()
        await one.send(opening(one))
        assert await one.receive() == Relinked()
        assert await two.receive() == Relinked()
        await one.send(opening(one))
        assert await one.receive() == Opened(one.stream, 3, 4)
        assert link.reconnections == 1
    assert server.links == 2
    assert server.got(GetTokenizer) == [GetTokenizer()]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


@pytest.mark.parametrize(("holds", "warned"), [(4095, True), (4096, False), (5000, False)])
async def test_a_link_that_is_made_again_where_texts_have_less_room_says_so(
    holds: int, warned: bool, cache: TokenizerCache, caplog: pytest.LogCaptureFixture
) -> None:
    server = FakeServer(hook=losing(1))
    async with linked(server, cache) as link:
        server.max_length = holds
        channel = link.channel()
        await channel.send(opening(channel))
        assert await channel.receive() == Relinked()
        assert link.welcome.max_length == holds
    said = [message for message in caplog.messages if "begun with more room ends sooner there" in message]
    assert len(said) == warned
    assert (
        not warned
        or f"{server.url} holds 4095 tokens a stream, prompt and text together, and there were 4096" in said[0]
    )


async def test_nothing_crosses_the_gap(cache: TokenizerCache) -> None:
    # An Opened of the old link is still unread when the link is lost: it is void, and so is a draft that answers it.
    server = FakeServer(hook=losing(1, Opened(1, 3, 4), Verdict(1, 3, 0, [4], 4)))
    async with linked(server, cache) as link:
        one, two = link.channel(), link.channel()
        await one.send(opening(one))
        assert await two.receive() == Relinked()
        await one.send(Draft(one.stream, 3, [4]))
        assert await one.receive() == Relinked()
        await one.send(opening(one))
        assert await one.receive() == Opened(one.stream, 3, 4)
    assert server.got(Draft) == []


async def test_a_stream_made_while_the_link_is_down_is_told_when_it_is_up(cache: TokenizerCache) -> None:
    server = FakeServer(hook=losing(1))
    async with linked(server, cache) as link:
        one = link.channel()
        await one.send(opening(one))
        assert link._connection is not None
        await link._connection.wait_closed()
        two = link.channel()
        await two.send(opening(two))
        assert await two.receive() == Relinked()


async def test_a_link_that_cannot_be_made_again_ends_every_stream(cache: TokenizerCache) -> None:
    server = FakeServer()
    async with asyncio.timeout(60):
        async with contextlib.AsyncExitStack() as stack:
            listening = await stack.enter_async_context(contextlib.AsyncExitStack())
            await listening.enter_async_context(server.listening())
            backoff = Backoff(first_s=0.001, longest_s=0.001, give_up_after_s=0.05)
            link = await stack.enter_async_context(Link(server.url, HELLO, cache, backoff))
            channel = link.channel()
            await listening.aclose()
            for _ in range(2):
                with pytest.raises(LinkLost, match=r"no link to ws://.*check the address"):
                    await channel.receive()
            with pytest.raises(LinkLost):
                link.channel()


async def test_a_server_that_is_not_there_yet_is_waited_for(cache: TokenizerCache) -> None:
    server = FakeServer()
    async with server.listening():
        port = int(server.url.rsplit(":", 1)[1])
    link = Link(server.url, HELLO, cache, Backoff(first_s=0.01, longest_s=0.01))
    failed = asyncio.Event()

    class Telling(Itinerary):
        def failed(self, now_s: float, at_least_s: float = 0.0) -> float | None:
            failed.set()
            return super().failed(now_s, at_least_s)

    link._journey.itinerary = Telling(1, Backoff(first_s=0.01, longest_s=0.01))
    async with asyncio.timeout(60):
        connecting = asyncio.create_task(link.__aenter__())
        await failed.wait()
        async with server.listening(port):
            await connecting
            await link.__aexit__(None, None, None)


async def test_a_server_that_is_not_there_at_all(cache: TokenizerCache) -> None:
    server = FakeServer()
    async with server.listening():
        pass
    with pytest.raises(LinkLost, match=r"for 0 s \(.*\): check the address, and that a goodspeed-server runs there"):
        async with Link(server.url, HELLO, cache, NEVER_AGAIN):
            pass


async def test_a_verdict_makes_the_next_loss_the_first(cache: TokenizerCache) -> None:
    async with linked(FakeServer(), cache) as link:
        link._journey.itinerary.failed(0.0)
        channel = link.channel()
        await channel.send(opening(channel))
        await channel.receive()
        assert link._journey.itinerary.laps == 1
        await channel.send(Draft(channel.stream, 3, []))
        await channel.receive()
        assert link._journey.itinerary.laps == 0


async def test_a_link_that_is_lost_at_once_every_time_is_given_up(cache: TokenizerCache) -> None:
    server = FakeServer(hook=losing(10**9))
    backoff = Backoff(first_s=0.002, longest_s=0.002, give_up_after_s=0.1)
    async with linked(server, cache, backoff) as link:
        channel = link.channel()
        with pytest.raises(LinkLost):
            while True:
                await channel.send(opening(channel))
                assert await channel.receive() == Relinked()
    assert server.links >= 2


async def test_goodbye_says_when_to_come_back(cache: TokenizerCache, caplog: pytest.LogCaptureFixture) -> None:
    server = FakeServer(hook=losing(1, Goodbye("upgrade", 0.02)))
    caplog.set_level(logging.INFO)
    async with linked(server, cache) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        assert await channel.receive() == Relinked()
    assert "the server is going away: upgrade" in caplog.messages


async def test_an_overloaded_server_is_asked_again(cache: TokenizerCache) -> None:
    greeted = 0

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        nonlocal greeted
        greeted += isinstance(message, Hello)
        if isinstance(message, Hello) and greeted == 1:
            await server.send(connection, Failure("overloaded", "full", None, 0.001))
            return True
        return False

    async with linked(FakeServer(hook=hook), cache) as link:
        assert link.welcome.model == "counter"
    assert greeted == 2


async def test_a_link_that_becomes_overloaded_is_made_again(cache: TokenizerCache) -> None:
    server = FakeServer(hook=losing(1, Failure("overloaded", "too many", None, 0.001)))
    async with linked(server, cache) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        assert await channel.receive() == Relinked()


async def test_a_message_larger_than_a_server_takes_never_leaves(cache: TokenizerCache) -> None:
    async with linked(FakeServer(), cache) as link:
        channel = link.channel()
        with pytest.raises(InvalidRequest, match="shorten it"):
            await channel.send(opening(channel, (2**30,) * 500_000))
        await channel.send(Close(channel.stream))


async def test_a_defect_in_the_link_reaches_everybody(cache: TokenizerCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Link, "_take", broken)

    async def talk() -> None:
        async with linked(FakeServer(), cache) as link:
            channel = link.channel()
            await channel.send(opening(channel))
            await channel.receive()

    with pytest.raises(ZeroDivisionError):
        await talk()


def test_refusals_keep_their_data() -> None:
    overloaded = refusal(Failure("overloaded", "full", 3, 2.5))
    assert isinstance(overloaded, Overloaded)
    assert overloaded.retry_after_s == 2.5
    assert refusal(Failure("invalid_q", "bad", 3)).code == "invalid_q"


async def test_a_proxy_is_not_asked_for_this_machine(cache: TokenizerCache, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with linked(FakeServer(), cache) as link:
        assert link.welcome
