"""A draft that answers alone while no server can be reached: what it writes, how that is marked, and when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from websockets.asyncio.server import ServerConnection

from goodspeed import catalog
from goodspeed.errors import InvalidRequest, LinkLost, ModelError
from goodspeed.messages import AgentMessage, Draft, Open
from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.api.serving import serve
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.drafters import Drafter, NoDrafter, SuffixDrafter
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.report import Completion
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.server import VerificationServer
from tests.fake_server import FakeServer, Hook, byte_tokenizer, refusing, saying
from tests.linking import QUICK
from tests.serving import tiny_settings, tiny_tokenizer
from tests.tiny_models import CONTEXT, tiny_llama

PROMPT = "once upon a time"
STORY = " there was"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
NOBODY = "ws://127.0.0.1:9"
SHORT = Backoff(first_s=0.001, longest_s=0.001, give_up_after_s=0.2, rng=random.Random(1))


def draft(seed: int = 5) -> ModelDrafter:
    """A model of the fake server's tokens, which writes anything but its story."""
    return ModelDrafter(tiny_llama(seed, vocab_size=257), "stranger", catalog.fingerprint(byte_tokenizer(TEMPLATE)))


class Place:
    """An address at which there is a server at times."""

    def __init__(self, hook: Hook | None = None, **options: Any) -> None:
        self.server = FakeServer(
            saying(STORY, len(PROMPT)), hook=hook, files=byte_tokenizer(TEMPLATE), max_length=80, **options
        )
        self._stack = contextlib.AsyncExitStack()
        self._port = 0

    async def open(self) -> str:
        await self._stack.enter_async_context(self.server.listening(self._port))
        self._port = int(self.server.url.rpartition(":")[2])
        return self.server.url

    async def close(self) -> None:
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def place(hook: Hook | None = None, **options: Any) -> AsyncIterator[Place]:
    here = Place(hook, **options)
    async with asyncio.timeout(60):
        await here.open()
        try:
            yield here
        finally:
            await here.close()


def agent_of(here: Place, folder: Path, backoff: Backoff = QUICK, drafter: Drafter | None = None) -> Agent:
    cache = TokenizerCache(folder)
    return Agent(here.server.url, drafter or draft(), cache=cache, backoff=backoff, alone_after_s=0.01)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)


BENT = SamplingParams(
    0.9, top_p=0.9, seed=4, frequency_penalty=1.5, presence_penalty=0.5, logit_bias=((7, 3.0), (11, -100.0))
)


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(0.8, seed=3), SamplingParams(1.2, top_k=5), BENT])
async def test_alone_a_draft_writes_what_a_server_of_it_would(params: SamplingParams, tmp_path: Path) -> None:
    requests = [TextRequest(prompt, params, 40, ignore_eos=True) for prompt in ("w5 w17 w3", "w1 w2", "w90")]

    async def texts(agent: Agent) -> list[Completion]:
        async with agent:
            return list(await asyncio.gather(*map(agent.complete, requests)))

    cache, settings = TokenizerCache(tmp_path), tiny_settings(model="tiny")
    async with VerificationServer(settings, tiny_llama(5), tiny_tokenizer()).listen() as address:
        expected = await texts(Agent(address, NoDrafter(), cache=cache, backoff=QUICK))
    drafter = ModelDrafter(tiny_llama(5), "stranger", catalog.fingerprint(tiny_tokenizer()))
    found = await texts(Agent(address, drafter, cache=cache, backoff=QUICK, alone_after_s=0.01))
    assert [text.tokens for text in found] == [text.tokens for text in expected]
    assert [text.text for text in found] == [text.text for text in expected]
    assert {text.draft for text in expected} == {None}
    assert {text.draft for text in found} == {"stranger"}
    assert found[0].to_json().items() >= {"verified": False, "model": "stranger"}.items()
    assert not expected[0].to_json().keys() & {"verified", "model"}


