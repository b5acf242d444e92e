import json

import pytest

from goodspeed.errors import InvalidRequest
from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import TextRequest
from goodspeed_agent.prompts import PromptLine, read_prompts

DEFAULTS = TextRequest("-", SamplingParams(temperature=0.5, seed=3), 64, ("END",), True, 5)


def test_a_line_takes_the_defaults_and_overrides_them() -> None:
    two = json.dumps(
        {"prompt": "two", "id": "b", "max_new_tokens": 7, "stop": ["x", "y"], "ignore_eos": False, "max_draft": 0}
        | {"temperature": 0, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "seed": 9}
    )
    lines = [
        b'{"prompt": "one"}',
        b"   ",
        two.encode(),
        b'{"messages": [{"role": "user", "content": "hi"}], "stop": "z", "id": 4}',
    ]
    first, second, third = read_prompts(lines, DEFAULTS)
    assert first == PromptLine(1, None, TextRequest("one", SamplingParams(0.5, seed=3), 64, ("END",), True, 5))
    assert second == PromptLine(3, "b", TextRequest("two", SamplingParams(0, 0.9, 4, 0.1, 9), 7, ("x", "y"), False, 0))
    assert third.request.prompt == [{"role": "user", "content": "hi"}]
    assert (third.number, third.id, third.request.stop) == (4, 4, ("z",))


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b"{", "line 2: Input data was truncated"),
        (b"[]", "line 2: Expected `object`"),
        (b'{"prompt": 3}', r"line 2: Expected `str \| null`, got `int` - at `\$.prompt`"),
        (b'{"prompt": "a", "promt": "b"}', r"line 2: .*unknown field `promt`.*may have prompt, messages, id"),
        (b'{"id": 1}', 'line 2: it needs either "prompt" or "messages"'),
        (b'{"prompt": "a", "messages": []}', 'line 2: it needs either "prompt" or "messages"'),
        (b'{"prompt": ""}', "line 2: the prompt is empty"),
        (b'{"prompt": "a", "temperature": -1}', "line 2: temperature is -1"),
        (b'{"prompt": "a", "max_new_tokens": 0}', "line 2: max_new_tokens is 0"),
        (b'{"prompt": "a", "stop": ""}', "line 2: a stop string is empty"),
        (b'{"prompt": "\xff"}', "line 2: "),
        *(
            (b'{"prompt": "%b"}' % text, "line 2: it has a lone surrogate")
            for text in (rb"a\ud800", rb"\udc00 bcdefgh")
        ),
        (rb'{"prompt": "\ud800", "stop": [', "line 2: JSON is malformed"),
        (b'{"messages": [{"role": "user"}]}', 'line 2: message 1 has no "content"'),
    ],
)
def test_a_bad_line_is_named_by_number(line: bytes, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        read_prompts([b'{"prompt": "good"}', line], DEFAULTS)


def test_all_bad_lines_are_named_up_to_a_few() -> None:
    with pytest.raises(InvalidRequest, match=r"line 1: .*; line 5: .*; and 3 more$"):
        read_prompts([b"?"] * 8, DEFAULTS)


@pytest.mark.parametrize("lines", [[], [b"", b" \n"]])
def test_a_file_without_prompts(lines: list[bytes]) -> None:
    with pytest.raises(InvalidRequest, match="there are no prompts in it"):
        read_prompts(lines, DEFAULTS)
