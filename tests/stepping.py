"""A server whose passes run when a test says so, and the agent of the one stream in them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from goodspeed.messages import Draft, Verdict
from goodspeed.scheduling import Demand, Plan, Scheduler
from goodspeed.timing import EngineLoad, PassCost, PassSample
from goodspeed_server.live import LiveStream
from goodspeed_server.server import VerificationServer
from tests.serving import Peer, linked, serving, tiny_settings
from tests.test_server import PROMPT, target_text
from tests.tiny_models import VOCAB

__all__ = ["NUMBER", "TEXT", "WRONG", "Grants", "SlowEngine", "Stepped", "stepped"]

NUMBER = 1000
TEXT = target_text(PROMPT, 24)
WRONG = [(token + 1) % VOCAB for token in TEXT]


class SlowEngine:
    """What is told of the engine: every guess is in time for the next pass but one, however fast the tests' models."""

    load = EngineLoad(PassCost([PassSample(rows, rows * n, 60.0) for rows in (1, 4) for n in (1, 5)]), pass_s=60.0)

    def __init__(self, _: PassCost) -> None:
        pass

    def observe(self, *_: object) -> None:
        pass


class Grants:
    """So many tokens for everybody, as far as they may, each worth so much; remembers what it was asked."""

    def __init__(
        self, budget: int = 0, worth_s: float | None = None, *, needs_no_capacity: bool = False, price: float = 0.0
    ) -> None:
        self.needs_no_capacity = needs_no_capacity
        self._budget = budget
        self._worth_s = worth_s
        self._price = price
        self.asked: list[Demand] = []

    def plan(self, demand: Demand, capacity: int) -> Plan:
        self.asked.append(demand)
        worth_s = None if self._worth_s is None else np.full(len(demand), self._worth_s)
        return Plan(np.minimum(demand.limit, min(self._budget, capacity // max(1, len(demand)))), self._price, worth_s)


class Stepped:
    """A stream that the server decodes stepwise, and its agent, who guesses as a test says."""

    def __init__(self, server: VerificationServer, peer: Peer) -> None:
        self.server = server
        self.peer = peer
        self.text: list[int] = []
        self.passes = 0
        self.lead = 0
        """What was told last."""
        self._allowed = 0
        self._rounds = server._rounds._rounds
        self._close = self._rounds.close

    @property
    def live(self) -> LiveStream:
        (live,) = self.server._rounds.live
        return live

    @property
    def base(self) -> int:
        return len(PROMPT) + len(self.text)

    def close(self, now: float, *, prompts: bool) -> list[LiveStream]:
        """In place of the rounds' own."""
        if not self._allowed:
            return []
        batch = self._close(now, prompts=prompts)
        self._allowed -= bool(batch)
        return batch

    async def step(self) -> Verdict:
        """One pass, and what the server says of it and of nothing else."""
        self._allowed += 1
        self.server._rounds._changed.set()
        verdict = await self.peer.expect(Verdict)
        assert (verdict.stream, verdict.base, verdict.accepted) == (NUMBER, self.base, 0)
        self.passes += 1
        self.text += verdict.tokens
        self.lead = verdict.budget
        assert self.text == TEXT[: len(self.text)], "whatever was guessed"
        return verdict

    async def steps(self, count: int) -> list[int]:
        """How many tokens each of so many passes brought."""
        return [len((await self.step()).tokens) for _ in range(count)]

    async def step_to_the_end(self) -> None:
        while len(self.text) < len(TEXT):
            await self.step()

    async def guess(self, tokens: Sequence[int], base: int | None = None, offset: int = 0, **more: Any) -> None:
        """Send guesses, and see that they are taken without a word."""
        await self.send(tokens, base, offset, **more)
        await self.unanswered()

    async def send(self, tokens: Sequence[int], base: int | None = None, offset: int = 0, **more: Any) -> None:
        base = self.base if base is None else base
        await self.peer.send(Draft(NUMBER, base, list(tokens), offset=offset, computed_us=10, **more))

    async def refused(self, code: str) -> None:
        failure = await self.peer.failure()
        assert (failure.code, failure.stream) == (code, NUMBER)

    async def unanswered(self) -> None:
        """All that was sent has been dealt with, and nothing said: messages are taken in the order they come."""
        await self.peer.send(Draft(NUMBER + 1, 0, []))
        failure = await self.peer.failure()
        assert (failure.code, failure.stream) == ("unknown_stream", NUMBER + 1)


@contextlib.asynccontextmanager
async def stepped(
    schedule: Scheduler | None = None, *, max_draft: int = 8, rounds: Mapping[str, Any] | None = None, **changes: Any
) -> AsyncIterator[Stepped]:
    """A stream that was opened, and has no token yet; by default a pass verifies three guesses of it."""
    how = {"rounds": "rolling"} | dict(rounds or {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("goodspeed_server.server.EngineMeter", SlowEngine)
        async with (
            serving(tiny_settings(**{"scheduler": "auto"} | changes, rounds=how)) as (server, address),
            linked(address) as peer,
        ):
            server._rounds.planner.scheduler = schedule or Grants(3, needs_no_capacity=True)
            stream = Stepped(server, peer)
            patch.setattr(server._rounds._rounds, "close", stream.close)
            opened = await peer.open(NUMBER, PROMPT, max_new_tokens=len(TEXT), max_draft=max_draft)
            stream.lead = opened.budget
            yield stream
