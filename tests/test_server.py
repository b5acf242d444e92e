"""The server over real sockets, spoken to message by message."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import pytest
import torch

from goodspeed.messages import Draft, GetTokenizer, Tokenizer, Verdict
from goodspeed.sampling import SamplingParams
from tests.serving import linked, serving, tiny_settings, tiny_tokenizer
from tests.tiny_models import tiny_llama

PROMPT = [3, 14, 15, 92, 65, 35, 8, 9]


def target_text(prompt: Sequence[int], size: int) -> list[int]:
    """What transformers' own greedy generate writes."""
    return _target_text(tuple(prompt), size)[:]


@cache
def _target_text(prompt: tuple[int, ...], size: int) -> list[int]:
    model = cast(Any, tiny_llama())
    output = model.generate(torch.tensor([prompt]), max_new_tokens=size, do_sample=False, eos_token_id=None)
    return cast(list[int], output[0, len(prompt) :].tolist())


async def test_greedy_output_is_the_targets_whatever_is_drafted() -> None:
    text = target_text(PROMPT, 24)
    wrong = [token if index % 3 else (token + 1) % 97 for index, token in enumerate(text)]
    async with serving() as (_, address), linked(address) as peer:
        for stream, guess in enumerate((text, wrong, [])):
            assert await peer.generate(stream, PROMPT, guess, max_new_tokens=24) == text
        assert await peer.generate(9, PROMPT, max_new_tokens=24, max_draft=0) == text


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(0.8, 0.95, seed=7), SamplingParams(1.0, seed=1)])
async def test_output_is_the_same_alone_and_in_company(layout: str, params: SamplingParams) -> None:
    prompts = [[(7 * i + j) % 97 for j in range(3 + 5 * i)] for i in range(4)]
    async with serving(tiny_settings(layout=layout, rounds={"prefill_chunk": 4})) as (_, address):

        async def run(index: int, guess: Sequence[int]) -> list[int]:
            async with linked(address) as peer:
                return await peer.generate(0, prompts[index], guess, max_new_tokens=20, params=params)

        alone = [await run(index, []) for index in range(4)]
        company = await asyncio.gather(*(run(index, alone[index]) for index in range(4)))
    assert company == alone


async def test_the_tokenizer_comes_by_digest() -> None:
    async with serving() as (_, address), linked(address, greet=False) as peer:
        welcome = await peer.greet()
        await peer.send(GetTokenizer())
        answer = await peer.expect(Tokenizer)
    assert answer == Tokenizer(welcome.tokenizer, tiny_tokenizer())


async def test_a_stale_draft_is_answered_with_the_missing_suffix() -> None:
    text = target_text(PROMPT, 8)
    async with serving() as (_, address), linked(address) as peer:
        opened = await peer.open(0, PROMPT)
        await peer.send(Draft(0, opened.base, text[: opened.budget]))
        first = await peer.expect(Verdict)
        await peer.send(Draft(0, opened.base, text[: opened.budget]))
        again = await peer.expect(Verdict)
    known = first.accepted + len(first.tokens)
    assert (again.base, again.accepted, again.tokens) == (opened.base, 0, text[:known])
