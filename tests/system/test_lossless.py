"""The text depends on target, prompt, parameters and seed: not on drafter, policy, company or a server's death."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from goodspeed.catalog import DEFAULT_TARGET, bundled, load_model, tokenizer_files
from goodspeed.sampling import SamplingParams, gumbel, position_keys
from goodspeed.scenarios.prompts import bundled_prompts
from goodspeed.scheduling import SCHEDULERS
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.drafters import Drafter, load_drafter
from goodspeed_agent.report import Completion
from goodspeed_agent.tokenizer import TargetTokenizer, TokenizerCache
from goodspeed_bench.target import PassTime
from goodspeed_server.settings import LayoutName, RoundsName
from tests.system.one_target import Policy
from tests.system.processes import address_of, one_target, reaped, server, start_server

PROMPTS = [prompt.text for prompt in bundled_prompts()]
DRAFTERS = ["none", "suffix", *(model.name for model in bundled() if model.role == "draft")]
COLD = SamplingParams()
WARM = SamplingParams(temperature=0.8, top_p=0.95, seed=11)
NEW_TOKENS = 16
TEXTS = [
    TextRequest(prompt, params, max_new_tokens=NEW_TOKENS)
    for prompt, params in itertools.product(PROMPTS[:2], (COLD, WARM))
]
POLICIES = [
    (scheduler, rounds, ("packed", "padded")[(i + j) % 2])
    for i, scheduler in enumerate(SCHEDULERS)
    for j, rounds in enumerate(("barrier", "rolling"))
]
"""Every scheduler with both kinds of rounds, and each of those with both layouts."""
STREAMS = len(DRAFTERS) * len(TEXTS)
PATIENT = Backoff(first_s=0.1, longest_s=0.1, give_up_after_s=300.0)
SLOW = PassTime(fixed_ms=100.0, token_ms=1.0)
"""The bundled target is so quick that a schedule in seconds lets nobody draft; with this one a draft pays."""


class SharedNoise(LogitsProcessor):
    """Has the greedy choice be the coupled rule's draw."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        keys = torch.from_numpy(position_keys([self._seed], [tokens.shape[-1]]))
        return scores + gumbel(keys, torch.arange(scores.shape[-1], dtype=torch.int32))


@cache
def target() -> PreTrainedModel:
    return load_model(DEFAULT_TARGET, device="cpu", dtype="float32")


@cache
def loaded(drafter: str) -> Drafter:
    return load_drafter(drafter)


@cache
def target_alone(prompt: str, params: SamplingParams) -> list[int]:
    """What transformers itself writes: one text, one token at a time."""
    return written_by(target(), prompt, params)


def written_by(target: PreTrainedModel, prompt: str, params: SamplingParams) -> list[int]:
    """The same of a target that has the bundled one's tokenizer."""
    ids = TargetTokenizer(tokenizer_files(DEFAULT_TARGET)).encode(prompt)
    warpers: list[LogitsProcessor] = []
    if not params.greedy:
        warpers = [
            TemperatureLogitsWarper(params.temperature),
            TopPLogitsWarper(params.top_p),
            SharedNoise(params.seed),
        ]
    with torch.inference_mode():
        text = cast(Any, target).generate(
            torch.tensor([ids]),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            logits_processor=LogitsProcessorList(warpers),
        )
    return cast(list[int], text[0, len(ids) :].tolist())


def agent(address: str, drafter: str, cache: Path) -> Agent:
    """It drafts ahead whether it pays or not."""
    return Agent(address, loaded(drafter), cache=TokenizerCache(cache), draft_ahead="on")


async def write_at_once(agent: Agent) -> list[Completion]:
    async with agent:
        return await asyncio.gather(*(agent.complete(text) for text in TEXTS))


async def write_in_turn(agent: Agent) -> list[Completion]:
    async with agent:
        return [await agent.complete(text) for text in TEXTS]


def drafted(texts: Sequence[Completion]) -> int:
    return sum(text.speculation.num_draft_tokens for text in texts)


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Policy], str]]:
    with one_target() as serve:
        yield serve


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return [target_alone(text.prompt, text.params) for text in TEXTS]


@pytest.mark.parametrize("capacity", [0, 3, 64])
async def test_alone_every_drafter_writes_transformers_own_text(
    capacity: int, serve: Callable[[Policy], str], expected: list[list[int]], tmp_path: Path
) -> None:
    address = serve(Policy("goodspeed", capacity=capacity))
    for drafter in DRAFTERS:
        texts = await write_in_turn(agent(address, drafter, tmp_path))
        assert [text.tokens for text in texts] == expected, drafter
        assert (drafted(texts) > 0) == (capacity > 0 and drafter != "none"), drafter


@pytest.mark.parametrize(("scheduler", "rounds", "layout"), POLICIES)
async def test_in_company_under_every_policy_every_text_is_the_same(
    scheduler: str,
    rounds: RoundsName,
    layout: LayoutName,
    serve: Callable[[Policy], str],
    expected: list[list[int]],
    tmp_path: Path,
) -> None:
    priced = scheduler == "seconds"
    policy = Policy(
        scheduler, rounds, layout, capacity=None if priced else 2 * STREAMS, streams=STREAMS,
        pass_time=SLOW if priced else None,
    )  # fmt: skip
    address = serve(policy)
    company = await asyncio.gather(*(write_at_once(agent(address, drafter, tmp_path)) for drafter in DRAFTERS))
    for drafter, texts in zip(DRAFTERS, company, strict=True):
        assert [text.tokens for text in texts] == expected, drafter
    assert (sum(map(drafted, company)) > 0) == (scheduler != "plain")


async def test_under_the_ratio_rule_greedy_text_is_the_targets_though_the_server_waits_for_nobody(
    serve: Callable[[Policy], str], expected: list[list[int]], tmp_path: Path
) -> None:
    """It overtakes some of the drafts, and verifies what outlives that."""
    address = serve(Policy("seconds", "rolling", rule="ratio", streams=len(DRAFTERS), pass_time=SLOW))
    greedy = [(text, tokens) for text, tokens in zip(TEXTS, expected, strict=True) if text.params.greedy]

    async def write(drafter: str) -> list[Completion]:
        async with agent(address, drafter, tmp_path) as it:
            return [await it.complete(text) for text, _ in greedy]

    company = await asyncio.gather(*map(write, DRAFTERS))
    for drafter, texts in zip(DRAFTERS, company, strict=True):
        assert [text.tokens for text in texts] == [tokens for _, tokens in greedy], drafter
    assert sum(text.speculation.num_accepted_tokens for texts in company for text in texts) > 0


async def test_a_server_that_dies_costs_no_token(tmp_path: Path) -> None:
    options = ("--dtype", "float32", "--scheduler", "goodspeed", "--max-streams", "2")
    request = TextRequest(PROMPTS[0], WARM, max_new_tokens=200, ignore_eos=True)
    begun = asyncio.Event()

    def heard(piece: Piece) -> None:
        if piece.tokens:
            begun.set()

    async with reaped(await start_server(*options)) as first:
        address = await address_of(first)
        async with Agent(address, loaded("suffix"), cache=TokenizerCache(tmp_path), backoff=PATIENT) as agent:
            writing = asyncio.create_task(agent.complete(request, heard))
            await begun.wait()
            first.kill()
            await first.wait()
            async with server(*options, port=int(address.rsplit(":", 1)[1])):
                interrupted = await writing
                assert agent.link.reconnections == 1
                assert drafted([interrupted]) > 0
                assert (await agent.complete(request)).tokens == interrupted.tokens
