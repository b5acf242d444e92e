"""What a pass has brought is told while the next one runs, where nobody is to be waited for."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from goodspeed.engine import Segment
from goodspeed.messages import Draft, Opened, ServerMessage, Verdict
from goodspeed.scheduling import FixedS
from goodspeed.timing import PassSample
from goodspeed_server import slices
from goodspeed_server.fitting import Settled
from goodspeed_server.round_loop import RoundLoop
from goodspeed_server.verifier import Pass
from tests.planted import PASS_S, Agent, Held, PlantedEngine, make_rounds

TEXT = 8
"""Tokens, as many as a stream of `Agent.open` asks for."""
IN_VAIN_S = 30.0


class Count:
    """Of what happens on another thread."""

    def __init__(self) -> None:
        self._count = 0
        self._more = threading.Condition()

    def more(self) -> None:
        """It has happened once more."""
        with self._more:
            self._count += 1
            self._more.notify_all()

    def reaches(self, count: int, within_s: float) -> bool:
        """Whether it has happened so often, or does in that time."""
        with self._more:
            return self._more.wait_for(lambda: self._count >= count, within_s)


class Counting(PlantedEngine):
    """Counts the passes that have begun."""

    def __init__(self) -> None:
        super().__init__(rows=1)
        self.begun = Count()

    def _run(self, segments: Sequence[Segment]) -> torch.Tensor:
        self.begun.more()
        return super()._run(segments)


@dataclass(eq=False)
class Link(Agent):
    """Has one text written, and does something with the number of each verdict but the last as it is told it."""

    each: Callable[[int], None] = lambda number: None

    async def written(self, rounds: RoundLoop) -> list[Verdict]:
        """The verdicts of the text."""
        self.open(rounds, 0)
        rounds._telemetry.joined(self.account, 0.0)
        running = asyncio.create_task(rounds.run())
        async with asyncio.timeout(2 * IN_VAIN_S):
            while not (told := self.told) or told[-1].finish is None:
                for draft in self.due():
                    rounds.draft(self, draft)
                await asyncio.sleep(0)
            rounds.stop()
            await running
        return self.told

    @property
    def told(self) -> list[Verdict]:
        return [message for message in self.posted if isinstance(message, Verdict)]

    def due(self) -> list[Draft]:
        """What is asked for last, once."""
        asking = self.posted[-1] if self.posted else None
        if not isinstance(asking, Opened | Verdict) or not asking.budget or self._answered == len(self.posted):
            return []
        self._answered = len(self.posted)
        upon = asking.base + (asking.accepted + len(asking.tokens) if isinstance(asking, Verdict) else 0)
        return [Draft(asking.stream, upon, [0] * asking.budget)]

    _answered: int = 0

    def post(self, message: ServerMessage) -> None:
        super().post(message)
        if isinstance(message, Verdict) and message.finish is None:
            self.each(len(self.told))


async def test_agents_are_told_of_a_pass_while_the_next_one_runs() -> None:
    engine, in_time = Counting(), list[bool]()
    link = Link(each=lambda number: in_time.append(engine.begun.reaches(number + 1, IN_VAIN_S)))
    verdicts = await link.written(make_rounds(engine))
    assert [verdict.base for verdict in verdicts] == list(range(1, TEXT + 1))
    assert in_time == [True] * (TEXT - 1)


async def test_who_is_waited_for_is_told_before_the_next_pass() -> None:
    engine, early = Counting(), list[bool]()
    link = Link(each=lambda number: early.append(engine.begun.reaches(number + 1, 0.0)))
    verdicts = await link.written(make_rounds(engine, FixedS(1), rounds="barrier", capacity=1))
    assert [verdict.base for verdict in verdicts] == [1, 3, 5, 7]
    assert early == [False] * 3


async def test_telling_is_no_part_of_how_long_a_pass_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, seen, over, now = make_rounds(PlantedEngine(1)), list[PassSample](), Count(), 0.0
    verify = rounds._verify

    def verified(work: Pass) -> tuple[Settled, float]:
        settled = verify(work)
        over.more()
        return settled

    def slowly(number: int) -> None:
        """It takes an hour, and begins when the pass that runs meanwhile is over."""
        nonlocal now
        assert over.reaches(number + 1, IN_VAIN_S)
        now += 3600.0

    monkeypatch.setattr(rounds, "_clock", lambda: now)
    monkeypatch.setattr(rounds, "_verify", verified)
    monkeypatch.setattr(rounds.planner.meter, "observe", seen.append)
    await Link(each=slowly).written(rounds)
    assert [sample.seconds for sample in seen] == [0.0] * TEXT


@pytest.mark.parametrize("ends", ["cancelled", "fails"])
async def test_a_pass_that_fails_when_telling_has_ended_the_rounds_is_no_surprise(
    ends: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does the end wait for it."""
    monkeypatch.setattr(slices, "_AT_ONCE", 1)
    passes, held, unhandled = Count(), Held(), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))

    def cost(rows: int, tokens: int) -> float:
        passes.more()
        if passes.reaches(2, 0.0):
            held(rows, tokens)
            raise RuntimeError("the engine has failed")
        return PASS_S

    def end(_: int) -> None:
        if ends == "fails":
            raise RuntimeError("the link has failed")
        telling = asyncio.current_task()
        assert telling is not None
        telling.cancel()  # which it hears of between this stream and the next

    rounds, link = make_rounds(PlantedEngine(2, cost=cost)), Link(each=end)
    for stream in range(2):
        link.open(rounds, stream)
    rounds._telemetry.joined(link.account, 0.0)
    async with asyncio.timeout(60):
        running = asyncio.create_task(rounds.run())
        await asyncio.wait([running])
        assert len(link.told) == 1
        assert running.cancelled() == (ends == "cancelled")
        assert running.cancelled() or str(running.exception()) == "the link has failed"
        held.go_on.set()
        await asyncio.to_thread(rounds._engine_thread.shutdown)
    del running
    gc.collect()
    assert unhandled == []
    assert caplog.messages == ["a pass failed that the rounds did not wait for any more: the engine has failed"]