async def test_pieces_are_marked_and_log_probabilities_are_left_out(tmp_path: Path) -> None:
    pieces: list[Piece] = []
    async with place() as here:
        async with agent_of(here, tmp_path):
            pass
        await here.close()
        async with agent_of(here, tmp_path) as agent:
            completion = await agent.complete(TextRequest(PROMPT, max_new_tokens=6, logprobs=2), pieces.append)
    assert {piece.draft for piece in pieces} == {"stranger"}
    assert "".join(piece.text for piece in pieces) == completion.text
    assert [origin for piece in pieces for origin in piece.origins] == ["unverified"] * len(completion.tokens)
    assert completion.logprobs == [None] * len(completion.tokens)


async def test_a_text_ends_where_it_would_with_a_server(tmp_path: Path) -> None:
    async with place() as here:
        async with agent_of(here, tmp_path):
            pass
        await here.close()
        async with agent_of(here, tmp_path) as agent:
            whole = await agent.complete(TextRequest(PROMPT, max_new_tokens=None, ignore_eos=True))
            # The server holds less than the draft.
            assert len(whole.tokens) == 80 - len(PROMPT) < CONTEXT - len(PROMPT)
            assert whole.finish_reason == "length"
            cut = await agent.complete(
                TextRequest(PROMPT, max_new_tokens=50, ignore_eos=True, stop=(whole.text[9:12],))
            )
            assert cut.text == whole.text[: whole.text.index(whole.text[9:12])]
            assert cut.finish_reason == "stop"
            agent.link.welcome.eos_tokens.append(whole.tokens[4])
            ended = await agent.complete(TextRequest(PROMPT, max_new_tokens=50))
            assert ended.tokens == whole.tokens[: whole.tokens.index(whole.tokens[4]) + 1]
            assert ended.finish_reason == "stop"
            with pytest.raises(InvalidRequest, match=r"the draft alone holds 80 .* shorten it to 79"):
                await agent.complete(TextRequest("x" * 80))


async def test_a_text_that_a_server_began_is_finished_by_one(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Draft) and message.base > len(PROMPT) + 2 and server.links == 1:
            begun.set()
            return True
        return False

    async with place(hook) as here, agent_of(here, tmp_path) as agent:
        writing = asyncio.create_task(agent.complete(TextRequest(PROMPT)))
        await begun.wait()
        await here.close()
        await until(lambda: agent.link.alone)
        other = await agent.complete(TextRequest(PROMPT, max_new_tokens=5, ignore_eos=True))
        assert (other.draft, len(other.tokens)) == ("stranger", 5)
        assert not writing.done()
        await here.open()
        completion = await writing
        assert (completion.text, completion.draft) == (STORY, None)
        assert not agent.link.alone
        assert (await agent.complete(TextRequest(PROMPT))).draft is None


async def test_a_text_that_a_server_began_ends_with_an_error_where_none_comes_back(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Draft) and message.base > len(PROMPT) + 2:
            begun.set()
            return True
        return False

    async with place(hook) as here, agent_of(here, tmp_path, SHORT) as agent:
        writing = asyncio.create_task(agent.complete(TextRequest(PROMPT)))
        await begun.wait()
        await here.close()
        with pytest.raises(LinkLost, match=r"no link to .* for 0 s"):
            await writing
        # The agent goes on, and so does its looking for a server.
        assert (await agent.complete(TextRequest(PROMPT, max_new_tokens=3))).draft == "stranger"
        here.server.hook = None
        await here.open()
        await until(lambda: agent.link.up)
        assert (await agent.complete(TextRequest(PROMPT))).text == STORY


@pytest.mark.parametrize("overloaded", [False, True])
async def test_a_text_that_no_server_has_begun_is_answered_by_the_draft(overloaded: bool, tmp_path: Path) -> None:
    asked = asyncio.Event()
    refuse = refusing("overloaded", retry_after_s=3600.0)

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if not isinstance(message, Open):
            return False
        asked.set()
        return await refuse(server, connection, message) if overloaded else True

    patient = Backoff(first_s=0.001, longest_s=0.001, give_up_after_s=7200.0)
    async with place(hook) as here, agent_of(here, tmp_path, patient) as agent:
        writing = asyncio.create_task(agent.complete(TextRequest(PROMPT, max_new_tokens=4, ignore_eos=True)))
        await asked.wait()
        await here.close()
        completion = await writing
        assert (completion.draft, len(completion.tokens)) == ("stranger", 4)


