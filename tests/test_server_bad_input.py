"""Whatever one peer sends, it gets a typed error, and everybody else's text is what it would have been."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from goodspeed.errors import GoodSpeedError, InvalidRequest
from goodspeed.messages import (
    MAX_AGENT_FRAME_BYTES,
    MAX_DRAFT_TOKENS,
    PROTOCOL_VERSION,
    AgentMessage,
    Draft,
    Failure,
    Hello,
    Open,
    Opened,
    Verdict,
)
from goodspeed.sampling import SamplingParams
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import ServerSettings
from tests.serving import GREEDY, Peer, linked, serving, tiny_settings, tiny_tokenizer
from tests.stepping import SlowEngine
from tests.test_server import PROMPT, target_text
from tests.tiny_models import CONTEXT, VOCAB, tiny_llama

SIZE = 24
MakeSettings = Callable[..., ServerSettings]


@pytest.fixture(params=["barrier", "auto"], ids=["paper", "default"])
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MakeSettings:
    """The paper's rounds and schedule, and those a server has by default; a stream that may draft is told to."""
    monkeypatch.setattr("goodspeed_server.server.EngineMeter", SlowEngine)

    def make(*, rounds: Mapping[str, Any] | None = None, **changes: Any) -> ServerSettings:
        how = {"rounds": request.param} | dict(rounds or {})
        return tiny_settings(**{"scheduler": "auto"} | changes, rounds=how)

    return make


