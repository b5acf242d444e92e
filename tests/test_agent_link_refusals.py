"""Servers that refuse, break the protocol or are something else altogether."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from goodspeed.addresses import check_url
from goodspeed.errors import (
    GoodSpeedError,
    InvalidRequest,
    LinkLost,
    MalformedMessage,
    ProtocolError,
    Refused,
    TargetChanged,
    TokenizerMismatch,
    VersionMismatch,
)
from goodspeed.messages import (
    AgentMessage,
    Failure,
    GetTokenizer,
    Hello,
    Open,
    Opened,
    Tokenizer,
    Verdict,
    encode,
)
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.link import Link
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer
from tests.linking import HELLO, QUICK, linked, opening


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("version_mismatch", Refused),
        ("malformed_message", Refused),
        ("protocol_error", Refused),
        ("tokenizer_mismatch", TokenizerMismatch),
        ("something_new", Refused),
    ],
)
@pytest.mark.parametrize("moment", [Hello, GetTokenizer, Open])
async def test_a_refused_link_is_not_tried_again(
    cache: TokenizerCache, code: str, kind: type[GoodSpeedError], moment: type[AgentMessage]
) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if not isinstance(message, moment):
            return False
        await server.send(connection, Failure(code, "because"))
        await connection.close()
        return True

    server = FakeServer(hook=hook)

    async def talk() -> None:
        async with linked(server, cache) as link:
            channel = link.channel()
            await channel.send(opening(channel))
            await channel.receive()

    with pytest.raises(kind, match="because") as caught:
        await talk()
    assert caught.value.code == code
    assert server.links == 1


@pytest.mark.parametrize(
    ("frame", "kind", "match"),
    [
        (b"\xc1garbage", MalformedMessage, "not a message"),
        ("text", ProtocolError, "text frame"),
        (encode(Opened(1, 1, 1)), ProtocolError, "Opened where a Welcome was due"),
        (b"\x93W\x07\xa3new", VersionMismatch, "versions 7 and 1"),
    ],
)
async def test_a_peer_that_is_no_server_of_ours(
    cache: TokenizerCache, frame: bytes | str, kind: type[GoodSpeedError], match: str
) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        await connection.send(frame)
        return True

    server = FakeServer(hook=hook)
    with pytest.raises(kind, match=match):
        async with linked(server, cache):
            pass
    assert server.links == 1


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        (b"\xc1", "not a message"),
        ("text", "text frame"),
        (encode(Tokenizer("", {})), "Tokenizer that nobody asked for"),
    ],
)
async def test_a_server_that_loses_its_wits_ends_the_link(
    cache: TokenizerCache, frame: bytes | str, match: str
) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open):
            await connection.send(frame)
            await connection.wait_closed()
            assert connection.close_code == 1002
        return isinstance(message, Open)

    server = FakeServer(hook=hook)
    async with linked(server, cache) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        with pytest.raises(ProtocolError, match=match):
            await channel.receive()
    assert server.links == 1


@pytest.mark.parametrize("moment", [Hello, GetTokenizer])
async def test_a_handshake_that_is_too_large_for_the_server_is_not_tried_again(
    cache: TokenizerCache, moment: type[AgentMessage]
) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, moment):
            await connection.close(CloseCode.MESSAGE_TOO_BIG, "4 bytes and no more")
        return isinstance(message, moment)

    server = FakeServer(hook=hook)
    with pytest.raises(Refused, match="no message so large: 4 bytes and no more"):
        async with linked(server, cache):
            pass
    assert server.links == 1


@pytest.mark.parametrize("moment", [GetTokenizer, Open])
async def test_a_server_that_sends_more_than_an_agent_takes_is_not_asked_again(
    cache: TokenizerCache, moment: type[AgentMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, moment):
            await connection.send(bytes(100_001))
        return isinstance(message, moment)

    async def talk() -> None:
        async with linked(server, cache) as link:
            channel = link.channel()
            await channel.send(opening(channel))
            await channel.receive()

    monkeypatch.setattr("goodspeed_agent.connecting.MAX_SERVER_FRAME_BYTES", 100_000)
    server = FakeServer(hook=hook)
    with pytest.raises(ProtocolError, match="sent a message of more than 100000 bytes"):
        await talk()
    assert server.links == 1


async def test_a_message_that_is_too_large_for_the_server_is_not_sent_again(cache: TokenizerCache) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open):
            await connection.close(CloseCode.MESSAGE_TOO_BIG, "4 bytes and no more")
        return isinstance(message, Open)

    server = FakeServer(hook=hook)
    async with linked(server, cache) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        with pytest.raises(Refused, match="no message so large: 4 bytes and no more") as caught:
            await channel.receive()
    assert caught.value.code == "too_large"
    assert server.links == 1


async def test_a_tokenizer_that_never_comes_is_asked_for_again(
    cache: TokenizerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if server.links > 1 or not isinstance(message, GetTokenizer):
            return False
        # Only the first is to be late, however slow this machine is.
        monkeypatch.setattr("goodspeed_agent.connecting._TRANSFER_S", 60.0)
        return True

    monkeypatch.setattr("goodspeed_agent.connecting._TRANSFER_S", 0.01)
    server = FakeServer(hook=hook)
    async with linked(server, cache) as link:
        assert link.files == server.files
    assert server.links == 2
    assert len(server.got(GetTokenizer)) == 2


async def test_a_tokenizer_that_is_not_the_one_announced(cache: TokenizerCache) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, GetTokenizer):
            await server.send(connection, Tokenizer("", dict.fromkeys(server.files, b"{}")))
        return isinstance(message, GetTokenizer)

    with pytest.raises(ProtocolError, match="does not match the digest"):
        async with linked(FakeServer(hook=hook), cache):
            pass


@pytest.mark.parametrize(
    "change", [{"rule": "ratio"}, {"weights": "others"}, {"vocab_size": 300}, {"eos_tokens": (1, 256)}]
)
async def test_another_model_behind_the_same_address_is_noticed(
    cache: TokenizerCache, change: dict[str, object]
) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open):
            vars(server).update(change)
            await connection.close()
        return isinstance(message, Open)

    async with linked(FakeServer(hook=hook), cache) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        with pytest.raises(TargetChanged, match="came back with another target"):
            await channel.receive()


async def refused_with(
    status: int, answer: Callable[[ServerConnection, Request], Response], cache: TokenizerCache
) -> None:
    """See that nobody links up with what answers so over HTTP."""

    async def never(connection: ServerConnection) -> None:
        raise AssertionError

    async with serve(never, "127.0.0.1", 0, process_request=answer) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(Refused, match=f"HTTP {status}: that is not a goodspeed-server"):
            async with Link(f"ws://127.0.0.1:{port}", HELLO, cache, QUICK):
                pass


async def test_an_address_where_something_else_answers(cache: TokenizerCache) -> None:
    def answer(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(404, "no such page")

    await refused_with(404, answer, cache)


@pytest.mark.parametrize("where", ["https://example.com/", "wss://127.0.0.1:9/", "/elsewhere"])
async def test_nobody_is_sent_elsewhere(where: str, cache: TokenizerCache) -> None:
    def answer(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(301, "elsewhere")
        response.headers["Location"] = where
        return response

    await refused_with(301, answer, cache)


@pytest.mark.parametrize("moment", [Hello, Open])
async def test_a_defect_of_the_server_is_met_again_before_it_is_believed(
    moment: type[AgentMessage], cache: TokenizerCache
) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if not isinstance(message, moment) or server.links > 1:
            return False
        await server.send(connection, Failure("error", "the server failed; its log says where"))
        await connection.close(CloseCode.INTERNAL_ERROR, "error")
        return True

    server = FakeServer(hook=hook)
    async with linked(server, cache) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        while not isinstance(await channel.receive(), Opened):
            await channel.send(opening(channel))
    assert server.links == 2


async def test_a_server_error_of_a_proxy_is_tried_again(cache: TokenizerCache) -> None:
    asked = 0

    def answer(connection: ServerConnection, request: Request) -> Response:
        nonlocal asked
        asked += 1
        return connection.respond(503, "starting")

    async def never(connection: ServerConnection) -> None:
        raise AssertionError

    async with serve(never, "127.0.0.1", 0, process_request=answer) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        backoff = Backoff(first_s=0.001, longest_s=0.001, give_up_after_s=0.05)
        with pytest.raises(LinkLost, match="503"):
            async with Link(f"ws://127.0.0.1:{port}", HELLO, cache, backoff):
                pass
    assert asked > 1


@pytest.mark.parametrize("url", ["", "localhost", "http://localhost:1", "ws://", "ws://host:port", "ws://a:99999"])
def test_what_is_no_address_is_refused_at_once(url: str, cache: TokenizerCache) -> None:
    with pytest.raises(InvalidRequest, match="ws://HOST:PORT"):
        check_url(url)
    with pytest.raises(InvalidRequest):
        Link(url, HELLO, cache)


async def test_a_token_that_the_target_has_not_got_is_never_committed(cache: TokenizerCache) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open):
            highest = server.vocab_size - 1
            await server.send(connection, Verdict(message.stream, 3, 0, [highest], 0))
            await server.send(connection, Verdict(message.stream, 4, 0, [highest + 1], 0))
        return isinstance(message, Open)

    async with linked(FakeServer(hook=hook), cache) as link:
        channel = link.channel()
        await channel.send(opening(channel))
        assert await channel.receive() == Verdict(channel.stream, 3, 0, [256], 0)
        with pytest.raises(ProtocolError, match="commits token 257 to stream"):
            await channel.receive()


@pytest.mark.parametrize("moment", [Hello, Open])
async def test_a_server_that_does_not_answer_a_close_is_not_waited_for(
    moment: type[AgentMessage], cache: TokenizerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(connection: ClientConnection, code: int = 1000, reason: str = "") -> None:
        await asyncio.Event().wait()

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, moment):
            await server.send(connection, Tokenizer("", {}))
        return isinstance(message, moment)

    monkeypatch.setattr(ClientConnection, "close", never)
    monkeypatch.setattr("goodspeed_agent.connecting._PARTING_S", 0.0)
    with pytest.raises(ProtocolError):
        async with asyncio.timeout(3), linked(FakeServer(hook=hook), cache) as link:
            channel = link.channel()
            await channel.send(opening(channel))
            await channel.receive()