@pytest.mark.parametrize("drafter", [NoDrafter(), SuffixDrafter()])
def test_a_drafter_that_cannot_answer_alone_is_refused_at_once(drafter: Drafter, tmp_path: Path) -> None:
    sentence = f"the draft '{drafter.name}' cannot answer without a server, .*: name a model as --draft, or leave"
    with pytest.raises(InvalidRequest, match=sentence):
        Agent(NOBODY, drafter, cache=TokenizerCache(tmp_path), alone_after_s=1.0)


async def test_nor_is_it_exchanged_for_one(tmp_path: Path) -> None:
    async with place() as here, agent_of(here, tmp_path) as agent:
        with pytest.raises(InvalidRequest, match="cannot answer without a server"):
            await agent.swap(SuffixDrafter())
        assert agent.drafter == "stranger"


async def test_without_a_server_ever_there_is_nothing_to_answer_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(LinkLost, match=f"no link to {NOBODY} for 0 s"):
        async with Agent(NOBODY, draft(), cache=TokenizerCache(tmp_path), backoff=SHORT, alone_after_s=0.01):
            pass
    assert f"nothing is known yet of what {NOBODY} serves: the draft cannot answer alone" in caplog.messages


async def test_a_draft_of_another_family_does_not_answer_for_a_target_that_is_remembered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with place() as here:
        async with agent_of(here, tmp_path):
            pass
        await here.close()
        foreign = ModelDrafter(tiny_llama(vocab_size=257), "foreign", "another")
        with pytest.raises(LinkLost):
            async with agent_of(here, tmp_path, SHORT, foreign):
                pass
    assert any("the draft cannot answer alone: the draft 'foreign' does not share" in line for line in caplog.messages)


async def test_a_server_that_comes_with_another_target_is_believed(tmp_path: Path) -> None:
    async with place() as here:
        async with agent_of(here, tmp_path):
            pass
        await here.close()
        async with agent_of(here, tmp_path) as agent:
            assert (await agent.complete(TextRequest(PROMPT, max_new_tokens=2))).draft == "stranger"
            here.server.weights = "others"
            await here.open()
            await until(lambda: agent.link.up)
            assert agent.link.welcome.weights == "others"
            assert (await agent.complete(TextRequest(PROMPT))).text == STORY


class Fragile(ModelDrafter):
    """Breaks where it is told to."""

    broken = False

    def prepare(self, sessions: Any) -> list[bool]:
        if self.broken:
            raise ZeroDivisionError
        return super().prepare(sessions)


async def test_a_draft_that_breaks_ends_its_text_with_an_error(tmp_path: Path) -> None:
    model = tiny_llama(vocab_size=257)
    drafter = Fragile(model, "fragile", catalog.fingerprint(byte_tokenizer(TEMPLATE)))
    async with place() as here:
        async with agent_of(here, tmp_path, drafter=drafter):
            pass
        await here.close()
        async with agent_of(here, tmp_path, drafter=drafter) as agent:
            drafter.broken = True
            with pytest.raises(ModelError, match="cannot go on with this text"):
                await agent.complete(TextRequest(PROMPT, max_new_tokens=9))


async def test_a_text_goes_on_with_a_draft_that_was_exchanged(tmp_path: Path) -> None:
    async with place() as here:
        async with agent_of(here, tmp_path):
            pass
        await here.close()
        async with agent_of(here, tmp_path) as agent:
            swapping: list[asyncio.Task[None]] = []

            def hear(piece: Piece) -> None:
                if not swapping:
                    swapping.append(asyncio.create_task(agent.swap(draft(seed=6))))

            completion = await agent.complete(TextRequest(PROMPT, max_new_tokens=40, ignore_eos=True), hear)
            await asyncio.gather(*swapping)
            assert len(completion.tokens) == 40


