"""Schedulers: from what is known of every stream to the budgets of the next round.

A scheduler of one's own is one class with one method, `plan(demand, capacity)`; see `Scheduler`.
"""

from collections.abc import Callable, Mapping

from goodspeed.scheduling.baselines import FixedS, PlainDecoding, RandomS, ThroughputSched
from goodspeed.scheduling.gradient import GoodSpeedSched
from goodspeed.scheduling.interface import Demand, Plan, Scheduler, Timing, checked_plan, needs_no_capacity
from goodspeed.scheduling.seconds import SecondsSched
from goodspeed.utility import AlphaFair

__all__ = [
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
    "needs_no_capacity",
]

SCHEDULERS: Mapping[str, Callable[[AlphaFair], Scheduler]] = {
    "seconds": SecondsSched,
    "goodspeed": GoodSpeedSched,
    "fixed": lambda _utility: FixedS(),
    "random": lambda _utility: RandomS(),
    "throughput": lambda _utility: ThroughputSched(),
    "plain": lambda _utility: PlainDecoding(),
}
"""What `--scheduler` chooses among."""
