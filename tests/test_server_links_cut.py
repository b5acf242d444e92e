"""Agents whose connections are cut again and again: texts are the same, and no prompt is computed twice."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import pytest

from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.drafters import NoDrafter, SuffixDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_bench.proxy import proxied
from goodspeed_bench.toxics import Passage, Piece
from goodspeed_server.observer import RoundRecord
from tests.serving import serving, tiny_settings
from tests.test_server import PROMPT, target_text

WARM = SamplingParams(0.8, 0.95, seed=7)
QUICK = Backoff(first_s=0.001, longest_s=0.001, give_up_after_s=60.0)


@dataclass
class Cut:
    """Resets the connection once so many bytes have passed; after some connections it lets all through."""

    after_bytes: int
    connections: int

    def open(self, noise: random.Random) -> Passage:
        self.connections -= 1
        return _Cutting(self.after_bytes) if self.connections >= 0 else _Letting()


class _Letting:
    def take(self, piece: Piece) -> Iterable[Piece]:
        return [piece]


class _Cutting:
    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, piece: Piece) -> Iterable[Piece]:
        passed = piece.data[: self._left]
        self._left -= len(passed)
        if passed:
            yield Piece(piece.at, passed)
        if len(passed) < len(piece.data):
            yield Piece(piece.at, b"", reset=True)


@contextlib.asynccontextmanager
async def cut_short(address: str, after_bytes: int, connections: int) -> AsyncIterator[str]:
    host, port = address.removeprefix("ws://").split(":")
    async with proxied(host, int(port), [("downstream", Cut(after_bytes, connections))]) as through:
        yield f"ws://127.0.0.1:{through}"


async def test_an_agent_whose_connection_is_cut_again_and_again_has_its_prompt_computed_once(
    cache: TokenizerCache, records: list[RoundRecord]
) -> None:
    request = TextRequest(PROMPT, max_new_tokens=80, ignore_eos=True)
    async with serving() as (server, address):
        async with Agent(address, NoDrafter(), cache=cache, backoff=QUICK):
            pass  # and the tokenizer is in the cache
        # The handshake has 350 bytes, and a verdict 10.
        async with (
            cut_short(address, 550, 2) as through,
            Agent(through, NoDrafter(), cache=cache, backoff=QUICK) as agent,
        ):
            completion = await agent.complete(request)
            assert agent.link.reconnections == 2
        assert completion.tokens == target_text(PROMPT, 80)
        assert sum(record.prefilled for record in records) == len(PROMPT) - 1
        assert server.snapshot().resumed_parked == 2


@pytest.mark.parametrize("rounds", ["barrier", "rolling"])
async def test_texts_that_are_drafted_are_the_same_over_links_that_break(
    rounds: str, cache: TokenizerCache, records: list[RoundRecord]
) -> None:
    # Two words that come again and again, so that there is something to draft.
    prompts = [[5, 17] * 6 + [seed] for seed in range(3)]
    requests = [TextRequest(prompt, WARM, max_new_tokens=60, ignore_eos=True) for prompt in prompts]
    settings = tiny_settings(scheduler="fixed", rounds={"rounds": rounds, "capacity": 12})
    async with serving(settings) as (server, address):
        async with Agent(address, SuffixDrafter(), cache=cache, backoff=QUICK) as agent:
            whole = [await agent.complete(request) for request in requests]
        async with (
            cut_short(address, 600, 6) as through,
            Agent(through, SuffixDrafter(), cache=cache, backoff=QUICK) as agent,
        ):
            texts = await asyncio.gather(*(agent.complete(request) for request in requests))
            assert agent.link.reconnections >= 2
        assert [text.tokens for text in texts] == [text.tokens for text in whole]
        assert server.snapshot().resumed_parked >= 2
        # In rolling rounds it is the clock that says whether a guess comes in time to be verified.
        assert rounds == "rolling" or any(record.drafted for record in records)
