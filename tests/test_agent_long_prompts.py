"""Prompts that take minutes to be read: nothing is said of them meanwhile, and nobody takes their server for dead."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest

from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.drafters import NoDrafter
from goodspeed_agent.silence import PATIENCE_S
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.observer import RoundRecord
from goodspeed_server.server import VerificationServer
from goodspeed_server.verifier import Outcome, Pass, Verifier
from tests.linking import QUICK
from tests.serving import serving, tiny_settings
from tests.test_agent_silence import Hourglass, glass
from tests.test_server import PROMPT, target_text

__all__ = ["glass"]

CHUNK = 2
NEW_TOKENS = 8


class Passes:
    """Each waits until a test lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop = asyncio.get_running_loop()
        self._running: asyncio.Queue[int] = asyncio.Queue()
        self._may_go_on = threading.Semaphore(0)
        self._at = 0
        """The pass that waits, counted from 1."""
        run = Verifier.run
        count = 0

        def run_when_allowed(verifier: Verifier, work: Pass) -> Outcome:
            nonlocal count
            count += 1
            self._loop.call_soon_threadsafe(self._running.put_nowait, count)
            assert self._may_go_on.acquire(timeout=60)
            return run(verifier, work)

        monkeypatch.setattr(Verifier, "run", run_when_allowed)

    async def until(self, number: int) -> None:
        """Let passes go on until this one runs, which does not."""
        while self._at < number:
            if self._at:
                self._may_go_on.release()
            self._at = await self._running.get()

    def let_all_go_on(self) -> None:
        self._may_go_on.release(10_000)


@contextlib.asynccontextmanager
async def reading(
    passes: Passes, cache: TokenizerCache
) -> AsyncIterator[tuple[VerificationServer, Agent, asyncio.Task[list[int]]]]:
    """A server that reads a prompt in pieces, and an agent that waits for a text upon it."""
    settings = tiny_settings(rounds={"prefill_chunk": CHUNK})
    async with (
        asyncio.timeout(60),
        serving(settings) as (server, address),
        Agent(address, NoDrafter(), cache=cache, backoff=QUICK) as agent,
    ):

        async def write() -> list[int]:
            request = TextRequest(PROMPT, max_new_tokens=NEW_TOKENS, ignore_eos=True)
            return (await agent.complete(request)).tokens

        writing = asyncio.create_task(write())
        try:
            yield server, agent, writing
        finally:
            passes.let_all_go_on()
            writing.cancel()
            await asyncio.wait([writing])


async def test_pings_are_answered_while_a_pass_runs(cache: TokenizerCache, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(monkeypatch)
    async with reading(passes, cache) as (_, agent, writing):
        await passes.until(1)
        # What finds a dead connection finds this one alive, however long the pass takes: it is off the event loop.
        assert await agent.link.ping() >= 0.0
        passes.let_all_go_on()
        assert await writing == target_text(PROMPT, NEW_TOKENS)
        assert agent.link.reconnections == 0


async def test_whoever_loses_patience_asks_again_and_the_prompt_is_not_begun_again(
    cache: TokenizerCache, monkeypatch: pytest.MonkeyPatch, glass: Hourglass, records: list[RoundRecord]
) -> None:
    passes = Passes(monkeypatch)
    async with reading(passes, cache) as (server, agent, writing):
        for number, patience_s in ((2, PATIENCE_S), (3, 2 * PATIENCE_S)):
            await passes.until(number)
            await glass.turn_on_somebody(0.9 * patience_s)
            assert agent.link.up
            await glass.turn_on_somebody(0.1 * patience_s)
            while server.snapshot().resumed_parked < number - 1:
                await asyncio.sleep(0)
        passes.let_all_go_on()
        assert await writing == target_text(PROMPT, NEW_TOKENS)
        assert agent.link.reconnections == 2
        assert server.snapshot().resumed_transcript == 0
    # Only what the passes brought that ran while the link was made again was read twice.
    assert sum(record.prefilled for record in records) == len(PROMPT) - 1 + 2 * CHUNK
