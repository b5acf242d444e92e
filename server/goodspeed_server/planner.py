"""What everybody drafts next, from what is known of the streams, their agents and the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from goodspeed.errors import InvalidRequest, SchedulerFault
from goodspeed.estimation import HitOrMiss, ReachedMean, smooth_goodput
from goodspeed.guesses import Overtaken
from goodspeed.leads import PROBE_TOKENS, overtaken
from goodspeed.messages import Draft, DraftEnd
from goodspeed.rounds import Prospect
from goodspeed.rules import rule_named
from goodspeed.scheduling import Demand, PlainDecoding, Plan, Scheduler, Timing, checked_plan, needs_no_capacity
from goodspeed.stream import Commit
from goodspeed.timing import EngineMeter
from goodspeed.verification import Judgement, Rule
from goodspeed_server.live import DraftWay, LiveStream
from goodspeed_server.settings import CAPACITY_PER_STREAM, RoundSettings
from goodspeed_server.slices import many, slices_of

__all__ = ["Dealt", "Planner"]

logger = logging.getLogger(__name__)


class _Known(NamedTuple):
    """What a scheduler is told of one stream, in the order of `Demand` and `Timing`."""

    alpha: float
    goodput: float
    weight: float
    limit: int
    rate: float
    draft_s: float
    turnaround_s: float


class Dealt(NamedTuple):
    """Streams that have had their budgets, of many."""

    streams: Sequence[LiveStream]
    left: int
    """Draft tokens that are dealt to those which follow."""


class Planner:
    """Learns from every pass and every draft, and chooses budgets.

    Args:
        scheduler: chooses the budgets.
        rule: of verification.
        settings: the operator's choices.
        meter: watches the engine.
    """

    def __init__(self, scheduler: Scheduler, rule: Rule, settings: RoundSettings, meter: EngineMeter) -> None:
        self.meter = meter
        self.fault: SchedulerFault | None = None
        """Why it is not the scheduler that was chosen last that plans, but plain decoding."""
        self.on_fault: Callable[[], None] = lambda: None
        self.price = 0.0
        """`Plan.price` of the last plan."""
        self.scheduler = scheduler
        self._coupled = rule_named(rule).shares_noise
        self.on_overtaken: Callable[[LiveStream, int, Overtaken], None] = lambda live, first, what: None
        """Is told which guesses turned out right or wrong without a pass, where that says whether a pass would have
        accepted them: from which position of the transcript on."""
        self.adopt(scheduler, settings)

    def adopt(self, scheduler: Scheduler, settings: RoundSettings) -> None:
        """Plan by these from now on; what was granted stays granted."""
        if scheduler is not self.scheduler:
            self.fault = None
        self.scheduler = scheduler
        self._settings = settings
        self._waits = settings.rounds == "barrier"
        # Plain decoding asks nobody for anything, and has no use for what a probe would tell.
        self._probes = not self._waits and not isinstance(scheduler, PlainDecoding)

    def try_out(self, scheduler: Scheduler, streams: Sequence[LiveStream], capacity: int) -> None:
        """See that a scheduler can plan for these streams, and change nothing.

        Raises:
            InvalidRequest: it cannot.
        """
        try:
            for some in (streams, streams[:1]):
                if some:
                    checked_plan(scheduler, self._demand(some), capacity)
        except SchedulerFault as fault:
            raise InvalidRequest(f"that scheduler cannot plan for the streams that are open ({fault})") from fault

    @property
    def limited_by_price(self) -> bool:
        """Whether it is the price of the engine's time, and no number of tokens, that holds drafts back."""
        return not self._waits and self._settings.capacity is None and needs_no_capacity(self.scheduler)

    def estimator(self, prior_alpha: float) -> HitOrMiss | ReachedMean:
        """For a new stream of an agent whose earlier ones had this acceptance rate."""
        return HitOrMiss(prior_alpha) if self._coupled else ReachedMean(prior_alpha)

    def capacity(self, live: Collection[LiveStream]) -> int:
        """Draft tokens that may be granted to these streams, all that have a row, together."""
        if self._settings.capacity is not None:
            return self._settings.capacity
        if self.limited_by_price:
            return sum(stream.stream.max_draft for stream in live)
        return CAPACITY_PER_STREAM * sum(stream.stream.max_draft > 0 for stream in live)

    def plan(self, streams: Sequence[LiveStream], capacity: int, now: float) -> None:
        """Give each of some streams its next budget, and say what its agent is to draft for that.

        A scheduler that fails takes no text with it: what it should have planned is decoded plainly, and so is what
        follows, until another is adopted.
        """
        for _ in self.planning(streams, lambda: capacity, lambda: now):
            pass

    def planning(
        self, streams: Sequence[LiveStream], capacity: Callable[[], int], clock: Callable[[], float]
    ) -> Iterator[Dealt]:
        """As `plan`, with pauses: says before each which streams have had their budgets since the one before.

        Args:
            streams: at least one.
            capacity: draft tokens that may be granted, asked for once all is known of the streams.
            clock: seconds.
        """
        known: list[_Known] = []
        for some in slices_of(streams):
            known += map(self._known, some)
            if many(streams):
                yield Dealt((), 0)
        demand = self._demand_of(known)
        limits, chances = demand.limit.tolist(), demand.alpha.tolist()  # whatever the scheduler does to them
        plan = self._answer(demand, capacity())
        self.price = plan.price
        worth_s = [0.0] * len(streams) if plan.worth_s is None else plan.worth_s.tolist()
        grants = list(zip(streams, plan.budgets.tolist(), worth_s, limits, chances, strict=True))
        left = int(plan.budgets.sum())
        for some_grants in slices_of(grants):
            now, token_s = clock(), self.meter.load.cost.token_s
            for live, budget, worth, limit, chance in some_grants:
                left -= budget
                idle = not live.lead
                live.budget = live.lead = budget
                live.worth_s, live.price, live.price_percent, live.overtaken = worth, None, 0, 0
                if budget and worth > 0:
                    live.price = min(1.0, token_s / worth)
                    live.price_percent = int(100 * live.price) if self._settings.early_stop else 0
                if not self._waits:
                    self._look_ahead(live, limit, chance, now)
                if idle and live.lead:
                    live.began_at = now
            yield Dealt([live for live, *_ in some_grants], left)

    def _answer(self, demand: Demand, capacity: int) -> Plan:
        try:
            return checked_plan(self.scheduler, demand, capacity)
        except SchedulerFault as fault:
            self._do_without(fault)
            return self.scheduler.plan(demand, capacity)

    def _do_without(self, fault: SchedulerFault) -> None:
        logger.error("%s; texts are decoded plainly until another scheduler is chosen", fault, exc_info=fault.__cause__)
        self.adopt(PlainDecoding(), self._settings)
        self.fault = fault
        self.on_fault()

    def _look_ahead(self, live: LiveStream, limit: int, chance: float, now: float) -> None:
        """Where the server does not wait: how far ahead the agent has to be."""
        survival = chance if self._coupled else live.matching.alpha
        behind = overtaken(live.pace, self.meter.load.pass_s, survival) if live.budget else None
        if behind is None:
            live.budget = live.price_percent = 0
            live.lead = min(PROBE_TOKENS, limit) if self._probes and limit and live.probing.wanted(now) else 0
        else:
            live.overtaken, live.lead = behind, min(behind + live.budget, limit)

    def prospect(self, live: LiveStream, now: float) -> Prospect | None:
        """What waiting for a stream's guesses would bring; None if some are here, or none are wanted."""
        if not live.budget or live.worth_s <= 0 or live.to_verify()[0]:
            return None
        pace = live.pace
        # What was heard before it was asked again says nothing of when the next are here.
        going_on = len(live.guesses) and live.heard_at >= live.began_at
        due_at = live.heard_at if going_on else live.began_at + pace.turnaround_s
        return Prospect(max(0.0, due_at + pace.draft_s - now), pace.draft_s, self._chance(live), live.worth_s)

    def drafted(self, live: LiveStream, draft: Draft, elapsed_s: float) -> None:
        """A draft that was waited for has come, so long after it was asked for."""
        live.pace.observe(len(draft.tokens), elapsed_s, draft.computed_us / 1e6)
        live.way = DraftWay.of(elapsed_s, draft.computed_us / 1e6, live.asked_at + elapsed_s)

    def guessed(self, live: LiveStream, draft: Draft, now: float) -> None:
        """Guesses have come that nobody waited for; they are in `live.guesses`."""
        computed_s, told_at = draft.computed_us / 1e6, live.told_at(draft.base)
        if draft.offset == 0 and told_at is not None:
            live.pace.observe(len(draft.tokens), now - told_at, computed_s)
            live.way = DraftWay.of(now - told_at, computed_s, now)
        elif draft.tokens:
            live.pace.observe_more(len(draft.tokens), now - live.heard_at, computed_s)
            if draft.offset:  # Of one that begins anew upon what is forgotten here, nobody knows the way.
                live.way = DraftWay.of(now - live.heard_at, computed_s, now)
        live.heard_at = now
        self._follow(live, now, in_time=False)

    def committed(
        self, live: LiveStream, drafted: Sequence[int], judgement: Judgement, commit: Commit, now: float
    ) -> None:
        """Learn from one stream's part in a pass."""
        if self._waits:
            # A draft that is overdue says something of its agent's speed, and nothing of its guesses.
            if live.draft is not None or live.budget == 0:
                priced_out = live.draft is not None and live.draft.end is DraftEnd.PRICED_OUT and live.price_percent > 0
                # Not even the first token was worth its price: a miss, most likely, and nobody hopes the more for it.
                asked = max(1, len(drafted)) if priced_out else live.budget
                live.estimator.observe(asked, judgement)
        else:
            if not self._coupled and (drafted or not live.budget):
                live.estimator.observe(len(drafted), judgement)
            self._follow(live, now, in_time=True)
        live.goodput = smooth_goodput(live.goodput, commit.size, self._settings.beta)
        live.rate.observe(commit.size, now)

    def _follow(self, live: LiveStream, now: float, *, in_time: bool) -> None:
        """Hold guesses against what is committed by now.

        Args:
            live: whose they are.
            now: seconds.
            in_time: whether they were here before its agent was told of what is committed.
        """
        first = live.guesses.judged_to
        right, missed = what = live.guesses.follow(live.stream.tokens)
        if self._coupled:
            self.on_overtaken(live, first, what)
        if missed:
            live.began_at = now
        if in_time:
            live.in_time.observe(right + missed, Judgement(right, 0))
        if right or missed:
            live.probing.answered(now)
            # Where both sides share the noise, a guess is right if and only if it would have been accepted.
            witness = live.estimator if self._coupled else live.matching
            witness.observe(right + missed, Judgement(right, 0))

    def _chance(self, live: LiveStream) -> float:
        # What probes do not keep fresh, only optimism ever brings back.
        if not (self._coupled and self._probes):
            return live.estimator.optimistic
        # Guesses that come late are most of what is known of slow agents, and are easily copied from the verdicts they
        # come after: so they are believed as far as what came in time does not speak against them.
        return min(live.estimator.alpha, live.in_time.optimistic)

    def _known(self, live: LiveStream) -> _Known:
        return _Known(
            self._chance(live),
            live.goodput,
            live.account.weight,
            live.draft_limit,
            live.rate.rate,
            live.pace.draft_s,
            live.pace.turnaround_s,
        )

    def _demand(self, streams: Sequence[LiveStream]) -> Demand:
        return self._demand_of([self._known(live) for live in streams])

    def _demand_of(self, known: Sequence[_Known]) -> Demand:
        alpha, goodput, weight, limit, rate, draft_s, turnaround_s = np.array(known).T  # float64 [streams] each
        timing = Timing(rate, draft_s, turnaround_s, self.meter.load)
        return Demand(alpha, goodput, weight, limit.astype(np.int64), timing)
