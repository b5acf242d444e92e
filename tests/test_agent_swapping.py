"""Another drafter in the middle of a text: the text goes on as it would have, and what was believed is forgotten."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from goodspeed import catalog
from goodspeed.errors import ModelError, TokenizerMismatch
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.drafters import Drafter, NoDrafter, SuffixDrafter
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.lookahead import Calibration
from goodspeed_agent.reloading import reloading
from goodspeed_agent.tokenizer import TokenizerCache
from tests.serving import serving, tiny_settings, tiny_tokenizer
from tests.tiny_models import tiny_llama

QUICK = Backoff(first_s=0.01, longest_s=0.01, give_up_after_s=60.0)
PROMPT = "w5 w17 w3 w60 w2"
WARM = SamplingParams(temperature=0.8, top_p=0.95, seed=11)


def model_drafter(name: str, seed: int = 0) -> ModelDrafter:
    return ModelDrafter(tiny_llama(seed=seed), name, catalog.fingerprint(tiny_tokenizer()))


def agent_of(address: str, drafter: Drafter, folder: Path) -> Agent:
    return Agent(address, drafter, cache=TokenizerCache(folder), backoff=QUICK)


async def swapped_after_four_tokens(agent: Agent, new: Drafter) -> list[int]:
    """Generate a text and swap in its middle."""
    swaps: list[asyncio.Task[None]] = []
    count = 0

    def on_text(_: str, tokens: list[int]) -> None:
        nonlocal count
        count += len(tokens)
        if count >= 4 and not swaps:
            swaps.append(asyncio.create_task(agent.swap(new)))

    completion = await agent.complete(TextRequest(PROMPT, WARM, max_new_tokens=40), on_text)
    await swaps[0]
    return completion.tokens


@pytest.mark.parametrize("rounds", ["barrier", "rolling"])
async def test_a_text_goes_on_as_it_would_have(rounds: str, tmp_path: Path) -> None:
    settings = tiny_settings(scheduler="seconds", rounds={"rounds": rounds, "capacity": 16})
    async with serving(settings) as (server, address):
        async with agent_of(address, NoDrafter(), tmp_path) as agent:
            expected = (await agent.complete(TextRequest(PROMPT, WARM, max_new_tokens=40))).tokens
        for old, new in (
            (model_drafter("stranger", seed=5), model_drafter("target")),
            (model_drafter("target"), model_drafter("stranger", seed=5)),
            (SuffixDrafter(), model_drafter("target")),
        ):
            async with agent_of(address, old, tmp_path) as agent:
                assert await swapped_after_four_tokens(agent, new) == expected
                row = next(row for row in server.snapshot().agents if row.drafter == new.name)
                assert row.state == "ok"


@pytest.mark.parametrize("rule", ["coupled", "ratio"])
async def test_the_server_learns_anew_how_often_it_accepts(rule: Rule, tmp_path: Path) -> None:
    stranger = model_drafter("stranger", seed=5)
    async with serving(tiny_settings(rule=rule)) as (server, address), agent_of(address, stranger, tmp_path) as agent:
        await agent.complete(TextRequest(PROMPT, max_new_tokens=20))
        account = next(iter(server._telemetry._meters))
        assert account.prior_alpha < PRIOR_ALPHA - 0.05
        await agent.swap(model_drafter("target"))
        completion = await agent.complete(TextRequest(PROMPT, max_new_tokens=20))
        assert completion.speculation.num_accepted_tokens > 0
        assert account.drafter == "target"
        assert account.prior_alpha > PRIOR_ALPHA


async def test_a_link_that_is_made_again_greets_with_the_new_drafter(tmp_path: Path) -> None:
    async with serving() as (server, address), agent_of(address, SuffixDrafter(), tmp_path) as agent:
        await agent.swap(model_drafter("target"))
        for link in list(server._links):
            link.abort()
        await agent.complete(TextRequest(PROMPT, max_new_tokens=8))
        assert [row.drafter for row in server.snapshot().agents] == ["target"]


async def test_a_draft_of_another_tokenizer_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    async with serving() as (server, address), agent_of(address, SuffixDrafter(), tmp_path) as agent:
        with pytest.raises(TokenizerMismatch, match="does not share a tokenizer"):
            await agent.swap(ModelDrafter(tiny_llama(), "foreign", "another"))
        await agent.complete(TextRequest(PROMPT, max_new_tokens=8))
        assert [row.drafter for row in server.snapshot().agents] == ["suffix"]


async def test_sighup_loads_the_draft_anew_and_a_draft_that_is_broken_changes_nothing(tmp_path: Path) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    loads: Iterator[Drafter | ModelError] = iter([model_drafter("target"), ModelError("it is broken")])

    def load() -> Drafter:
        loaded = next(loads)
        if isinstance(loaded, ModelError):
            raise loaded
        return loaded

    async with serving() as (server, address), agent_of(address, SuffixDrafter(), tmp_path) as agent:
        with reloading(agent, load, said.put_nowait):
            os.kill(os.getpid(), signal.SIGHUP)
            assert await said.get() == "drafting with target as it is now"
            os.kill(os.getpid(), signal.SIGHUP)
            assert await said.get() == "the draft stays as it is: it is broken"
        await agent.complete(TextRequest(PROMPT, max_new_tokens=8))
        assert [row.drafter for row in server.snapshot().agents] == ["target"]


def test_a_calibration_that_restarts_believes_confidences_again() -> None:
    fresh, used = Calibration(), Calibration()
    for _ in range(100):
        used.observe(0.75, right=False)
    assert used.chance(0.75) < 0.1
    used.restart()
    assert used.chance(0.75) == fresh.chance(0.75)
