"""The virtual clock: events in the order of time, and what each of them does."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from goodspeed.estimation import Goodput, HitOrMiss, RatioMean, smooth_goodput
from goodspeed.rounds import Rounds, share_out
from goodspeed.rules import rule_named
from goodspeed.scheduling import Scheduler
from goodspeed.simulation.acceptance import hits_in_a_row, judge_by_ratio, judge_by_rule
from goodspeed.simulation.granting import Capacity, Granting, GrantPolicy, RoundsKind
from goodspeed.simulation.outcome import Record, Result
from goodspeed.simulation.scenery import Agent, Engine
from goodspeed.simulation.streams import Box, Stream, user_of
from goodspeed.simulation.texts import Span, Written
from goodspeed.timing import EngineMeter, PassCost, PassSample
from goodspeed.verification import Judgement, Rule

__all__ = ["simulate"]

_Kind: TypeAlias = Literal["ask", "join", "leave", "draft", "verified", "alarm", "steered"]

_PRIOR_STEP = 0.3
"""How far one text moves what is believed of its agent's next; the server's own."""


def simulate(
    agents: Sequence[Agent],
    engine: Engine,
    scheduler: Scheduler,
    *,
    rounds: RoundsKind,
    rule: Rule = "coupled",
    capacity: Capacity = None,
    round_timeout_s: float = math.inf,
    steered: Sequence[tuple[float, GrantPolicy]] = (),
    prefill_chunk: int = 512,
    beta: float = 0.5,
    duration_s: float = 60.0,
    warm_up_s: float = 5.0,
    seed: int = 0,
    keep_records: bool = False,
) -> Result:
    """Run a world.

    Args:
        agents: one stream each, at a time.
        engine: the truth about passes.
        scheduler: chooses the budgets.
        rounds: `barrier`, by default without a deadline as the paper has it, or `rolling`, under the coupled rule.
        rule: of verification, by name; `ratio` shows what equation (3) averages, and nothing can be drafted ahead;
            one's own judges by itself.
        capacity: draft tokens a pass may verify, by the number of streams if it is a function; None is without a limit.
        round_timeout_s: how long the barrier waits.
        steered: when an operator changes scheduler, capacity or that, and to what.
        prefill_chunk: prompt tokens a pass may carry.
        beta: the step of equation (4).
        duration_s: virtual seconds.
        warm_up_s: tokens before this do not count.
        seed: of everything random.
        keep_records: whether to keep a record of every pass.

    Raises:
        SchedulerFault: the scheduler plans what cannot be, or raises something.
    """
    assert rounds == "barrier" or rule == "coupled"
    world = _World(
        agents,
        engine,
        GrantPolicy(scheduler, capacity, round_timeout_s),
        rounds,
        rule,
        prefill_chunk,
        beta,
        warm_up_s,
        seed,
        keep_records,
        steered,
    )
    return world.run(duration_s)


class _World:
    def __init__(
        self,
        agents: Sequence[Agent],
        engine: Engine,
        policy: GrantPolicy,
        rounds: RoundsKind,
        rule: Rule,
        prefill_chunk: int,
        beta: float,
        warm_up_s: float,
        seed: int,
        keep_records: bool,
        steered: Sequence[tuple[float, GrantPolicy]] = (),
    ) -> None:
        self._boxes = [
            Box(number, agent, user_of(agent, np.random.default_rng([seed, number])))
            for number, agent in enumerate(agents)
        ]
        self._engine = engine
        self._rule = rule_named(rule)
        self._coupled = rule == "coupled"
        self._prefill_chunk = prefill_chunk
        self._beta = beta
        self._warm_up_s = warm_up_s
        self._random = np.random.default_rng(seed)
        self._keep_records = keep_records
        self._rolling = rounds == "rolling"
        self._meter = EngineMeter(PassCost(engine.samples()))
        self._events: list[tuple[float, int, _Kind, Stream | Box | GrantPolicy | None]] = []
        self._numbers = itertools.count()
        self._granting = Granting(
            policy,
            rounds,
            load=lambda: self._meter.load,
            random=self._random,
            come=lambda when, stream: self._at(when, "draft", stream),
        )
        for at, changed in steered:
            self._at(at, "steered", changed)
        self._joining: list[Stream] = []
        self._prefilling: list[Stream] = []
        self._chunks: list[tuple[Stream, int]] = []
        """Of prompts, in the pass that runs."""
        self._running: list[Stream] | None = None
        self._carried: list[int] = []
        """What the pass that runs verifies of each of its streams."""
        self._began_at = 0.0
        self._alarm_at = math.inf
        self._counted = np.zeros(len(agents))
        self._passes = 0
        self._busy_s = 0.0
        self._records: list[Record] = []
        self._written: list[Written] = []
        self._spans: list[Span] = []

    @property
    def _rounds(self) -> Rounds[Stream]:
        return self._granting.rounds

    def run(self, duration_s: float) -> Result:
        for box in self._boxes:
            if box.agent.joins_at < duration_s:
                self._arrive(box)
        while self._events and self._events[0][0] < duration_s:
            now = self._events[0][0]
            while self._events and self._events[0][0] <= now:
                _, _, kind, whose = heapq.heappop(self._events)
                self._handle(kind, whose, now)
            joining = [stream for stream in self._joining if not stream.box.gone]
            self._joining = []
            if joining:
                self._schedule(joining, now)
            if self._running is None:
                self._try_to_close(now)
        present = [
            max(0.0, min(agent.leaves_at, duration_s) - max(agent.joins_at, self._warm_up_s))
            for agent in (box.agent for box in self._boxes)
        ]
        for box in self._boxes:
            if box.stream is not None and box.stream.opened_at < duration_s:
                self._spans.append(Span(box.number, box.stream.opened_at, min(duration_s, box.agent.leaves_at)))
        return Result(
            self._counted, np.array(present), self._passes, self._busy_s, self._records, self._written, self._spans
        )

    def _arrive(self, box: Box) -> None:
        """An agent is there, and its user asks for something, or for a text without an end."""
        joins_at = box.agent.joins_at
        if box.agent.leaves_at < math.inf:
            self._at(box.agent.leaves_at, "leave", box)
        if box.asking is not None:
            self._at(box.asking.first_at(joins_at), "ask", box)
        else:
            box.stream = self._stream(box, joins_at)
            self._at(joins_at, "join", box.stream)

    def _stream(self, box: Box, now: float) -> Stream:
        """The server knows of its agent what the texts before have shown."""
        estimator = HitOrMiss(box.prior_alpha) if self._coupled else RatioMean(box.prior_alpha)
        rate = Goodput(now, 1.0 / self._engine.seconds(1, 1))
        return Stream(box, box.agent, estimator, box.pace.copy(), rate, opened_at=now)

    def _at(self, when: float, kind: _Kind, whose: Stream | Box | GrantPolicy | None = None) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), kind, whose))

    def _handle(self, kind: _Kind, whose: Stream | Box | GrantPolicy | None, now: float) -> None:
        if kind == "verified":
            self._commit(now)
        elif kind == "alarm":
            self._alarm_at = math.inf
        elif isinstance(whose, GrantPolicy):
            self._granting.adopt(whose, now)
        elif isinstance(whose, Box):
            self._hear_of(kind, whose, now)
        elif whose is not None and not whose.box.gone:
            self._hear(kind, whose, now)

    def _hear_of(self, kind: _Kind, box: Box, now: float) -> None:
        """Something of one agent."""
        if kind == "leave":
            box.gone = True
            if box.stream is not None:
                self._rounds.leave(box.stream)
                self._prefilling = [stream for stream in self._prefilling if stream is not box.stream]
        elif not box.gone and box.asking is not None:
            box.asked.append(now)
            if box.stream is None:
                self._open(box, now)
            if not box.asking.waits:
                self._at(box.asking.next_at(now), "ask", box)

    def _open(self, box: Box, now: float) -> None:
        """Send the next prompt to the server."""
        assert box.asking is not None
        there_at = now + box.agent.latency_s
        box.stream = self._stream(box, there_at)
        box.stream.prompt_left, box.stream.left = box.asking.lengths()
        box.stream.runs, box.stream.longest = box.asking.runs(), box.asking.longest()
        self._at(there_at, "join", box.stream)

    def _close(self, stream: Stream, now: float) -> None:
        """A text is complete; its agent hears so, and goes on with the next."""
        box = stream.box
        assert box.asking is not None
        heard_at, asked_at = now + box.agent.latency_s, box.asked.popleft()
        if asked_at >= self._warm_up_s:
            self._written.append(Written(box.number, asked_at, stream.first_at, heard_at, stream.written))
        self._spans.append(Span(box.number, stream.opened_at, now))
        box.prior_alpha += _PRIOR_STEP * (stream.estimator.alpha - box.prior_alpha)
        box.pace, box.stream = stream.pace, None
        self._rounds.leave(stream)
        if box.asked:
            self._open(box, heard_at)
        elif box.asking.waits:
            self._at(box.asking.next_at(heard_at), "ask", box)

    def _hear(self, kind: _Kind, stream: Stream, now: float) -> None:
        """Something of one stream."""
        match kind:
            case "join":
                (self._prefilling if stream.prompt_left else self._joining).append(stream)
            case "draft" if self._rolling:
                here = stream.guessing.beyond(stream.budget, now)
                waiting = self._rounds.arrive(stream, now, here, more=True)
                if waiting and here < stream.budget and self._running is None:
                    self._at(now + stream.agent.draft_s, "draft", stream)
            case "draft" if self._rounds.arrive(stream, now, stream.drafted):
                elapsed_s, stream.arrived_at = now - stream.arrived_at, now
                stream.pace.observe(stream.drafted, elapsed_s, stream.computed_s)

    def _try_to_close(self, now: float) -> None:
        batch = self._rounds.close(now, prompts=bool(self._prefilling))
        if batch or self._prefilling:
            self._verify(batch, now)
            return
        closes_at = self._rounds.closes_at()
        if closes_at is not None and closes_at < self._alarm_at:
            self._alarm_at = closes_at
            self._at(max(closes_at, now), "alarm")

    def _verify(self, batch: list[Stream], now: float) -> None:
        self._carried = [
            stream.guessing.beyond(stream.budget, now) if self._rolling else stream.drafted for stream in batch
        ]
        sizes = share_out([stream.prompt_left for stream in self._prefilling], self._prefill_chunk)
        self._chunks = [pair for pair in zip(self._prefilling, sizes, strict=True) if pair[1]]
        tokens = sum(self._carried) + len(batch) + sum(sizes)
        rows = len(batch) + len(self._chunks)
        seconds = self._engine.seconds(rows, tokens) + self._engine.drafting_s(self._carried)
        if self._engine.noise:
            seconds *= math.exp(self._engine.noise * self._random.standard_normal())
        self._meter.observe(PassSample(rows, tokens, seconds))
        self._running, self._began_at = batch, now
        self._passes += 1
        self._busy_s += seconds
        self._at(now + seconds + self._engine.between_s, "verified")

    def _commit(self, now: float) -> None:
        assert self._running is not None
        going_on = [pair for pair in zip(self._running, self._carried, strict=True) if not pair[0].box.gone]
        began_at, self._running = self._began_at, None
        self._advance_prefill()
        if not going_on:
            return
        batch = [stream for stream, _ in going_on]
        budgets = [carried for _, carried in going_on]
        committed = []
        for stream, budget, judgement in zip(batch, budgets, self._judge(batch, budgets, began_at, now), strict=True):
            committed.append(self._learn(stream, budget, judgement, now))
        smoothed = [stream.per_round for stream in batch] if self._keep_records else []
        numbers = [stream.box.number for stream in batch]
        for stream in batch:
            if not stream.left:
                self._close(stream, now)
        unfinished = [stream for stream in batch if stream.left]
        price = self._schedule(unfinished, now) if unfinished else 0.0
        if self._keep_records:
            self._records.append(Record(now, now - began_at, numbers, budgets, committed, smoothed, price))

    def _judge(self, batch: list[Stream], budgets: list[int], began_at: float, now: float) -> list[Judgement]:
        if self._rolling:
            return [
                Judgement(stream.guessing.accepted(budget), 0) for stream, budget in zip(batch, budgets, strict=True)
            ]
        alpha = np.array([stream.agent.alpha_at(began_at) for stream in batch])
        if not self._coupled:
            if self._rule.name == "ratio":
                return judge_by_ratio(alpha, budgets, self._random)
            return judge_by_rule(self._rule, alpha, budgets, self._random)
        chance = hits_in_a_row(alpha, self._random).tolist()
        hits = [run if s.runs is None else int(s.runs[s.written]) for s, run in zip(batch, chance, strict=True)]
        for stream, run in zip(batch, hits, strict=True):
            # One hit beyond the draft: the agent's own guess at the bonus token was right.
            ahead = stream.agent.drafts_ahead and 0 < stream.drafted < run
            stream.head_start_s = now - stream.arrived_at + 2 * stream.agent.latency_s if ahead else 0.0
        return [Judgement(min(run, budget), 0) for run, budget in zip(hits, budgets, strict=True)]

    def _advance_prefill(self) -> None:
        for stream, size in self._chunks:
            stream.prompt_left -= size
            if not stream.prompt_left and stream in self._prefilling:
                self._prefilling.remove(stream)
                self._joining.append(stream)

    def _learn(self, stream: Stream, budget: int, judgement: Judgement, now: float) -> int:
        size = int(min(judgement.accepted + 1, stream.left))
        if self._rolling:
            self._learn_from_guesses(stream, size, now)
        else:
            # Who has nothing more to say misses there.
            stream.estimator.observe(stream.budget, judgement)
        stream.rate.observe(size, now)
        stream.per_round = smooth_goodput(stream.per_round, size, self._beta)
        if now >= self._warm_up_s:
            self._counted[stream.box.number] += size
        if not stream.written:
            stream.first_at = now + stream.agent.latency_s
        stream.written += size
        stream.left -= size
        return size

    def _learn_from_guesses(self, stream: Stream, size: int, now: float) -> None:
        agent = stream.agent
        first_s = stream.guessing.first_here(now)
        if first_s is not None:
            stream.pace.observe(1, first_s, agent.draft_s)
        right, missed = stream.guessing.overtake(size, now)
        if right or missed:
            stream.estimator.observe(right + missed, Judgement(right, 0))
            stream.probing.answered(now)

    def _schedule(self, streams: Sequence[Stream], now: float) -> float:
        there = sum(box.stream is not None and not box.gone for box in self._boxes)
        return self._granting.grant(streams, there, now)
