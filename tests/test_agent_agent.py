from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection

from goodspeed.errors import InvalidRequest, ProtocolError, Refused, TokenizerMismatch
from goodspeed.messages import AgentMessage, Close, Hello, Open
from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.drafters import Drafter, NoDrafter, SuffixDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer, byte_tokenizer, refusing, saying
from tests.linking import QUICK

PROMPT = "once upon a time"
STORY = " there was a naïve 😀 and there was a naïve 😀."


def telling(story: str = STORY, prompt: str = PROMPT, **options: object) -> FakeServer:
    return FakeServer(target=saying(story, len(prompt.encode())), **options)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def at_work(server: FakeServer, tmp_path: Path, drafter: Drafter | None = None) -> AsyncIterator[Agent]:
    async with asyncio.timeout(60), server.listening():
        cache = TokenizerCache(tmp_path)
        async with Agent(server.url, drafter or SuffixDrafter(), name="box", cache=cache, backoff=QUICK) as agent:
            yield agent


@pytest.mark.parametrize("drafter", [NoDrafter(), SuffixDrafter()])
@pytest.mark.parametrize("budget", [0, 1, 8])
async def test_text_streams_as_it_is_verified(tmp_path: Path, drafter: Drafter, budget: int) -> None:
    pieces: list[str] = []
    tokens: list[int] = []

    def take(piece: Piece) -> None:
        pieces.append(piece.text)
        tokens.extend(piece.tokens)

    server = telling(budget=budget if drafter.max_draft else 0)
    async with at_work(server, tmp_path, drafter) as agent:
        completion = await agent.complete(TextRequest(PROMPT), take)
    assert "".join(pieces) == completion.text == STORY
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 5
    assert tokens == completion.tokens == [*agent.tokenizer.encode(STORY), 256]
    assert completion.finish_reason == "stop"
    assert completion.prompt_tokens == len(PROMPT)
    assert (completion.speculation.num_accepted_tokens > 0) == (budget > 0 and drafter.max_draft > 0)


async def test_the_server_is_told_who_drafts(tmp_path: Path) -> None:
    server = telling(max_draft=6)
    async with at_work(server, tmp_path) as agent:
        await agent.complete(TextRequest(PROMPT, SamplingParams(seed=7), max_new_tokens=5, ignore_eos=True))
        await agent.complete(TextRequest(PROMPT, max_new_tokens=5, max_draft=4))
    (hello,) = server.got(Hello)
    assert (hello.name, hello.drafter, hello.fingerprint, hello.role) == ("box", "suffix", None, "agent")
    first, second = server.got(Open)
    assert (first.params.seed, first.max_new_tokens, first.ignore_eos, first.max_draft) == (7, 5, True, 6)
    assert second.max_draft == 4
    assert first.stream != second.stream


async def test_many_completions_share_one_link(tmp_path: Path) -> None:
    server = telling()
    async with at_work(server, tmp_path) as agent:
        completions = await asyncio.gather(*(agent.complete(TextRequest(PROMPT)) for _ in range(16)))
    assert {completion.text for completion in completions} == {STORY}
    assert server.links == 1


@pytest.mark.parametrize("budget", [0, 1, 3, 8])
@pytest.mark.parametrize("stop", ["naïve", "😀", "ve 😀 a", "."])
async def test_a_stop_string_ends_the_text_and_the_stream(tmp_path: Path, stop: str, budget: int) -> None:
    server = telling(budget=budget)
    async with at_work(server, tmp_path) as agent:
        completion = await agent.complete(TextRequest(PROMPT, stop=("never", stop)))
        upto = STORY[: STORY.index(stop)]
        assert completion.text == upto
        assert completion.finish_reason == "stop"
        assert completion.tokens == agent.tokenizer.encode(upto + stop)


async def test_a_stream_left_early_is_closed_at_the_server(tmp_path: Path) -> None:
    server = telling(budget=2)
    async with at_work(server, tmp_path) as agent:
        await agent.complete(TextRequest(PROMPT, stop=("there",)))
        await agent.complete(TextRequest(PROMPT, max_new_tokens=1))
    assert server.got(Close) == [Close(server.got(Open)[0].stream)]


async def test_an_unfinished_stop_string_and_character_come_out_at_the_end(tmp_path: Path) -> None:
    async with at_work(telling("the 😀"), tmp_path) as agent:
        completion = await agent.complete(TextRequest(PROMPT, max_new_tokens=7, stop=("e \ufffd\ufffd",)))
    assert completion.text == "the \ufffd"
    assert completion.finish_reason == "length"


async def test_a_conversation_goes_through_the_template(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    prompt = "user: hi\nassistant:"
    server = telling(" hello", prompt, files=byte_tokenizer(template))
    async with at_work(server, tmp_path) as agent:
        completion = await agent.complete(TextRequest([{"role": "user", "content": "hi"}]))
        assert server.got(Open)[0].tokens == agent.tokenizer.encode(prompt)
    assert completion.text == " hello"


async def test_one_refused_stream_leaves_the_others_alone(tmp_path: Path) -> None:
    async with at_work(telling(hook=refusing("invalid_request")), tmp_path) as agent:
        results = await asyncio.gather(*(agent.complete(TextRequest(PROMPT)) for _ in range(3)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Completion", "Completion", "Refused"]
    assert any(isinstance(result, Refused) for result in results)


@dataclass(frozen=True)
class Foreign(NoDrafter):
    fingerprint: str | None = "another"


async def test_a_draft_of_another_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerMismatch, match="choose a draft of the same family, or --draft suffix"):
        async with at_work(telling(), tmp_path, Foreign()):
            pass


async def test_a_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    server = telling()

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        server.files = {"tokenizer.json": b'{"model": {}}', "tokenizer_config.json": b"{}"}
        return False

    server.hook = hook
    with pytest.raises(ProtocolError, match="tokenizer cannot be read"):
        async with at_work(server, tmp_path):
            pass


async def test_a_prompt_that_this_server_cannot_hold(tmp_path: Path) -> None:
    server = telling(max_length=20)
    async with at_work(server, tmp_path) as agent:
        with pytest.raises(InvalidRequest, match=r"has 20 tokens and this server holds 20 .* shorten it to 19"):
            await agent.complete(TextRequest("x" * 20))
        assert not agent.link._channels
    assert server.got(Open) == []


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": "a\udcff"}, r"the prompt is not Unicode text: .* \(U\+DCFF\) as character 2"),
        ({"prompt": [{"role": "user", "content": "\ud800"}]}, r"the prompt is not .* \(U\+D800\) as character 1"),
        ({"prompt": [{"role": "user", "content": [{"\ud800": 1}]}]}, "the prompt is not Unicode text"),
        ({"prompt": [{"role": "user", "content": "a"}, {"role": "user"}]}, 'message 2 has no "content": a message'),
        ({"prompt": [{"role": "user", "content": None}]}, 'message 1 has no "content"'),
        ({"prompt": [{"content": "a"}]}, 'message 1 has no "role"'),
        ({"stop": ("a", "")}, "a stop string is empty"),
        ({"stop": ("a", "\udcff")}, "a stop string is not Unicode text"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_draft": 100}, "max_draft is 100"),
        ({"params": SamplingParams(top_p=0)}, "top_p is 0"),
    ],
)
def test_values_out_of_range(change: dict[str, object], match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        replace(TextRequest("a"), **change).validate()  # type: ignore[arg-type]
