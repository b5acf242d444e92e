"""What an operator changed while a trace was written, as far as a replay follows it."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from goodspeed.scenarios.scenario import Contender
from goodspeed.scenarios.simulating import Policy
from goodspeed.scheduling import CAPACITY_PER_STREAM, make_scheduler
from goodspeed.simulation import Capacity, GrantPolicy
from goodspeed.traces.events import Event, Header, Planned, Served, Weighed
from goodspeed.traces.reading import Trace, printable
from goodspeed.utility import AlphaFair

__all__ = ["Steps", "capacity_of", "changes_of_plans", "undrafted", "weights"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Steps(Generic[T]):
    """A value that changes at some moments."""

    first: T
    at_s: tuple[float, ...]
    then: tuple[T, ...]
    """From each of those moments on."""

    def __call__(self, now: float) -> T:
        """At a time, seconds."""
        place = bisect.bisect_right(self.at_s, now)
        return self.then[place - 1] if place else self.first


def weights(events: Sequence[Event], agent: str, own: float) -> float | Steps[float]:
    """What an agent weighed.

    Args:
        events: of a trace.
        agent: by its name, as it is printed.
        own: what it weighed before an operator said another weight, and weighs again when that is taken back.
    """
    changes = [
        (event.at, own if event.weight is None else event.weight)
        for event in events
        if isinstance(event, Weighed) and printable(event.agent) == agent
    ]
    return Steps(own, *_columns(changes)) if changes else own


def undrafted(events: Sequence[Event], agent: str) -> Steps[bool] | None:
    """When an agent was asked for no drafts; None if it always was asked."""
    changes = [
        (event.at, event.service == "drained undrafted")
        for event in events
        if isinstance(event, Served) and printable(event.agent) == agent
    ]
    return Steps(False, *_columns(changes)) if any(none for _, none in changes) else None


def changes_of_plans(trace: Trace, contender: Contender, policy: Policy) -> Iterator[tuple[float, GrantPolicy]]:
    """When fairness, capacity or the barrier's timeout were changed, and what a contender plans by from then on.

    Scheduler and kind of rounds are what a contender is, and stay.

    Raises:
        InvalidRequest: the contender cannot be made.
    """
    before: Header | Planned = trace.header
    scheduler = policy.scheduler
    for event in trace.events:
        if isinstance(event, Planned):
            if event.fairness != before.fairness:
                scheduler = make_scheduler(contender.scheduler, AlphaFair(event.fairness))
            before = event
            yield event.at, GrantPolicy(scheduler, capacity_of(policy, event.capacity), event.round_timeout_s)


def capacity_of(policy: Policy, capacity: int | None) -> Capacity:
    """What a number of tokens, or None for the server's own choice, is to a policy."""
    if capacity is not None or policy._replace(capacity=None).unlimited:
        return capacity
    return _by_streams


def _by_streams(streams: int) -> int:
    return CAPACITY_PER_STREAM * streams


def _columns(changes: Sequence[tuple[float, T]]) -> tuple[tuple[float, ...], tuple[T, ...]]:
    return tuple(at for at, _ in changes), tuple(value for _, value in changes)
