"""What everybody drafts next, as a server's planner grants it, and what the rounds are told to expect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from goodspeed.leads import PROBE_TOKENS, overtaken
from goodspeed.rounds import Barrier, Prospect, Rolling, Rounds
from goodspeed.scheduling import Demand, Scheduler, Timing, checked_plan
from goodspeed.simulation.acceptance import hits_in_a_row
from goodspeed.simulation.streams import Stream
from goodspeed.timing import EngineLoad

__all__ = ["Capacity", "GrantPolicy", "Granting", "RoundsKind"]

RoundsKind: TypeAlias = Literal["barrier", "rolling"]
Capacity: TypeAlias = int | Callable[[int], int] | None
"""Draft tokens a pass may verify, by the number of streams if it is a function; None is without a limit."""

_UNBOUNDED = 2**31


@dataclass(frozen=True, slots=True)
class GrantPolicy:
    """What an operator may choose of grants, and change while the server runs."""

    scheduler: Scheduler
    capacity: Capacity
    round_timeout_s: float
    """How long the barrier waits."""


class Granting:
    """Chooses budgets, and has agents draft.

    Args:
        policy: what it begins with.
        kind: of rounds.
        load: how the engine is doing at present.
        random: of links and guesses.
        come: is called for when more of whose draft will be at the server.
    """

    def __init__(
        self,
        policy: GrantPolicy,
        kind: RoundsKind,
        load: Callable[[], EngineLoad],
        random: np.random.Generator,
        come: Callable[[float, Stream], None],
    ) -> None:
        self._policy = policy
        self._load = load
        self._random = random
        self._come = come
        self.rolling = kind == "rolling"
        self.rounds: Rounds[Stream] = (
            Rolling(load=load, holder=lambda stream: stream.box)
            if self.rolling
            else Barrier(timeout_s=policy.round_timeout_s)
        )

    def adopt(self, policy: GrantPolicy, now: float) -> None:
        """Grant by this from now on; what was granted stays granted."""
        before, self._policy = self._policy, policy
        if self.rolling or policy.round_timeout_s == before.round_timeout_s:
            return
        waited_for, ready = self.rounds.drafting, self.rounds.ready
        self.rounds = Barrier(timeout_s=policy.round_timeout_s)
        for stream in (*ready, *waited_for):
            self.rounds.expect(stream, stream.budget, now)
        for stream in ready:
            self.rounds.arrive(stream, now, stream.budget)

    def grant(self, streams: Sequence[Stream], there: int, now: float) -> float:
        """Give each of some streams its next budget.

        Args:
            streams: whose turn it is.
            there: how many streams there are in all.
            now: seconds.

        Returns:
            The price of the plan.

        Raises:
            SchedulerFault: the scheduler plans what cannot be, or raises something.
        """
        capacity = self._policy.capacity
        if callable(capacity):
            capacity = capacity(there)
        if capacity is None:
            capacity = _UNBOUNDED
        outstanding = self.rounds.outstanding if capacity < _UNBOUNDED else 0
        plan = checked_plan(self._policy.scheduler, self._demand(streams, now), max(0, capacity - outstanding))
        jitter_s = (self._random.standard_exponential((len(streams), 2)).sum(-1)).tolist()
        worth_s = [0.0] * len(streams) if plan.worth_s is None else plan.worth_s.tolist()
        for stream, budget, jitter, worth in zip(streams, plan.budgets.tolist(), jitter_s, worth_s, strict=True):
            away_s = stream.agent.away_s(jitter)
            stream.budget = budget
            if self.rolling:
                self._let_guess(stream, away_s, worth, now)
            else:
                self._let_draft(stream, away_s, now)
        return plan.price

    def _let_draft(self, stream: Stream, away_s: float, now: float) -> None:
        self.rounds.expect(stream, stream.budget, now)
        stream.drafted = stream.said(stream.budget)
        if stream.budget:
            stream.computed_s = max(0.0, stream.drafted * stream.agent.draft_s - stream.head_start_s)
            stream.arrived_at = now
            self._come(now + away_s + stream.computed_s, stream)

    def _let_guess(self, stream: Stream, away_s: float, worth_s: float, now: float) -> None:
        agent, chance, pass_s = stream.agent, stream.estimator.alpha, self._load().pass_s
        most = agent.max_draft_at(now)
        behind = overtaken(stream.pace, pass_s, chance) if stream.budget else None
        if behind is not None:
            lead = min(behind + stream.budget, most)
        else:
            stream.budget = 0
            lead = min(PROBE_TOKENS, most) if most and stream.probing.wanted(now) else 0
        guessing, lead = stream.guessing, stream.said(lead)
        if lead and not guessing.under_way:
            run = int(hits_in_a_row(agent.alpha_at(now), self._random))
            if stream.runs is not None:
                run = int(stream.runs[stream.written])
            guessing.begin(now, now + away_s, agent.draft_s, run)
        guessing.lead = lead
        due_at = guessing.next_at(now) if stream.budget else None
        if due_at is None:
            self.rounds.expect(stream, stream.budget, now)
        else:
            # What a server foresees, not what it will see.
            prospect = Prospect(max(0.0, due_at - now), stream.pace.draft_s, chance, worth_s)
            self.rounds.expect(stream, stream.budget, now, prospect)
            self._come(due_at, stream)

    def _demand(self, streams: Sequence[Stream], now: float) -> Demand:
        limits = [min(stream.agent.max_draft_at(now), stream.left - 1) for stream in streams]
        return Demand(
            alpha=np.array([s.estimator.alpha if self.rolling else s.estimator.optimistic for s in streams]),
            goodput=np.array([stream.per_round for stream in streams]),
            weight=np.array([stream.agent.weight_at(now) for stream in streams]),
            limit=np.array(limits, dtype=np.int64),
            timing=Timing(
                rate=np.array([stream.rate.rate for stream in streams]),
                draft_s=np.array([stream.pace.draft_s for stream in streams]),
                turnaround_s=np.array([stream.pace.turnaround_s for stream in streams]),
                engine=self._load(),
            ),
        )
