"""The agent's OpenAI-compatible API, before a real server, by the official client over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import TextRequest
from goodspeed_agent.api import serving as serving_module
from goodspeed_agent.api.bodies import read_chat, read_completion
from goodspeed_agent.api.errors import BadField
from tests.api_world import MESSAGES, MODEL, PROMPT, RENDERED, api, held, send
from tests.tiny_models import CONTEXT


async def test_a_completion_is_the_agents_own(tmp_path: Path) -> None:
    params = SamplingParams(temperature=0.7, top_p=0.9, seed=5)
    async with api(tmp_path) as here:
        expected = await here.agent.complete(TextRequest(PROMPT, params, max_new_tokens=12, ignore_eos=True))
        answer = await here.client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0.7, top_p=0.9, seed=5,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.index) == (expected.text, "length", 0)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 12, 15)
    assert (answer.object, answer.model, answer.id[:5]) == ("text_completion", MODEL, "cmpl-")
    about = answer.model_dump()["metrics"]["speculative_decoding"]
    assert about["num_spec_steps"] == sum(about["acceptance_histogram"]) > 0
    assert about["num_draft_tokens"] >= about["num_accepted_draft_tokens"] > 0
    assert about["num_sent_tokens"] >= about["num_draft_tokens"]
    assert about["num_spec_tokens"] + 1 >= len(about["acceptance_histogram"])


async def test_a_conversation_goes_through_the_targets_template(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        plain = await here.agent.complete(TextRequest(RENDERED, max_new_tokens=9, ignore_eos=True))
        answer = await here.client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_completion_tokens=9, temperature=0, extra_body={"ignore_eos": True}
        )
    assert answer.choices[0].message.content == plain.text
    assert (answer.choices[0].message.role, answer.object) == ("assistant", "chat.completion")


async def test_chunks_add_up_to_the_whole(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "messages": MESSAGES, "max_tokens": 10, "seed": 4, "n": 2, "extra_body": {"ignore_eos": True}
    }  # fmt: skip
    async with api(tmp_path) as here:
        whole = await here.client.chat.completions.create(**asked)
        stream = await here.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    texts, ends = ["", ""], {}
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason is not None:
            ends[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert ends == {0: "length", 1: "length"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert chunks[-1].model_dump()["metrics"]["speculative_decoding"]["num_spec_steps"] > 0
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


async def test_events_end_with_done(tmp_path: Path) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 3, "stream": True, "ignore_eos": True}
    async with api(tmp_path) as here:
        status, headers, content = await here.raw("/v1/completions", json.dumps(body).encode())
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert content.rstrip(b"\r\n0").endswith(b"data: [DONE]")


async def test_choices_of_several_prompts_stand_in_order(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 6, "seed": 2, "extra_body": {"ignore_eos": True}}
        both = await here.client.completions.create(prompt=[PROMPT, "w8 w8"], n=2, **asked)
        alone = await here.client.completions.create(prompt="w8 w8", n=2, **asked)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices[2:]] == [choice.text for choice in alone.choices]
    assert both.usage is not None
    assert (both.usage.prompt_tokens, both.usage.completion_tokens) == (5, 24)


async def test_a_stop_string_ends_a_text(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        asked: dict[str, Any] = {
            "model": MODEL, "prompt": PROMPT, "max_tokens": 20, "temperature": 0, "extra_body": {"ignore_eos": True}
        }  # fmt: skip
        whole = (await here.client.completions.create(**asked)).choices[0].text
        stop = whole.split()[4]
        cut = (await here.client.completions.create(**asked, stop=[stop, "nowhere"])).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[: whole.index(stop)], "stop")


async def test_penalties_and_biases_reach_the_target(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}
    }  # fmt: skip
    async with api(tmp_path) as here:
        forced = await here.client.completions.create(**asked, logit_bias={"33": 100})
        varied = await here.client.completions.create(**asked, logit_bias={"33": 100, "34": 99}, frequency_penalty=2)
        with pytest.raises(openai.BadRequestError, match="frequency_penalty is 3"):
            await here.client.completions.create(**asked, frequency_penalty=3)
        with pytest.raises(openai.BadRequestError, match="names tokens by their numbers"):
            await here.client.completions.create(**asked, logit_bias={"w33": 1})
        with pytest.raises(openai.BadRequestError, match="token id 5000 is out of range"):
            await here.client.completions.create(**asked, logit_bias={"5000": 1})
    assert forced.choices[0].text.split() == ["w33"] * 12
    assert set(varied.choices[0].text.split()) == {"w33", "w34"}


async def test_log_probabilities_stand_beside_their_tokens(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "messages": MESSAGES, "max_tokens": 6, "temperature": 0, "extra_body": {"ignore_eos": True},
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    async with api(tmp_path) as here:
        whole = (await here.client.chat.completions.create(**asked)).choices[0]
        stream = await here.client.chat.completions.create(**asked, stream=True)
        pieces = [choice async for chunk in stream for choice in chunk.choices]
        text = (
            await here.client.completions.create(
                model=MODEL, prompt=RENDERED, max_tokens=6, temperature=0, logprobs=1, extra_body={"ignore_eos": True}
            )
        ).choices[0]
    assert whole.logprobs is not None
    content = whole.logprobs.content
    assert content is not None
    assert [entry.token for entry in content] == (whole.message.content or "").split()
    for entry in content:
        assert bytes(entry.bytes or []).decode() == entry.token
        # Greedily the token is the likeliest.
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
    streamed = [entry for piece in pieces if piece.logprobs for entry in piece.logprobs.content or []]
    assert [entry.token for entry in streamed] == [entry.token for entry in content]
    assert text.logprobs is not None
    assert text.logprobs.tokens == [entry.token for entry in content]
    assert text.logprobs.token_logprobs == pytest.approx([entry.logprob for entry in content], abs=1e-4)
    assert text.logprobs.text_offset is not None
    assert text.logprobs.top_logprobs is not None
    assert [len(likeliest) for likeliest in text.logprobs.top_logprobs] == [1] * 6
    for entry, offset in zip(content, text.logprobs.text_offset, strict=True):
        assert text.text[offset:].lstrip().startswith(entry.token)


async def test_the_chosen_token_is_among_the_likeliest_of_a_completion(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        answer = await here.client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0, logprobs=0, extra_body={"ignore_eos": True}
        )
        drawn = await here.client.completions.create(
            model=MODEL,
            prompt=PROMPT,
            max_tokens=12,
            temperature=2,
            seed=1,
            logprobs=1,
            extra_body={"ignore_eos": True},
        )
    sizes: set[int] = set()
    for logprobs in (answer.choices[0].logprobs, drawn.choices[0].logprobs):
        assert logprobs is not None
        assert logprobs.tokens
        assert logprobs.token_logprobs
        assert logprobs.top_logprobs
        chosen = [likeliest[token] for token, likeliest in zip(logprobs.tokens, logprobs.top_logprobs, strict=True)]
        assert chosen == logprobs.token_logprobs
        sizes.update(map(len, logprobs.top_logprobs))
    assert sizes == {1, 2}, "some token was not the likeliest"


async def test_a_text_without_a_bound_ends_with_the_servers_room(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        answer = await here.client.chat.completions.create(
            model=MODEL, messages=MESSAGES, temperature=0, extra_body={"ignore_eos": True}
        )
    assert answer.usage is not None
    assert answer.usage.total_tokens == CONTEXT
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("when", ["before anything is answered", "at the first chunk"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_ends_its_texts_at_the_server(when: str, stream: bool, tmp_path: Path) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 90, "stream": stream, "ignore_eos": True, "n": 3}
    async with api(tmp_path) as here:
        for _ in range(3):
            # Nothing is drafted meanwhile, so that the texts are under way for as long as needed.
            go_on = asyncio.Event()
            if when == "at the first chunk":
                go_on.set()
            async with held(here, go_on):
                reader, writer = await send(here.port, body)
                await here.streams(3)
                if stream and go_on.is_set():
                    await reader.readuntil(b"data: ")
                go_on.clear()
                writer.transport.abort()
                await here.streams(0)
        # What was being guessed for a text that nobody wants any more ends a step later.
        while "goodspeed_num_requests_running 0.0" not in (await here.raw("/metrics"))[2].decode():
            await asyncio.sleep(0)
        assert here.agent.link._channels == {}


async def test_texts_that_are_still_written_when_the_agent_ends_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "_DRAIN_S", 0.05)
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 90, "stream": True, "ignore_eos": True}
    async with api(tmp_path) as here:
        go_on = asyncio.Event()
        go_on.set()
        async with held(here, go_on):
            reader, writer = await send(here.port, body)
            await reader.readuntil(b"data: ")
            go_on.clear()
            here.serving.cancel()
            rest = await reader.read()
            writer.close()
            with contextlib.suppress(asyncio.CancelledError):
                await here.serving
    assert b"the agent was told to end" in rest
    assert b"[DONE]" not in rest


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Host: localhost:1", 200),
        ("Host: [::1]:1", 200),
        ("Host: evil.example", 403),
        ("Host: localhost\r\nOrigin: http://evil.example", 403),
        ("Host: localhost\r\nOrigin: null", 403),
        ("Host: localhost\r\nOrigin: http://localhost:3000", 200),
    ],
)
async def test_pages_of_other_sites_are_kept_away(headers: str, status: int, tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(f"GET /v1/models HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
    assert int(answer.split()[1]) == status
    assert ("access-control-allow-origin: http://localhost:3000" in answer) == ("localhost:3000" in headers)


async def test_a_body_that_never_ends_is_nobodys_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with api(tmp_path) as here:
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        writer.transport.abort()
        assert (await here.raw("/health"))[0] == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("prompt", [[5, 17, 3], [[5, 17, 3]], [PROMPT]])
async def test_a_prompt_may_be_tokens(prompt: Any, tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 5, "temperature": 0, "extra_body": {"ignore_eos": True}}
        expected = await here.client.completions.create(prompt=PROMPT, **asked)
        answer = await here.client.completions.create(prompt=prompt, **asked)
    assert answer.choices[0].text == expected.choices[0].text


@pytest.mark.parametrize(
    ("changes", "kind", "param", "sentence"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model", "there is no model 'gpt-4o' here: 'tiny' is served"),
        (
            {"tools": [{"type": "function", "function": {"name": "x"}}]},
            openai.BadRequestError,
            "tools",
            "not supported",
        ),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format", "not supported"),
        ({"temperature": -1}, openai.BadRequestError, "temperature", "temperature is -1"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens", "max_tokens is 0: it must"),
        ({"max_completion_tokens": 0}, openai.BadRequestError, "max_completion_tokens", "max_completion_tokens is 0"),
        ({"top_p": 0}, openai.BadRequestError, "top_p", "top_p is 0"),
        ({"extra_body": {"top_k": -2}}, openai.BadRequestError, "top_k", "top_k is -2"),
        ({"extra_body": {"min_p": 2}}, openai.BadRequestError, "min_p", "min_p is 2"),
        ({"seed": 2**63}, openai.BadRequestError, "seed", "between -9223372036854775808 and 9223372036854775807"),
        ({"seed": -(2**63) - 1}, openai.BadRequestError, "seed", "between -9223372036854775808 and"),
        ({"frequency_penalty": 3}, openai.BadRequestError, "frequency_penalty", "frequency_penalty is 3"),
        ({"presence_penalty": 3}, openai.BadRequestError, "presence_penalty", "presence_penalty is 3"),
        ({"logit_bias": {"5": 101}}, openai.BadRequestError, "logit_bias", "of token 5 is 101"),
        ({"logit_bias": {"5": 1, "05": 2}}, openai.BadRequestError, "logit_bias", "names token 5 twice"),
        ({"logit_bias": {"5000": 1}}, openai.BadRequestError, "logit_bias", "token id 5000 is out of range"),
        ({"messages": [{"content": "x"}]}, openai.BadRequestError, "messages", 'message 1 has no "role"'),
        ({"extra_body": {"temperature": "hot"}}, openai.BadRequestError, "temperature", "temperature: expected `float"),
        ({"extra_body": {"logit_bias": {"5": "1"}}}, openai.BadRequestError, "logit_bias", "logit_bias: expected"),
        ({"n": 0}, openai.BadRequestError, "n", "n is 0"),
        ({"stop": [""]}, openai.BadRequestError, "stop", "a stop string is empty"),
        ({"messages": []}, openai.BadRequestError, "messages", "there are no messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            openai.BadRequestError,
            "messages",
            "no text",
        ),
        ({"messages": [{"role": "user", "content": "w1 " * 2000}]}, openai.BadRequestError, "messages", "shorten it"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature", "did you mean temperature?"),
        ({"extra_body": {"top_k": "many"}}, openai.BadRequestError, "top_k", "expected `int | null`"),
        ({"logprobs": True, "top_logprobs": 21}, openai.BadRequestError, "top_logprobs", "top_logprobs is 21"),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs", "go with logprobs: true"),
        (
            {"extra_body": {"logit_bias": {"1" + "0" * 30: 1}}},
            openai.BadRequestError,
            "logit_bias",
            "there is no such number",
        ),
        ({"stop": ["x"] * 17}, openai.BadRequestError, "stop", "at most 16 strings"),
        ({"n": 129}, openai.BadRequestError, "n", "between 1 and 128 choices"),
        ({"max_tokens": 2**31}, openai.BadRequestError, "max_tokens", "between 1 and 2147483647"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, "stream_options", "stream: true"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    changes: Mapping[str, Any], kind: type[openai.APIStatusError], param: str | None, sentence: str, tmp_path: Path
) -> None:
    asked = {"model": MODEL, "messages": MESSAGES, **changes}
    async with api(tmp_path) as here:
        for stream in (False, True) if "stream_options" not in changes else (False,):
            with pytest.raises(kind, match=sentence) as refused:
                await here.client.chat.completions.create(**asked, stream=stream)
            assert refused.value.param == param
            assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("changes", "param", "sentence"),
    [
        ({"prompt": None}, "prompt", "there is no prompt"),
        ({"prompt": ""}, "prompt", "the prompt is empty"),
        ({"prompt": [[]]}, "prompt", "the prompt is empty"),
        ({"prompt": ["a", ""]}, "prompt", "prompt 2 is empty"),
        ({"prompt": [-1]}, "prompt", "-1, which is no token id"),
        ({"prompt": [[1], [2**40]]}, "prompt", "which is no token id"),
        ({"prompt": [5, 999]}, "prompt", "token id 999 is out of range in the prompt"),
        ({"prompt": "w1 " * 2000}, "prompt", "shorten it"),
        ({"prompt": "\ud800"}, "prompt", "the prompt is not Unicode text"),
        ({"prompt": ["w1"] * 200}, "prompt", "there are 200 prompts"),
        ({"prompt": ["w1"] * 100, "n": 2}, "n", "n is 2 for each of 100 prompts"),
        ({"domain": "\ud800"}, "domain", "the domain is not Unicode text"),
        ({"stop": "\ud800"}, "stop", "a stop string is not Unicode text"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0"),
        ({"logprobs": 21}, "logprobs", "logprobs is 21"),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "did you mean max_tokens?"),
        ({"min_token": 5}, "min_token", "no parameter min_token: (?!.*min_tokens)"),
        ({"stream": True, "stream_options": {"includeusage": True}}, "stream_options", "unknown field `includeusage`"),
    ],
)
async def test_of_a_prompt_too_the_field_is_named(
    changes: Mapping[str, Any], param: str, sentence: str, tmp_path: Path
) -> None:
    async with api(tmp_path) as here:
        body = json.dumps({"prompt": PROMPT} | dict(changes)).encode()
        status, _, content = await here.raw("/v1/completions", body)
    error = json.loads(content)["error"]
    assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert re.search(sentence, error["message"])


@pytest.mark.parametrize("prompts", [["w5 w17", "w3"], [[5, 17], [3]]])
async def test_a_prompt_is_checked_once_and_off_the_loop_however_many_choices_it_has(
    prompts: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: Counter[str] = Counter()
    threads: set[int] = set()

    def counting(name: str) -> None:
        check = getattr(TextRequest, name)

        def counted(request: TextRequest) -> None:
            checked[name] += 1
            threads.add(threading.get_ident())
            check(request)

        monkeypatch.setattr(TextRequest, name, counted)

    async with api(tmp_path) as here:
        for name in ("validate", "validate_options", "validate_prompt"):
            counting(name)
        for stream in (False, True):
            body = {"prompt": prompts, "n": 8, "max_tokens": 1, "stream": stream}
            assert (await here.raw("/v1/completions", json.dumps(body).encode()))[0] == 200
    assert checked == {"validate_options": 2, "validate_prompt": 4}
    assert threading.get_ident() not in threads


def test_seeds_are_those_of_a_signed_number_of_64_bits() -> None:
    for seed in (-(2**63), -1, 0, 2**63 - 1):
        body = {"prompt": "x", "seed": seed, "n": 2}
        first, second = (
            [choice.params.seed for choice in read_completion(json.dumps(body).encode(), MODEL).choices]
            for _ in range(2)
        )
        assert first == second
        assert first[0] != first[1]


async def test_models_and_health_and_what_is_not_there(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        (model,) = (await here.client.models.list()).data
        assert (model.id, (await here.client.models.retrieve(MODEL)).id) == (MODEL, MODEL)
        with pytest.raises(openai.NotFoundError):
            await here.client.models.retrieve("another")
        assert (await here.raw("/health"))[0] == 200
        for path, body, status in (
            ("/v1/nothing", None, 404),
            ("/v1/completions", None, 405),
            ("/v1/models", b"", 405),
        ):
            found, _, content = await here.raw(path, body)
            assert (found, json.loads(content)["error"]["type"]) == (status, "invalid_request_error")
        status, _, content = await here.raw("/v1/completions", b"{")
        assert (status, b"the body is not JSON" in content) == (400, True)
        assert (await here.raw("/v1/completions", b" " * (2**24 + 1)))[0] == 413
        deep = b'{"prompt": "x", "user": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        for body in (deep, b'{"prompt": "x", "\\ud800": 1}', b'{"prompt": "x", "%s": 1}' % (b"y" * 10**6)):
            status, _, content = await here.raw("/v1/completions", body)
            assert (status, len(content) < 500) == (400, True)


async def test_a_link_that_is_lost_for_good_ends_the_api_and_says_so_before(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        begun = asyncio.create_task(
            here.client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=100, extra_body={"ignore_eos": True})
        )
        async with held(here):
            await here.streams(1)
            here.server._drain.begin()  # nobody is let in any more
            for link in list(here.server._links):
                link.abort()
            assert type(await here.agent.link.over()).__name__ == "LinkLost"
        with pytest.raises(openai.InternalServerError, match="no link to"):
            await begun


@pytest.mark.parametrize("prompt", [[], [[]], ["x", 1], [1, [2]], 5, [True, "x"]])
def test_a_prompt_that_is_none_is_refused(prompt: object) -> None:
    with pytest.raises(BadField):
        read_completion(json.dumps({"prompt": prompt}).encode(), MODEL)


def test_what_a_stock_benchmark_sends_is_taken() -> None:
    body = {
        "prompt": "x",
        "repetition_penalty": 1.0,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert read_completion(json.dumps(body).encode(), MODEL).include_usage
    with pytest.raises(BadField, match="repetition_penalty is not supported"):
        read_completion(json.dumps(body | {"repetition_penalty": 1.1}).encode(), MODEL)


def test_who_names_no_seed_gets_another_text_each_time() -> None:
    body = json.dumps({"prompt": "x"}).encode()
    first, second = (read_completion(body, MODEL).choices[0].params for _ in range(2))
    assert first.seed != second.seed
    assert (first.temperature, first.top_p, read_completion(body, MODEL).choices[0].max_new_tokens) == (1.0, 1.0, 16)


def test_fields_that_ask_for_nothing_are_taken() -> None:
    body = {
        "messages": [{"role": "user", "content": "x"}], "tools": None, "tool_choice": "auto", "logit_bias": {},
        "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "user": "me", "metadata": {"a": "b"},
        "response_format": {"type": "text"}, "n": 3, "seed": 7, "stop": "x", "top_k": -1,
    }  # fmt: skip
    asked = read_chat(json.dumps(body).encode(), MODEL)
    seeds = [choice.params.seed for choice in asked.choices]
    assert (seeds[0], len(set(seeds)), seeds[1] in (8, 9)) == (7, 3, False)
    again = read_chat(json.dumps(body | {"seed": 2**63 - 1}).encode(), MODEL)
    assert all(0 <= choice.params.seed < 2**63 for choice in again.choices)
    assert (asked.choices[0].stop, asked.choices[0].max_new_tokens, asked.stream) == (("x",), None, False)
    with pytest.raises(BadField, match="not a JSON object"):
        read_chat(b"[]", MODEL)
