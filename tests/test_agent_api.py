"""The agent's OpenAI-compatible API, before a real server, by the official client over real sockets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import TextRequest
from goodspeed_agent.api.replies import Reply
from goodspeed_agent.report import Completion, Speculation
from tests.api_world import MESSAGES, MODEL, PROMPT, RENDERED, api
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
    assert about["num_spec_tokens"] + 1 == len(about["acceptance_histogram"])


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
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].model_dump()["metrics"]["speculative_decoding"]["num_spec_steps"] > 0
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


async def test_a_stream_whose_usage_nobody_asked_for_tells_of_its_drafts_in_its_last_chunk(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "prompt": PROMPT, "max_tokens": 10, "temperature": 0, "n": 2, "extra_body": {"ignore_eos": True}
    }  # fmt: skip
    async with api(tmp_path) as here:
        whole = await here.client.completions.create(**asked)
        chunks = [chunk async for chunk in await here.client.completions.create(**asked, stream=True)]
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)
    *others, last = [chunk.model_dump() for chunk in chunks]
    # How many were drafted is a matter of time.
    told, of_whole = last["metrics"]["speculative_decoding"], whole.model_dump()["metrics"]["speculative_decoding"]
    assert told.keys() == of_whole.keys()
    assert 0 < told["num_sent_tokens"] <= told["num_draft_tokens"]
    assert sum(told["acceptance_histogram"]) == told["num_spec_steps"]
    assert last["choices"][0]["finish_reason"] == "length"
    assert not any("metrics" in chunk for chunk in others)
    assert not any(chunk.usage for chunk in chunks)


def about(speculation: Speculation) -> dict[str, Any]:
    """What a text that was drafted for so is told of it."""
    answer = Reply("text", MODEL, lambda token: b"").whole([Completion("x", [1], "stop", 1, speculation)], 1)
    found: dict[str, Any] = answer["metrics"]["speculative_decoding"]
    return found


def test_a_histogram_has_a_place_for_every_length_that_was_asked_for() -> None:
    assert about(Speculation(9, [2, 1], 9, num_spec_tokens=4))["acceptance_histogram"] == [2, 1, 0, 0, 0]
    assert about(Speculation(9, [0] * 4 + [1], 9, num_spec_tokens=4))["acceptance_histogram"] == [0, 0, 0, 0, 1]


def test_where_nothing_was_drafted_clients_still_read_numbers() -> None:
    assert about(Speculation(num_sent_tokens=3, num_spec_tokens=2)) == {
        "num_spec_steps": 0, "num_draft_tokens": 0, "num_sent_tokens": 3, "num_spec_tokens": 2,
        "mean_acceptance_length": 1.0, "draft_acceptance_rate": 0.0, "acceptance_histogram": [0, 0, 0],
        "num_accepted_draft_tokens": 0,
    }  # fmt: skip


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


async def test_a_text_without_a_bound_ends_with_the_servers_room(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        answer = await here.client.chat.completions.create(
            model=MODEL, messages=MESSAGES, temperature=0, extra_body={"ignore_eos": True}
        )
    assert answer.usage is not None
    assert answer.usage.total_tokens == CONTEXT
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("prompt", [[5, 17, 3], [[5, 17, 3]], [PROMPT]])
async def test_a_prompt_may_be_tokens(prompt: Any, tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 5, "temperature": 0, "extra_body": {"ignore_eos": True}}
        expected = await here.client.completions.create(prompt=PROMPT, **asked)
        answer = await here.client.completions.create(prompt=prompt, **asked)
    assert answer.choices[0].text == expected.choices[0].text


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
