"""The agent against the real server, in one process: what each rule promises, whatever is drafted."""

from __future__ import annotations

import asyncio
import random
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from goodspeed import catalog
from goodspeed.sampling import SamplingParams
from goodspeed.scheduling import SCHEDULERS, Demand, Plan
from goodspeed.simulation import RoundsKind
from goodspeed.verification import Rule
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.drafters import Drafter, NoDrafter, SuffixDrafter
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.settings import RoundSettings
from tests.serving import serving, tiny_settings, tiny_tokenizer
from tests.tiny_models import tiny_llama

QUICK = Backoff(first_s=0.01, longest_s=0.01, give_up_after_s=60.0)
PROMPTS = [" ".join(f"w{random.Random(seed).randrange(97)}" for _ in range(5 + seed)) for seed in range(3)]
WARM = SamplingParams(temperature=0.8, top_p=0.95, seed=11)
NEW_TOKENS = 20


@cache
def almost_the_target() -> PreTrainedModel:
    """The target with a little noise on every weight: right often, not always."""
    model = tiny_llama()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.03)
    return model


def drafters() -> list[Drafter]:
    vocabulary = catalog.fingerprint(tiny_tokenizer())
    return [
        NoDrafter(),
        SuffixDrafter(),
        ModelDrafter(almost_the_target(), "almost", vocabulary),
        ModelDrafter(tiny_llama(), "target", vocabulary),
        ModelDrafter(tiny_llama(seed=5), "stranger", vocabulary),
    ]


