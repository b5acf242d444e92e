"""A world under a virtual clock: agents, links and an engine, around the objects that production runs.

Rounds, scheduler, estimators, cost model and meters are the real ones; what is made up is how long things take and
which drafts are accepted. The same seed gives the same run.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from goodspeed.estimation import Goodput, HitOrMiss, smooth_goodput
from goodspeed.probing import PROBE_EVERY_S, PROBE_TOKENS
from goodspeed.rounds import Barrier, Rolling, Rounds
from goodspeed.scheduling import Demand, Scheduler, Timing
from goodspeed.timing import EngineMeter, Pace, PassCost, PassSample
from goodspeed.verification import Judgement

__all__ = ["Agent", "Engine", "Record", "Result", "RoundsKind", "simulate"]

RoundsKind: TypeAlias = Literal["barrier", "rolling"]
Floats = NDArray[np.float64]

_UNBOUNDED = 2**31
_BETA = 0.5


@dataclass(frozen=True, slots=True)
class Agent:
    """One edge box with one stream."""

    draft_s: float
    """Seconds for a drafted token."""
    latency_s: float
    """One way through the network, seconds."""
    alpha: float | Callable[[float], float]
    """How often a drafted token is accepted; may change with time."""
    jitter_s: float = 0.0
    """Mean of an exponential addition to every latency."""
    weight: float = 1.0
    max_draft: int = 16
    joins_at: float = 0.0
    leaves_at: float = math.inf
    drafts_ahead: bool = False

    def alpha_at(self, now: float) -> float:
        """At a time."""
        return self.alpha(now) if callable(self.alpha) else self.alpha


@dataclass(frozen=True, slots=True)
class Engine:
    """How long passes really take."""

    fixed_s: float
    row_s: float
    token_s: float
    noise: float = 0.0
    """Standard deviation of the logarithm."""

    def seconds(self, rows: int, tokens: int) -> float:
        """Of a pass, without noise."""
        return self.fixed_s + rows * self.row_s + tokens * self.token_s

    def samples(self) -> list[PassSample]:
        """What a calibration at start-up would have measured."""
        shapes = [(rows, rows * each) for rows in (1, 2, 4, 8, 16, 32) for each in (1, 5)]
        return [PassSample(rows, tokens, self.seconds(rows, tokens)) for rows, tokens in shapes]


@dataclass(frozen=True, slots=True)
class Record:
    """One pass, as it was seen."""

    at: float
    seconds: float
    streams: Sequence[int]
    budgets: Sequence[int]
    committed: Sequence[int]
    price: float


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run; arrays over the agents, in their order."""

    tokens: Floats
    """Committed behind the warm-up."""
    seconds: Floats
    """For how long each was there behind the warm-up."""
    passes: int
    busy_s: float
    records: Sequence[Record]

    @property
    def goodput(self) -> Floats:
        """Tokens per second."""
        return self.tokens / np.maximum(self.seconds, 1e-9)

    @property
    def geometric_mean(self) -> float:
        """Of the goodputs: what the sum of logarithms maximises."""
        return float(np.exp(np.log(np.maximum(self.goodput, 1e-9)).mean()))


@dataclass(slots=True, eq=False)
class _Stream:
    number: int
    agent: Agent
    estimator: HitOrMiss
    pace: Pace
    rate: Goodput
    per_round: float = 1.0
    budget: int = 0
    arrived_at: float = 0.0
    head_start_s: float = 0.0
    """For how long its agent has drafted ahead on a guess that came true."""
    computed_s: float = 0.0
    probe_at: float = 0.0
    """When a stream that the server decodes alone is asked for a draft on the side again."""


@dataclass(order=True, slots=True)
class _Event:
    at: float
    number: int
    kind: str = field(compare=False)
    stream: _Stream | None = field(compare=False, default=None)


def simulate(
    agents: Sequence[Agent],
    engine: Engine,
    scheduler: Scheduler,
    *,
    rounds: RoundsKind,
    capacity: int | None = None,
    duration_s: float = 60.0,
    warm_up_s: float = 5.0,
    seed: int = 0,
    keep_records: bool = False,
) -> Result:
    """Run a world.

    Args:
        agents: one stream each.
        engine: the truth about passes.
        scheduler: chooses the budgets.
        rounds: `barrier`, without a deadline as the paper has it, or `rolling`.
        capacity: draft tokens a pass may verify; None is without a limit.
        duration_s: virtual seconds.
        warm_up_s: tokens before this do not count.
        seed: of everything random.
        keep_records: whether to keep a record of every pass.
    """
    world = _World(agents, engine, scheduler, rounds, capacity, warm_up_s, seed, keep_records)
    return world.run(duration_s)


