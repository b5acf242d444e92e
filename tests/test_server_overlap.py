"""What a pass has brought is told while the next one runs, where nobody is to be waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from goodspeed.engine import Segment
from goodspeed.messages import Draft, Opened, ServerMessage, Verdict
from goodspeed.scheduling import FixedS
from goodspeed.timing import PassSample
from goodspeed_server.fitting import Settled
from goodspeed_server.round_loop import RoundLoop
from goodspeed_server.verifier import Pass
from tests.planted import Agent, PlantedEngine, make_rounds

TEXT = 8
"""Tokens, as many as a stream of `Agent.open` asks for."""
_IN_VAIN_S = 30.0


class Announcing(PlantedEngine):
    """Says of each pass that it has begun."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.begun = threading.Semaphore(0)

    def _run(self, segments: Sequence[Segment]) -> torch.Tensor:
        self.begun.release()
        return super()._run(segments)


@dataclass(eq=False)
class Link(Agent):
    """Stops the rounds at the end of its text, and notes of each verdict before that whether another pass had begun."""

    rounds: RoundLoop | None = None
    engine: Announcing | None = None
    within_s: float = _IN_VAIN_S
    begun: list[bool] | None = None

    def post(self, message: ServerMessage) -> None:
        super().post(message)
        assert self.rounds is not None
        assert self.engine is not None
        assert self.begun is not None
        if isinstance(message, Opened | Verdict) and message.budget:
            upon = message.base + (message.accepted + len(message.tokens) if isinstance(message, Verdict) else 0)
            draft = Draft(message.stream, upon, [0] * message.budget)
            asyncio.get_running_loop().call_soon(self.rounds.draft, self, draft)
        if isinstance(message, Verdict):
            if message.finish is not None:
                self.rounds.stop()
            else:
                self.begun.append(self.engine.begun.acquire(timeout=self.within_s))


async def written(rounds: RoundLoop, link: Link) -> list[Verdict]:
    """The verdicts of one text."""
    link.open(rounds, 0)
    rounds._telemetry.joined(link.account, 0.0)
    async with asyncio.timeout(60):
        await rounds.run()
    return [message for message in link.posted if isinstance(message, Verdict)]


async def test_agents_are_told_of_a_pass_while_the_next_one_runs() -> None:
    engine = Announcing(1)
    rounds = make_rounds(engine)
    link = Link(rounds=rounds, engine=engine, begun=[])
    opened = asyncio.get_running_loop().create_task(asyncio.to_thread(engine.begun.acquire))  # the first pass's
    verdicts = await written(rounds, link)
    await opened
    assert [verdict.base for verdict in verdicts] == list(range(1, TEXT + 1))
    assert link.begun == [True] * (TEXT - 1)


async def test_who_is_waited_for_is_told_before_the_next_pass() -> None:
    engine = Announcing(1)
    rounds = make_rounds(engine, FixedS(1), rounds="barrier", capacity=1)
    link = Link(rounds=rounds, engine=engine, within_s=0.0, begun=[])
    verdicts = await written(rounds, link)
    assert [verdict.base for verdict in verdicts] == [1, 3, 5, 7]
    # Each finds what the pass that it tells of has left, and nothing of a further one.
    assert link.begun == [True] * 3
    assert engine.begun.acquire(timeout=0)
    assert not engine.begun.acquire(timeout=0)


async def test_telling_is_no_part_of_how_long_a_pass_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, seen = make_rounds(PlantedEngine(1)), list[PassSample]()
    now, over = 0.0, threading.Semaphore(0)
    rounds._clock = lambda: now
    verify = rounds._verify

    def verified(work: Pass) -> tuple[Settled, float]:
        settled = verify(work)
        over.release()
        return settled

    @dataclass(eq=False)
    class Slow(Agent):
        """It takes an hour to tell it anything, and begins to when the pass that runs meanwhile is over."""

        def post(self, message: ServerMessage) -> None:
            nonlocal now
            super().post(message)
            if isinstance(message, Verdict) and message.finish is None:
                assert over.acquire(timeout=_IN_VAIN_S)
                now += 3600.0
            elif isinstance(message, Verdict):
                rounds.stop()

    monkeypatch.setattr(rounds, "_verify", verified)
    monkeypatch.setattr(rounds.planner.meter, "observe", seen.append)
    link = Slow()
    link.open(rounds, 0)
    rounds._telemetry.joined(link.account, 0.0)
    first = asyncio.create_task(asyncio.to_thread(over.acquire))  # the first pass's, of which nothing is told
    async with asyncio.timeout(60):
        await rounds.run()
    await first
    assert [sample.seconds for sample in seen] == [0.0] * TEXT