@contextlib.asynccontextmanager
async def undisturbed(address: str, max_draft: int = 4) -> AsyncIterator[None]:
    """Another agent generates again and again, from before the block until after it, and always the target's text."""
    text = target_text(PROMPT, SIZE)
    over = asyncio.Event()
    async with linked(address) as bystander, asyncio.TaskGroup() as tasks:
        opened = await bystander.open(0, PROMPT, max_new_tokens=SIZE, max_draft=max_draft)

        async def generate_again_and_again() -> None:
            assert await bystander.go_on(opened, PROMPT, text[: SIZE // 2]) == text
            for stream in itertools.count(1):
                last = over.is_set()
                written = await bystander.generate(
                    stream, PROMPT, text[: SIZE // 2], max_new_tokens=SIZE, max_draft=max_draft
                )
                assert written == text
                if last:
                    return

        tasks.create_task(generate_again_and_again())
        yield
        over.set()


def opening(stream: int = 0, **changes: object) -> Open:
    fields: dict[str, object] = {
        "stream": stream,
        "tokens": PROMPT,
        "prompt_tokens": len(PROMPT),
        "params": GREEDY,
        "max_new_tokens": 8,
        "max_draft": 4,
    }
    return Open(**fields | changes)  # type: ignore[arg-type]


async def refused(peer: Peer) -> tuple[Failure, list[int]]:
    """What a peer with one stream is told, and the tokens that came before it: not every server waits for a draft."""
    tokens: list[int] = []
    while isinstance(message := await peer.receive(), Verdict):
        tokens += message.tokens
    assert isinstance(message, Failure)
    return message, tokens


STREAM_FAILURES: list[tuple[str, Open | Draft]] = [
    ("prompt_too_long", opening(tokens=[1] * CONTEXT, prompt_tokens=CONTEXT)),
    ("empty_prompt", opening(tokens=[], prompt_tokens=0)),
    ("empty_prompt", opening(prompt_tokens=-1)),
    ("token_out_of_range", opening(tokens=[1, VOCAB], prompt_tokens=2)),
    ("token_out_of_range", opening(tokens=[-1, 1], prompt_tokens=2)),
    ("invalid_request", opening(params=SamplingParams(temperature=-0.5))),
    ("invalid_request", opening(max_new_tokens=0)),
    ("invalid_request", opening(max_draft=-1)),
    ("invalid_request", opening(max_draft=MAX_DRAFT_TOKENS + 1)),
    ("unknown_stream", Draft(77, 3, [1])),
]


@pytest.mark.parametrize(("code", "message"), STREAM_FAILURES)
async def test_a_bad_request_fails_its_stream_and_no_other(
    settings: MakeSettings, code: str, message: Open | Draft
) -> None:
    async with serving(settings()) as (_, address), undisturbed(address), linked(address) as peer:
        await peer.send(message)
        failure = await peer.failure()
        assert (failure.code, failure.stream) == (code, message.stream)
        assert await peer.generate(5, PROMPT) == target_text(PROMPT, 8)


async def test_a_second_open_of_a_stream_leaves_the_first_alone(settings: MakeSettings) -> None:
    async with serving(settings()) as (_, address), undisturbed(address), linked(address) as peer:
        opened = await peer.open(3, PROMPT)
        await peer.send(opening(3, tokens=[1, 2], prompt_tokens=2))
        failure, tokens = await refused(peer)
        assert (failure.code, failure.stream) == ("duplicate_stream", 3)
        if not tokens:
            await peer.send(Draft(3, opened.base, []))
        tokens += (await peer.expect(Verdict)).tokens
        assert tokens == target_text(PROMPT, len(tokens))


@pytest.mark.parametrize("drafted", [[5] * 16, [5] * 40, [5] * 200, [VOCAB + 5], [-1]])
async def test_a_draft_that_cannot_be_used_counts_as_none(settings: MakeSettings, drafted: list[int]) -> None:
    async with serving(settings()) as (_, address), undisturbed(address), linked(address) as peer:
        opened = await peer.open(0, PROMPT)
        assert 1 <= opened.budget <= 4
        await peer.send(Draft(0, opened.base, drafted))
        failure, tokens = await refused(peer)
        assert failure.code == ("draft_too_long" if len(drafted) > 1 else "draft_out_of_range")
        assert failure.stream == 0
        verdict = await peer.expect(Verdict)
        assert verdict.accepted == 0
        tokens += verdict.tokens
        assert tokens == target_text(PROMPT, len(tokens))


async def test_a_claim_about_q_that_cannot_be_true_counts_as_no_draft(settings: MakeSettings) -> None:
    async with (
        serving(settings(rule="ratio")) as (_, address),
        undisturbed(address, max_draft=0),
        linked(address) as peer,
    ):
        opened = await peer.open(0, PROMPT)
        await peer.send(Draft(0, opened.base, [5], q=b"\x01nonsense"))
        failure, tokens = await refused(peer)
        assert failure.code == "invalid_q"
        tokens += (await peer.expect(Verdict)).tokens
        assert tokens == target_text(PROMPT, len(tokens))


async def send_hello(peer: Peer, **changes: object) -> None:
    fields: dict[str, object] = {"protocol": PROTOCOL_VERSION, "role": "agent", "name": "x"}
    await peer.send(Hello(**fields | changes))  # type: ignore[arg-type]


LINK_FAILURES: dict[str, tuple[Callable[[Peer], Awaitable[None]], int]] = {
    "version_mismatch": (lambda peer: send_hello(peer, protocol=PROTOCOL_VERSION + 1), 1002),
    "tokenizer_mismatch": (lambda peer: send_hello(peer, fingerprint="another", drafter="another"), 1008),
    "malformed_message": (lambda peer: peer.send(b"\xc1garbage"), 1002),
    "protocol_error": (lambda peer: peer.send(opening()), 1002),
}


@pytest.mark.parametrize("code", LINK_FAILURES)
async def test_a_peer_that_breaks_the_protocol_is_told_and_cut_off(settings: MakeSettings, code: str) -> None:
    act, close_code = LINK_FAILURES[code]
    async with serving(settings()) as (_, address), undisturbed(address), linked(address, greet=False) as peer:
        await act(peer)
        failure = await peer.failure()
        assert (failure.code, failure.stream) == (code, None)
        with pytest.raises(ConnectionClosed) as closed:
            await peer.receive()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (close_code, code)


BEHIND_THE_HANDSHAKE: dict[str, tuple[AgentMessage | bytes | str, str]] = {
    "garbage": (b"\x93\x01\x02", "malformed_message"),
    "a text frame": ("hello?", "malformed_message"),
    "an absurd draft": (Draft(0, len(PROMPT), [5] * (16 * MAX_DRAFT_TOKENS + 1)), "malformed_message"),
    "a second hello": (Hello(PROTOCOL_VERSION, "agent", "x"), "protocol_error"),
    "a draft upon more than there is": (Draft(0, len(PROMPT) + 1, [5]), "protocol_error"),
    "a draft upon less than the prompt": (Draft(0, len(PROMPT) - 1, [5]), "protocol_error"),
}


@pytest.mark.parametrize("what", BEHIND_THE_HANDSHAKE)
async def test_what_cannot_be_trusted_behind_a_good_handshake_ends_the_links_streams_only(
    settings: MakeSettings, what: str
) -> None:
    message, code = BEHIND_THE_HANDSHAKE[what]
    async with serving(settings(max_streams=2)) as (_, address), undisturbed(address), linked(address) as peer:
        await peer.open(0, PROMPT)
        await peer.send(message)
        failure, _ = await refused(peer)
        assert (failure.code, failure.stream) == (code, None)
        await peer.connection.wait_closed()
        # Its row is free again: beside the bystander there is room for one more.
        async with linked(address) as other:
            assert await other.generate(0, PROMPT) == target_text(PROMPT, 8)


async def test_a_text_frame_is_refused(settings: MakeSettings) -> None:
    async with serving(settings()) as (_, address), undisturbed(address), linked(address) as peer:
        await peer.send("hello?")
        failure = await peer.failure()
        assert failure.code == "malformed_message"
        assert "text frame" in failure.message


async def test_an_oversized_frame_is_refused_with_the_size_allowed(settings: MakeSettings) -> None:
    async with serving(settings()) as (server, address), undisturbed(address), linked(address) as peer:
        allowed = server._model.max_frame_bytes
        await peer.send(bytes(allowed + 1))
        failure = await peer.failure()
        assert failure.code == "protocol_error"
        assert f"a frame of {allowed + 1} bytes" in failure.message
        assert f"{allowed} are the most" in failure.message
        with pytest.raises(ConnectionClosed) as closed:
            await peer.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1002


async def test_a_frame_many_times_too_large_is_cut_off_before_it_is_read(settings: MakeSettings) -> None:
    async with serving(settings()) as (_, address), undisturbed(address), linked(address) as peer:
        with pytest.raises(ConnectionClosed) as closed:
            await peer.send(bytes(MAX_AGENT_FRAME_BYTES))
            await peer.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_a_full_queue_refuses_and_says_when_to_come_back(settings: MakeSettings) -> None:
    text = target_text(PROMPT, SIZE)
    how = settings(max_streams=1, rounds={"max_waiting": 1})
    async with serving(how) as (_, address), linked(address) as first, linked(address) as second:
        opened = await first.open(0, PROMPT, max_new_tokens=SIZE)
        await second.send(opening(0))
        await second.send(opening(1))
        failure = await second.failure()
        assert (failure.code, failure.stream) == ("overloaded", 1)
        assert failure.retry_after_s is not None
        # Who has a row, who waits for one, and who comes again when there is room: none of them notices.
        assert await first.go_on(opened, PROMPT, text[: SIZE // 2]) == text
        assert await second.go_on(await second.expect(Opened), PROMPT) == text[:8]
        assert await second.generate(1, PROMPT) == text[:8]


async def test_a_port_in_use_is_named(settings: MakeSettings) -> None:
    async with serving(settings()) as (_, address), undisturbed(address):
        port = int(address.rsplit(":", 1)[1])
        with pytest.raises(GoodSpeedError, match=f"127.0.0.1:{port} is in use"):
            async with serving(settings(port=port)):
                raise AssertionError("two servers on one port")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scheduler": "lottery"}, "choose auto, seconds, goodspeed"),
        ({"rule": "trust"}, "choose auto, coupled, ratio"),
        ({"layout": "round"}, "choose auto, packed, padded"),
        ({"fairness": -1.0}, "fairness is -1.0"),
        ({"max_length": 10_000}, "was made for"),
    ],
)
def test_a_setting_that_does_not_exist_is_named_with_those_that_do(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        VerificationServer(tiny_settings(**changes), tiny_llama(), tiny_tokenizer())
