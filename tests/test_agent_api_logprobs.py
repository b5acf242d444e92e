"""Log-probabilities, as clients of the API are told them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.api_world import MESSAGES, MODEL, PROMPT, RENDERED, api


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