class _World:
    def __init__(
        self,
        agents: Sequence[Agent],
        engine: Engine,
        scheduler: Scheduler,
        rounds: RoundsKind,
        capacity: int | None,
        warm_up_s: float,
        seed: int,
        keep_records: bool,
    ) -> None:
        self._agents = agents
        self._engine = engine
        self._scheduler = scheduler
        self._capacity = _UNBOUNDED if capacity is None else capacity
        self._warm_up_s = warm_up_s
        self._random = np.random.default_rng(seed)
        self._keep_records = keep_records
        self._probing = rounds == "rolling"
        self._meter = EngineMeter(PassCost(engine.samples()))
        self._rounds: Rounds[_Stream] = (
            Barrier(timeout_s=math.inf) if rounds == "barrier" else Rolling(pass_s=lambda: self._meter.load.pass_s)
        )
        self._events: list[_Event] = []
        self._numbers = itertools.count()
        self._running: list[_Stream] | None = None
        self._began_at = 0.0
        self._alarm_at = math.inf
        self._gone: set[int] = set()
        self._streams: dict[int, _Stream] = {}
        self._counted = np.zeros(len(agents))
        self._passes = 0
        self._busy_s = 0.0
        self._records: list[Record] = []

    def run(self, duration_s: float) -> Result:
        for number, agent in enumerate(self._agents):
            if agent.joins_at < duration_s:
                self._at(agent.joins_at, "join", self._stream(number, agent))
        while self._events and self._events[0].at < duration_s:
            now = self._events[0].at
            while self._events and self._events[0].at <= now:
                self._handle(heapq.heappop(self._events))
            if self._running is None:
                self._try_to_close(now)
        present = [
            max(0.0, min(agent.leaves_at, duration_s) - max(agent.joins_at, self._warm_up_s)) for agent in self._agents
        ]
        return Result(self._counted, np.array(present), self._passes, self._busy_s, self._records)

    def _stream(self, number: int, agent: Agent) -> _Stream:
        return _Stream(
            number,
            agent,
            HitOrMiss(),
            Pace(),
            Goodput(agent.joins_at, 1.0 / self._engine.seconds(1, 1)),
        )

    def _at(self, when: float, kind: str, stream: _Stream | None = None) -> None:
        heapq.heappush(self._events, _Event(when, next(self._numbers), kind, stream))

    def _handle(self, event: _Event) -> None:
        stream = event.stream
        match event.kind:
            case "join":
                assert stream is not None
                self._streams[stream.number] = stream
                self._schedule([stream], event.at)
                if stream.agent.leaves_at < math.inf:
                    self._at(stream.agent.leaves_at, "leave", stream)
            case "leave":
                assert stream is not None
                self._gone.add(stream.number)
                self._rounds.leave(stream)
                del self._streams[stream.number]
            case "draft":
                assert stream is not None
                if self._rounds.owes(stream):
                    elapsed_s = self._rounds.arrive(stream, event.at)
                    stream.arrived_at = event.at
                    stream.pace.observe(stream.budget, elapsed_s, stream.computed_s)
            case "probe":
                assert stream is not None
                stream.probe_at = event.at + PROBE_EVERY_S
                hit = math.log(self._random.random()) / math.log(
                    min(max(stream.agent.alpha_at(event.at), 1e-9), 1 - 1e-9)
                )
                stream.estimator.observe(PROBE_TOKENS, Judgement(int(min(hit, PROBE_TOKENS)), 0))
                computed_s = PROBE_TOKENS * stream.agent.draft_s
                stream.pace.observe(PROBE_TOKENS, computed_s + 2 * stream.agent.latency_s, computed_s)
            case "verified":
                self._commit(event.at)
            case "alarm":
                self._alarm_at = math.inf

    def _try_to_close(self, now: float) -> None:
        batch = self._rounds.close(now)
        if batch:
            self._verify(batch, now)
            return
        closes_at = self._rounds.closes_at()
        if closes_at is not None and closes_at < self._alarm_at:
            self._alarm_at = closes_at
            self._at(max(closes_at, now), "alarm")

    def _verify(self, batch: list[_Stream], now: float) -> None:
        tokens = sum(stream.budget + 1 for stream in batch)
        seconds = self._engine.seconds(len(batch), tokens)
        if self._engine.noise:
            seconds *= math.exp(self._engine.noise * self._random.standard_normal())
        waits = [now - stream.arrived_at for stream in batch if stream.budget]
        self._meter.observe(PassSample(len(batch), tokens, seconds), now, waits)
        self._running, self._began_at = batch, now
        self._passes += 1
        self._busy_s += seconds
        self._at(now + seconds, "verified")

    def _commit(self, now: float) -> None:
        assert self._running is not None
        batch = [stream for stream in self._running if stream.number not in self._gone]
        began_at, self._running = self._began_at, None
        if not batch:
            return
        alpha = np.array([stream.agent.alpha_at(began_at) for stream in batch])
        # One token beyond the draft: whether the agent's own guess at the bonus token was right.
        hits = self._hits(alpha)
        budgets = [stream.budget for stream in batch]
        committed = []
        for stream, hit in zip(batch, hits.tolist(), strict=True):
            accepted = int(min(hit, stream.budget))
            self._learn(stream, accepted, now, began_at)
            stream.head_start_s = 0.0
            if stream.agent.drafts_ahead and stream.budget and hit > stream.budget:
                stream.head_start_s = now - stream.arrived_at + 2 * stream.agent.latency_s
            committed.append(accepted + 1)
        price = self._schedule(batch, now)
        if self._keep_records:
            numbers = [stream.number for stream in batch]
            self._records.append(Record(now, now - began_at, numbers, budgets, committed, price))

    def _hits(self, alpha: Floats) -> Floats:
        """How many tokens in a row are accepted, if the draft is long enough, [streams]."""
        hits: Floats = np.floor(np.log(self._random.random(len(alpha))) / np.log(np.clip(alpha, 1e-9, 1 - 1e-9)))
        return hits

    def _learn(self, stream: _Stream, accepted: int, now: float, began_at: float) -> None:
        if stream.budget or not self._probing:
            stream.estimator.observe(stream.budget, Judgement(accepted, 0))
        stream.rate.observe(accepted + 1, now)
        stream.per_round = smooth_goodput(stream.per_round, accepted + 1, _BETA)
        if now >= self._warm_up_s:
            self._counted[stream.number] += accepted + 1

    def _schedule(self, streams: Sequence[_Stream], now: float) -> float:
        demand = Demand(
            alpha=np.array([s.estimator.alpha if self._probing else s.estimator.optimistic for s in streams]),
            goodput=np.array([stream.per_round for stream in streams]),
            weight=np.array([stream.agent.weight for stream in streams]),
            limit=np.array([stream.agent.max_draft for stream in streams]),
            timing=Timing(
                rate=np.array([stream.rate.rate for stream in streams]),
                draft_s=np.array([stream.pace.draft_s for stream in streams]),
                turnaround_s=np.array([stream.pace.turnaround_s for stream in streams]),
                engine=self._meter.load,
            ),
        )
        outstanding = self._rounds.outstanding if self._capacity < _UNBOUNDED else 0
        plan = self._scheduler.plan(demand, max(0, self._capacity - outstanding))
        for stream, budget in zip(streams, plan.budgets.tolist(), strict=True):
            stream.budget = budget
            self._rounds.expect(stream, budget, now, stream.pace.expect(budget))
            if budget:
                self._at(now + self._until_draft_s(stream), "draft", stream)
            elif self._probing and now >= stream.probe_at and stream.agent.max_draft:
                stream.probe_at = math.inf
                self._at(now + 2 * stream.agent.latency_s + PROBE_TOKENS * stream.agent.draft_s, "probe", stream)
        return plan.price

    def _until_draft_s(self, stream: _Stream) -> float:
        agent = stream.agent
        stream.computed_s = max(0.0, stream.budget * agent.draft_s - stream.head_start_s)
        jitter_s = self._random.exponential(agent.jitter_s, 2).sum() if agent.jitter_s else 0.0
        return 2 * agent.latency_s + float(jitter_s) + stream.computed_s
