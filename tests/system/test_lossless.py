"""The text depends on target, prompt, parameters and seed: not on drafter, budget, company or a server's death."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from bench.workloads import load_prompts
from goodspeed.catalog import DEFAULT_TARGET, bundled, load_model
from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.drafters import Drafter, load_drafter
from goodspeed_agent.tokenizer import TokenizerCache
from tests.system.processes import address_of, server, start_server

PROMPTS = [prompt.text for prompt in load_prompts()]
DRAFTERS = ["none", "suffix", *(model.name for model in bundled() if model.role == "draft")]
WARM = SamplingParams(temperature=0.8, top_p=0.95, seed=11)
COLD = SamplingParams()
NEW_TOKENS = 32


@cache
def target() -> PreTrainedModel:
    return load_model(DEFAULT_TARGET, device="cpu", dtype="float32")


@cache
def loaded(drafter: str) -> Drafter:
    return load_drafter(drafter)


def target_alone(prompt: Sequence[int]) -> list[int]:
    """transformers' own greedy text."""
    with torch.inference_mode():
        output = target().generate(torch.tensor([list(prompt)]), max_new_tokens=NEW_TOKENS, do_sample=False)  # type: ignore[operator]
    return output[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


async def write(
    address: str, cache: Path, drafter: str, params: SamplingParams, prompts: Sequence[str]
) -> list[list[int]]:
    """One agent writes to all prompts at once, and drafts ahead whether it pays or not."""
    async with Agent(address, loaded(drafter), cache=TokenizerCache(cache), draft_ahead="on") as agent:
        requests = [TextRequest(prompt, params, max_new_tokens=NEW_TOKENS) for prompt in prompts]
        return [done.tokens for done in await asyncio.gather(*(agent.complete(request) for request in requests))]


@pytest.mark.parametrize(
    "schedule",
    [
        ("--scheduler=goodspeed", "--capacity=0"),
        ("--scheduler=goodspeed", "--capacity=3"),
        ("--scheduler=goodspeed", "--capacity=64"),
        ("--scheduler=seconds",),
    ],
)
async def test_every_drafter_writes_the_same_text(schedule: Sequence[str], tmp_path: Path) -> None:
    prompts = PROMPTS[:2]
    async with server(*schedule, "--dtype", "float32") as address:
        for params in (COLD, WARM):
            texts = [await write(address, tmp_path, drafter, params, prompts) for drafter in DRAFTERS]
            assert texts == [texts[0]] * len(DRAFTERS)
            if params is COLD:
                async with Agent(address, load_drafter("none"), cache=TokenizerCache(tmp_path)) as agent:
                    ids = [agent.tokenizer.encode(prompt) for prompt in prompts]
                assert texts[0] == [target_alone(prompt) for prompt in ids]


@pytest.mark.parametrize(
    ("choices", "params"),
    [
        (("--scheduler=goodspeed", "--layout=packed"), COLD),
        (("--scheduler=goodspeed", "--layout=padded"), WARM),
        (("--scheduler=seconds",), WARM),
    ],
)
async def test_company_does_not_change_a_text(choices: Sequence[str], params: SamplingParams, tmp_path: Path) -> None:
    async with server(*choices, "--dtype", "float32") as address:
        alone = await write(address, tmp_path, "none", params, PROMPTS[:1])
        company = await asyncio.gather(
            *(write(address, tmp_path, drafter, params, PROMPTS[:3]) for drafter in DRAFTERS)
        )
    assert all(texts[0] == alone[0] for texts in company)
    assert all(texts == company[0] for texts in company)


async def test_a_server_that_dies_costs_no_token(tmp_path: Path) -> None:
    first = await start_server("--dtype", "float32")
    address = await address_of(first)
    port = int(address.rsplit(":", 1)[1])
    async with Agent(address, load_drafter("suffix"), cache=TokenizerCache(tmp_path)) as agent:
        begun = asyncio.Event()

        def heard(_text: str, tokens: list[int]) -> None:
            if tokens:
                begun.set()

        request = TextRequest(PROMPTS[0], WARM, max_new_tokens=200, ignore_eos=True)
        writing = asyncio.create_task(agent.complete(request, heard))
        await begun.wait()
        first.kill()
        await first.wait()
        second = await start_server("--dtype", "float32", port=port)
        try:
            await address_of(second)
            interrupted = await writing
            assert agent.link.reconnections == 1
            assert (await agent.complete(request)).tokens == interrupted.tokens
        finally:
            second.kill()
            await second.wait()