@cache
def target_alone(prompt: str) -> list[int]:
    ids = torch.tensor([[int(word[1:]) for word in prompt.split()]])
    with torch.inference_mode():
        text = tiny_llama().generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)  # type: ignore[operator]
    return text[0, ids.shape[-1] :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", ["coupled", "ratio"])
async def test_greedy_text_is_the_targets_own_with_every_drafter(rule: Rule, tmp_path: Path) -> None:
    async with serving(tiny_settings(rule=rule, max_streams=3)) as (_, address):
        for drafter in drafters():
            async with Agent(address, drafter, cache=TokenizerCache(tmp_path), backoff=QUICK) as agent:
                requests = [TextRequest(prompt, max_new_tokens=NEW_TOKENS) for prompt in PROMPTS]
                completions = await asyncio.gather(*(agent.complete(request) for request in requests))
            assert [completion.tokens for completion in completions] == [target_alone(prompt) for prompt in PROMPTS]
            if drafter.name == "target":
                assert all(completion.speculation.draft_acceptance_rate == 1.0 for completion in completions)


async def test_with_the_coupled_rule_drawn_text_does_not_depend_on_the_drafter(tmp_path: Path) -> None:
    texts = set()
    async with serving() as (_, address):
        for drafter in drafters():
            async with Agent(address, drafter, cache=TokenizerCache(tmp_path), backoff=QUICK) as agent:
                completion = await agent.complete(TextRequest(PROMPTS[0], WARM, max_new_tokens=NEW_TOKENS))
            texts.add(tuple(completion.tokens))
    assert len(texts) == 1


class Priced:
    """Asks for long drafts, and prices their tokens so that only likely ones are sent."""

    def __init__(self) -> None:
        self.budgets = 0

    def plan(self, demand: Demand, capacity: int) -> Plan:
        budgets = np.minimum(demand.limit, 6)
        self.budgets += int(budgets.sum())
        return Plan(budgets, 0.0, np.full(len(demand), 0.4))


@pytest.mark.parametrize("rounds", get_args(RoundsKind))
@pytest.mark.parametrize("scheduler", [*SCHEDULERS, "priced"])
async def test_no_policy_changes_a_text(scheduler: str, rounds: RoundsKind, tmp_path: Path) -> None:
    """With drafting ahead on, and under two policies with a price and early stops as well."""
    priced = Priced()
    name, capacity = ("seconds", 64) if scheduler == "priced" else (scheduler, None)
    settings = tiny_settings(scheduler=name, rounds={"rounds": rounds, "capacity": capacity})
    cold: set[tuple[tuple[int, ...], ...]] = set()
    warm: set[tuple[tuple[int, ...], ...]] = set()
    drafted = 0
    async with serving(settings) as (server, address):
        if scheduler == "priced":
            server._rounds.planner.scheduler = priced
        for drafter in drafters()[:3]:
            agent = Agent(address, drafter, cache=TokenizerCache(tmp_path), backoff=QUICK, draft_ahead="on")
            async with agent:
                for params, texts in ((SamplingParams(), cold), (WARM, warm)):
                    requests = [TextRequest(prompt, params, max_new_tokens=NEW_TOKENS) for prompt in PROMPTS]
                    completions = await asyncio.gather(*(agent.complete(request) for request in requests))
                    texts.add(tuple(tuple(completion.tokens) for completion in completions))
                    drafted += sum(completion.speculation.num_sent_tokens for completion in completions)
                assert [row.state for row in server.snapshot().agents] == ["ok"]
    assert cold == {tuple(tuple(target_alone(prompt)) for prompt in PROMPTS)}
    assert len(warm) == 1
    if scheduler == "priced":
        assert 0 < drafted < priced.budgets / 2, "drafts have to end early for this to show anything"


async def test_with_the_ratio_rule_the_target_accepts_most_of_itself(tmp_path: Path) -> None:
    # Not all of it: of the draft's distribution only the likeliest tokens cross the wire.
    narrow = SamplingParams(temperature=0.8, top_k=16, seed=2)
    async with serving(tiny_settings(rule="ratio")) as (_, address):
        rates = {}
        for drafter in drafters()[2:]:
            async with Agent(address, drafter, cache=TokenizerCache(tmp_path), backoff=QUICK) as agent:
                completion = await agent.complete(TextRequest(PROMPTS[0], narrow, max_new_tokens=NEW_TOKENS))
            rates[drafter.name] = completion.speculation.draft_acceptance_rate
            assert len(completion.tokens) == NEW_TOKENS
    assert rates["target"] == 1.0
    assert rates["stranger"] is not None
    assert rates["stranger"] < 0.5


async def test_more_streams_than_the_server_has_rows_take_turns(tmp_path: Path) -> None:
    settings = tiny_settings(max_streams=1, rounds={"max_waiting": 0})
    assert settings.rounds == RoundSettings(rounds="barrier", round_timeout_s=30.0, max_waiting=0)
    async with serving(settings) as (_, address):
        cache = TokenizerCache(tmp_path)
        async with Agent(address, SuffixDrafter(), cache=cache, backoff=QUICK) as agent:
            requests = [TextRequest(prompt, max_new_tokens=NEW_TOKENS) for prompt in PROMPTS]
            completions = await asyncio.gather(*(agent.complete(request) for request in requests))
    assert [completion.tokens for completion in completions] == [target_alone(prompt) for prompt in PROMPTS]


async def test_who_asks_for_much_waits_behind_who_asks_for_little_and_both_know_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(max_streams=1, max_length=96)
    cache = TokenizerCache(tmp_path)
    ended: list[str] = []

    async def ask(agent: Agent, who: str, places: list[int]) -> None:
        completion = await agent.complete(
            TextRequest(PROMPTS[0], max_new_tokens=NEW_TOKENS), on_queued=lambda place: places.append(place)
        )
        assert completion.tokens == target_alone(PROMPTS[0])
        ended.append(who)

    async with (
        serving(settings) as (server, address),
        Agent(address, NoDrafter(), cache=cache, backoff=QUICK) as greedy,
        Agent(address, NoDrafter(), cache=cache, backoff=QUICK) as modest,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(server._rounds._rounds, "close", lambda now, *, prompts: [])  # no text goes on
            places: list[list[int]] = [[] for _ in range(5)]
            texts = [asyncio.create_task(ask(greedy, "greedy", told)) for told in places]
            while server.snapshot().waiting < 4:
                await asyncio.sleep(0)
            mine: list[int] = []
            texts.append(asyncio.create_task(ask(modest, "modest", mine)))
            while not mine:
                await asyncio.sleep(0)
        server._rounds._changed.set()
        await asyncio.gather(*texts)
    assert mine[0] == 1
    assert ended[:2] == ["greedy", "modest"]
    assert sorted(told[0] for told in places if told) == [1, 2, 3, 4]
