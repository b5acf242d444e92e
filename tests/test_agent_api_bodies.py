"""What clients ask for is taken as they mean it, or refused by the name of its field."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from goodspeed_agent.agent import TextRequest
from goodspeed_agent.api.bodies import read_chat, read_completion
from goodspeed_agent.api.errors import BadField
from tests.api_world import MESSAGES, MODEL, PROMPT, api


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


@pytest.mark.parametrize("prompt", [[], [[]], ["x", 1], [1, [2]], 5, [True, "x"]])
def test_a_prompt_that_is_none_is_refused(prompt: object) -> None:
    with pytest.raises(BadField):
        read_completion(json.dumps({"prompt": prompt}).encode(), MODEL)


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
