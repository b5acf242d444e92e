"""A server's inside without a model: an engine whose passes cost what a test says, and agents that only listen."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from goodspeed.engine import Engine, Segment
from goodspeed.engine.slab import Slab
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.messages import Open, ServerMessage
from goodspeed.sampling import SamplingParams
from goodspeed.scheduling import PlainDecoding, Scheduler
from goodspeed.timing import EngineMeter, PassCost, PassSample
from goodspeed.utility import AlphaFair
from goodspeed.verification import Rule
from goodspeed_server.live import AgentAccount
from goodspeed_server.planner import Planner
from goodspeed_server.round_loop import RoundLoop
from goodspeed_server.settings import RoundSettings
from goodspeed_server.telemetry import ServerFacts, Telemetry

__all__ = ["PASS_S", "VOCAB", "Agent", "Held", "PlantedEngine", "make_planner", "make_rounds"]

VOCAB = 10
PASS_S = 0.01


class PlantedEngine(Engine):
    """Its rows and its checks are the engine's own; its passes advance its clock, and its text is zeros."""

    def __init__(
        self, rows: int, max_length: int = 64, *, cost: Callable[[int, int], float] = lambda _rows, _tokens: PASS_S
    ) -> None:
        self.vocab_size = VOCAB
        self.layout = "packed"
        self.device = torch.device("cpu")
        self._slab = Slab(rows, max_length)
        self._written, self._inherited = {}, set()
        self._cost = cost
        self._now = 0.0

    @property
    def busy_clock(self) -> Callable[[], float]:
        return lambda: self._now

    def _run(self, segments: Sequence[Segment]) -> torch.Tensor:
        self._now += self._cost(len(segments), sum(segment.new for segment in segments))
        return torch.zeros(sum(segment.logits for segment in segments), VOCAB)


class Held:
    """The cost of passes of which each waits until it may go on."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        """Whether one has begun."""
        self.go_on = threading.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, _rows: int, _tokens: int) -> float:
        self._loop.call_soon_threadsafe(self.began.set)
        assert self.go_on.wait(timeout=60)
        return PASS_S


@dataclass(eq=False)
class Agent:
    """A link's two ends: what the server posts, and what it counts."""

    posted: list[ServerMessage] = field(default_factory=list)
    account: AgentAccount = field(default_factory=lambda: AgentAccount("agent", "none", PRIOR_ALPHA))

    def post(self, message: ServerMessage) -> None:
        self.posted.append(message)

    def open(self, rounds: RoundLoop, stream: int, *, max_draft: int = 4) -> None:
        """Open a stream whose prompt is one token, so that nothing has to be prefilled."""
        rounds.open(self, self.account, Open(stream, [1], 1, SamplingParams(), 8, max_draft, True))


def make_planner(scheduler: Scheduler, rule: Rule = "coupled", **rounds: Any) -> Planner:
    """A planner upon an engine whose passes all take the same time."""
    return Planner(scheduler, rule, _settings(rounds), EngineMeter(PassCost([PassSample(1, 1, PASS_S)])))


def make_rounds(engine: Engine, scheduler: Scheduler | None = None, **rounds: Any) -> RoundLoop:
    """The round loop upon an engine, and nobody linked to it yet."""
    return RoundLoop(
        engine,
        rule="coupled",
        planner=make_planner(scheduler or PlainDecoding(), **rounds),
        eos_tokens=frozenset(),
        settings=_settings(rounds),
        telemetry=Telemetry(
            ServerFacts("m", "s", "r", "packed", 1, 64, AlphaFair(), [PassSample(1, 1, PASS_S)]), now=0.0
        ),
    )


def _settings(rounds: dict[str, Any]) -> RoundSettings:
    """Rolling rounds unless told otherwise."""
    return RoundSettings(**{"rounds": "rolling", **rounds})
