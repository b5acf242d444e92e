"""What everybody drafts next, from what is known of the streams, their agents and the engine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from goodspeed.estimation import HitOrMiss, RatioMean, smooth_goodput
from goodspeed.messages import Draft
from goodspeed.probing import PROBE_EVERY_S, PROBE_GIVE_UP_S, PROBE_TOKENS, Probe
from goodspeed.scheduling import Demand, Scheduler, Timing, checked_plan, needs_no_capacity
from goodspeed.stream import Commit
from goodspeed.timing import EngineMeter, PassSample
from goodspeed.verification import Judgement, Rule
from goodspeed_server.live import LiveStream
from goodspeed_server.settings import CAPACITY_PER_STREAM, RoundSettings

__all__ = ["STRETCH", "Planner"]

STRETCH = 2
"""An agent that heeds the price may draft so many times what the schedule expects of a draft of average quality."""


class Planner:
    """Learns from every pass and every draft, and chooses budgets.

    Args:
        scheduler: chooses the budgets.
        rule: of verification.
        settings: the operator's choices.
        meter: watches the engine.
    """

    def __init__(self, scheduler: Scheduler, rule: Rule, settings: RoundSettings, meter: EngineMeter) -> None:
        self.scheduler = scheduler
        self.meter = meter
        self._settings = settings
        self._coupled = rule == "coupled"
        self._probes = self._coupled and settings.rounds == "rolling"

    @property
    def limited_by_price(self) -> bool:
        """Whether it is the price of the engine's time, and no number of tokens, that holds drafts back."""
        chosen = self._settings
        return chosen.rounds == "rolling" and chosen.capacity is None and needs_no_capacity(self.scheduler)

    def estimator(self, prior_alpha: float) -> HitOrMiss | RatioMean:
        """For a new stream of an agent whose earlier ones had this acceptance rate."""
        return HitOrMiss(prior_alpha) if self._coupled else RatioMean(prior_alpha)

    def capacity(self, live: Collection[LiveStream]) -> int:
        """Draft tokens that may be granted to these streams, all that have a row, together."""
        if self._settings.capacity is not None:
            return self._settings.capacity
        if self.limited_by_price:
            return sum(stream.stream.max_draft for stream in live)
        return CAPACITY_PER_STREAM * sum(stream.stream.max_draft > 0 for stream in live)

    def plan(self, streams: Sequence[LiveStream], capacity: int, now: float) -> None:
        """Give each of some streams its next budget, or ask it for a draft on the side."""
        plan = checked_plan(self.scheduler, self._demand(streams), capacity)
        chances = plan.least_chance if self._settings.early_stop else None
        prices = [0] * len(streams) if chances is None else (1000 * chances).astype(int).tolist()
        for live, budget, price in zip(streams, plan.budgets.tolist(), prices, strict=True):
            live.budget = live.expected = budget
            live.price_permille = price if budget else 0
            if live.price_permille and live.account.heeds_price and self.limited_by_price:
                live.budget = min(STRETCH * budget, live.stream.draft_limit)
            if live.probe is not None and now - live.probe.asked_at > PROBE_GIVE_UP_S:
                live.probe = None
            size = min(PROBE_TOKENS, live.stream.draft_limit) if self._probes and budget == 0 else 0
            if size and live.probe is None and now >= live.probe_at:
                live.probe = Probe(live.stream.length, now, size)

    def drafted(self, live: LiveStream, draft: Draft, elapsed_s: float) -> None:
        """A draft has come, so long after it was asked for."""
        live.pace.observe(len(draft.tokens), elapsed_s, draft.computed_us / 1e6)
        live.account.heeds_price |= draft.priced_out and live.price_permille > 0

    def probed(self, live: LiveStream, tokens: Sequence[int], computed_s: float, now: float) -> None:
        """A draft on the side has come."""
        assert live.probe is not None
        live.probe.drafted = tokens
        live.pace.observe(len(tokens), now - live.probe.asked_at, computed_s)
        self._judge_probe(live, now)

    def committed(self, live: LiveStream, judgement: Judgement, commit: Commit, now: float) -> None:
        """Learn from one stream's part in a pass."""
        # A draft that is overdue says something of its agent's speed, and nothing of its guesses; that none was asked
        # for is worth noting only where nothing else is learnt meanwhile.
        if live.draft is not None or (live.budget == 0 and not self._probes):
            live.estimator.observe(_asked(live), judgement)
        live.goodput = smooth_goodput(live.goodput, commit.size, self._settings.beta)
        live.rate.observe(commit.size, now)
        if live.probe is not None:
            self._judge_probe(live, now)

    def passed(self, sample: PassSample, began_at: float, waits_s: Iterable[float]) -> None:
        """Learn from a pass as a whole; `waits_s` says how long each draft in it had been here when it began."""
        self.meter.observe(sample, began_at, waits_s)

    def _judge_probe(self, live: LiveStream, now: float) -> None:
        assert live.probe is not None
        judgement = live.probe.judge(live.stream.tokens)
        if judgement is not None:
            # A drafter that has nothing to say gets no further credit either.
            live.estimator.observe(live.probe.size, judgement)
            live.probe, live.probe_at = None, now + PROBE_EVERY_S

    def _demand(self, streams: Sequence[LiveStream]) -> Demand:
        # Probes keep estimates fresh; without them only optimism ever brings a drafter back.
        alpha = [live.estimator.alpha if self._probes else live.estimator.optimistic for live in streams]
        return Demand(
            alpha=np.array(alpha),
            goodput=np.array([live.goodput for live in streams]),
            weight=np.ones(len(streams)),
            limit=np.array([live.stream.draft_limit for live in streams], dtype=np.int64),
            timing=Timing(
                rate=np.array([live.rate.rate for live in streams]),
                draft_s=np.array([live.pace.draft_s for live in streams]),
                turnaround_s=np.array([live.pace.turnaround_s for live in streams]),
                engine=self.meter.load,
            ),
        )


def _asked(live: LiveStream) -> int:
    """How many tokens an estimator may hold the drafter to.

    Behind the price nothing was drafted and nothing can be said, except where not even the first token was worth it:
    such a draft is as good as a missed one to whoever decides whether to ask for another.
    """
    if live.draft is not None and live.draft.priced_out and live.price_permille:
        return max(1, len(live.draft.tokens))
    return live.budget
