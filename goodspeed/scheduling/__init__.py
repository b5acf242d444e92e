"""Schedulers: from what is known of every stream to the budgets of the next round.

A scheduler of one's own is one class with one method, `plan(demand, capacity)`; see `Scheduler`.
"""

from goodspeed.scheduling.baselines import FixedS, PlainDecoding, RandomS, ThroughputSched
from goodspeed.scheduling.gradient import GoodSpeedSched
from goodspeed.scheduling.interface import (
    CAPACITY_PER_STREAM,
    Demand,
    Plan,
    Scheduler,
    Timing,
    checked_plan,
    needs_no_capacity,
)
from goodspeed.scheduling.named import SCHEDULER, SCHEDULERS, make_scheduler
from goodspeed.scheduling.seconds import SecondsSched

__all__ = [
    "CAPACITY_PER_STREAM",
    "SCHEDULER",
    "SCHEDULERS",
    "Demand",
    "FixedS",
    "GoodSpeedSched",
    "PlainDecoding",
    "Plan",
    "RandomS",
    "Scheduler",
    "SecondsSched",
    "ThroughputSched",
    "Timing",
    "checked_plan",
    "make_scheduler",
    "needs_no_capacity",
]
