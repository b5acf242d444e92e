"""What a scheduler is given, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from goodspeed.errors import SchedulerFault
from goodspeed.plugins import raised
from goodspeed.timing import EngineLoad

__all__ = ["CAPACITY_PER_STREAM", "Demand", "Plan", "Scheduler", "Timing", "checked_plan", "needs_no_capacity"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CAPACITY_PER_STREAM = 2
"""Where nobody says otherwise: a verification a few tokens long costs little more than one decoding step on most
hardware."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The same streams on the clock, and the engine; one element a stream in every array, [streams]."""

    rate: Floats
    """Smoothed goodputs, tokens per second."""
    draft_s: Floats
    """Seconds an agent takes for one drafted token."""
    turnaround_s: Floats
    """Seconds between a verdict and the next draft that are not drafting: both ways through the network."""
    engine: EngineLoad


@dataclass(frozen=True, slots=True)
class Demand:
    """Everything known of the streams that need a budget now; one element a stream in every array, [streams]."""

    alpha: Floats
    """Acceptance rates, in [0, 1]."""
    goodput: Floats
    """Smoothed goodputs `X`, tokens per round."""
    weight: Floats
    """Weights `omega`."""
    limit: Ints
    """The longest draft each stream can use: its drafter's, its remaining tokens, its room in the cache."""
    timing: Timing | None = None
    """What schedulers in seconds ask for; those that count rounds make no use of it."""

    def __post_init__(self) -> None:
        assert len(self.alpha) == len(self.goodput) == len(self.weight) == len(self.limit)

    def __len__(self) -> int:
        return len(self.alpha)


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer."""

    budgets: Ints
    """How many drafted tokens of each stream the next pass may verify, [streams]; 0 <= budget <= limit, summing to at
    most the capacity."""
    price: float = 0.0
    """What a token has to add to the objective to be verified: the dual price of `C`, or of the engine's time, where a
    schedule counts that and it is dearer."""
    worth_s: Floats | None = None
    """For how many seconds it would pay to hold up a pass for one more token of a stream, [streams]; a drafted token
    is worth that times the chance that it is accepted. None where a schedule has no opinion."""


def checked_plan(scheduler: Scheduler, demand: Demand, capacity: int) -> Plan:
    """Ask a scheduler, and see that what it answers can be.

    Raises:
        SchedulerFault: naming the scheduler, and what is wrong with its budgets, or what it raised.
    """
    who, limit = type(scheduler).__name__, demand.limit.copy()
    # Somebody else's class, most likely: whatever goes wrong in it, it is what has to be named.
    try:
        plan: object = scheduler.plan(demand, capacity)
    except Exception as error:
        raise SchedulerFault(f"{who} raised {raised(error)}") from error
    if not isinstance(plan, Plan):
        raise SchedulerFault(f"{who} answered {type(plan).__name__}: it must be a Plan")
    try:
        budgets, price = np.asarray(plan.budgets), float(plan.price)
        worth_s = None if plan.worth_s is None else np.asarray(plan.worth_s, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SchedulerFault(f"{who} answered a Plan of what are no numbers: {error}") from error
    if budgets.shape != (len(demand),) or not np.issubdtype(budgets.dtype, np.integer):
        raise SchedulerFault(
            f"{who} answered {budgets.dtype} of shape {budgets.shape} for {len(demand)} streams: "
            "it must be one integer a stream"
        )
    wrong = np.flatnonzero((budgets < 0) | (budgets > limit))
    if len(wrong):
        raise SchedulerFault(f"{who} gave a stream a budget of {budgets[wrong[0]]}: it must be 0 to {limit[wrong[0]]}")
    if worth_s is not None and not (worth_s.shape == budgets.shape and (worth_s >= 0).all()):
        raise SchedulerFault(f"{who} says wrongly what a token is worth: it must be 0 seconds or more, one a stream")
    if budgets.sum() > max(capacity, 0):
        raise SchedulerFault(f"{who} gave out {budgets.sum()} tokens: the capacity is {capacity}")
    return Plan(budgets.astype(np.int64), price, worth_s)


def needs_no_capacity(scheduler: Scheduler) -> bool:
    """Whether a scheduler's budgets end by themselves where a token is no longer worth the engine's time.

    All others spend whatever they are given. It says so by an attribute `needs_no_capacity = True`.
    """
    return bool(getattr(scheduler, "needs_no_capacity", False))


class Scheduler(Protocol):
    """Allocates the capacity of one verification pass.

    It is asked after every pass, for the streams of that pass, and once for every stream that joins, with a fair share
    of the capacity.
    """

    def plan(self, demand: Demand, capacity: int) -> Plan:
        """Choose the budgets.

        Args:
            demand: the streams.
            capacity: how many draft tokens the next verification may carry, `C`.
        """
