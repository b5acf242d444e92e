"""Schedulers by name: those that are built in, and anybody's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from goodspeed.errors import InvalidRequest, SchedulerFault
from goodspeed.plugins import Kind, make
from goodspeed.scheduling.baselines import FixedS, PlainDecoding, RandomS, ThroughputSched
from goodspeed.scheduling.gradient import GoodSpeedSched
from goodspeed.scheduling.interface import Demand, Scheduler, Timing, checked_plan
from goodspeed.scheduling.seconds import SecondsSched
from goodspeed.timing import EngineMeter, PassCost, PassSample
from goodspeed.utility import AlphaFair

__all__ = ["SCHEDULER", "SCHEDULERS", "make_scheduler"]

SCHEDULERS: Mapping[str, Callable[..., Scheduler]] = {
    "seconds": SecondsSched,
    "goodspeed": GoodSpeedSched,
    "fixed": FixedS,
    "random": RandomS,
    "throughput": ThroughputSched,
    "plain": PlainDecoding,
}
"""What `--scheduler` chooses among, beside one's own; see `plugins`."""

# mypy has no type for "a protocol's own class".
SCHEDULER: Kind[Scheduler] = Kind("scheduler", "goodspeed.schedulers", Scheduler, SCHEDULERS)  # type: ignore[type-abstract]


def make_scheduler(given: str, utility: AlphaFair) -> Scheduler:
    """Make a scheduler, one's own included.

    One's own is tried on a small demand first, another than the one that is returned: what goes wrong with it goes
    wrong here, rather than behind a running server.

    Args:
        given: a name, an entry point or a place, with options if it has any; see `plugins`.
        utility: given to a constructor that has a parameter `utility`.

    Raises:
        InvalidRequest: there is none of this name, or it is no scheduler, or it fails.
    """
    tried = make(SCHEDULER, given, utility=utility)
    try:
        for capacity in (5, 0):
            checked_plan(tried, _small_demand(), capacity)
    except SchedulerFault as fault:
        raise InvalidRequest(f"the scheduler {given} cannot plan for three streams: {fault}") from fault
    return make(SCHEDULER, given, utility=utility)


def _small_demand() -> Demand:
    """Three streams, one of which cannot draft."""
    load = EngineMeter(PassCost([PassSample(1, 1, 0.03), PassSample(4, 16, 0.05)])).load
    ones = np.ones(3)
    return Demand(
        alpha=np.array([0.5, 0.9, 0.7]),
        goodput=np.array([1.0, 3.0, 1.0]),
        weight=ones,
        limit=np.array([4, 16, 0]),
        timing=Timing(rate=10 * ones, draft_s=0.01 * ones, turnaround_s=0.02 * ones, engine=load),
    )