@contextlib.asynccontextmanager
async def api(agent: Agent) -> AsyncIterator[AsyncOpenAI]:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(agent, "127.0.0.1", 0, ready.set_result))
    async with AsyncOpenAI(base_url=await ready, api_key="none", max_retries=0) as client:
        yield client
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def told(client: AsyncOpenAI, path: str) -> tuple[int, str]:
    answer = await client._client.get(str(client.base_url).removesuffix("v1/") + path)
    return answer.status_code, answer.text


MARK = {"verified": False, "model": "stranger"}


@pytest.mark.parametrize("kind", ["chat", "text"])
async def test_every_answer_of_the_api_is_marked_while_there_is_no_server(kind: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"model": "counter", "max_tokens": 5, "temperature": 0}
    async with place() as here, agent_of(here, tmp_path) as agent, api(agent) as client:
        if kind == "chat":
            create: Any = client.chat.completions
            asked |= {"messages": [{"role": "user", "content": PROMPT}]}
        else:
            create = client.completions
            asked |= {"prompt": PROMPT}

        async def whole() -> tuple[Any, str | None]:
            raw = await create.with_raw_response.create(**asked, n=2)
            return raw.parse(), raw.headers.get("X-GoodSpeed-Verified")

        async def chunks() -> tuple[list[Any], str | None]:
            raw = await create.with_raw_response.create(**asked, stream=True, stream_options={"include_usage": True})
            return [chunk async for chunk in raw.parse()], raw.headers.get("X-GoodSpeed-Verified")

        async def look(mark: dict[str, Any] | None, model: str, header: str | None) -> None:
            answer, said = await whole()
            streamed, said_first = await chunks()
            assert said == said_first == header
            assert len(streamed) > 3
            for one in (answer, *streamed):
                assert one.model == model
                assert (one.model_extra or {}).get("goodspeed") == mark

        await look(None, "counter", None)
        assert await told(client, "health") == (200, '{"status":"ok"}')
        await here.close()
        await until(lambda: agent.link.alone)
        await look(MARK, "stranger", "false")
        status, text = await told(client, "health")
        assert (status, json.loads(text)) == (200, {"status": "offline", **MARK})
        _, metrics = await told(client, "metrics")
        lines = metrics.splitlines()
        assert {"goodspeed_agent_offline 1.0", "goodspeed_agent_linked 0.0"} <= set(lines)
        assert "goodspeed_request_unverified_total 3.0" in lines
        assert (await client.models.list()).data[0].id == "counter"
        await here.open()
        await until(lambda: agent.link.up)
        await look(None, "counter", None)
        assert "goodspeed_agent_offline 0.0" in (await told(client, "metrics"))[1]


async def test_an_api_that_starts_without_a_server_answers_too(tmp_path: Path) -> None:
    async with place() as here:
        async with agent_of(here, tmp_path):
            pass
        await here.close()
        async with agent_of(here, tmp_path) as agent, api(agent) as client:
            answer = await client.completions.create(model="counter", prompt=PROMPT, max_tokens=3)
            assert (answer.model, answer.model_extra) == ("stranger", {"goodspeed": MARK, "metrics": ANY_METRICS})
            await here.open()
            await until(lambda: agent.link.up)
            again = await client.completions.create(model="counter", prompt=PROMPT, max_tokens=3)
            assert (again.model, again.choices[0].text) == ("counter", STORY[:3])


class _Anything:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


ANY_METRICS = _Anything()


async def test_what_a_server_was_is_remembered_by_its_address(tmp_path: Path) -> None:
    cache, server = TokenizerCache(tmp_path), FakeServer()
    welcome = server.welcome()
    assert cache.recall([NOBODY]) is None
    cache.remember(NOBODY, welcome)
    assert cache.recall([NOBODY]) is None  # its tokenizer is not here
    cache.store(welcome.tokenizer, server.files)
    assert cache.recall(["ws://another:1", NOBODY]) == (welcome, server.files)
    (file,) = (tmp_path / "servers").iterdir()
    file.write_bytes(b"\xc1")
    assert cache.recall([NOBODY]) is None
    cache.remember(NOBODY, welcome)
    assert cache.recall([NOBODY]) == (welcome, server.files)
