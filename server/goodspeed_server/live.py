"""A stream that has a row in the engine, and everything the server knows of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from goodspeed.estimation import AcceptanceEstimator, Goodput
from goodspeed.messages import Draft, ServerMessage
from goodspeed.probing import Probe
from goodspeed.stream import ServedStream
from goodspeed.timing import Pace
from goodspeed.verification import DraftDistribution

__all__ = ["AgentAccount", "LiveStream", "Outbox"]


class Outbox(Protocol):
    """Where messages for an agent go; never blocks."""

    def post(self, message: ServerMessage) -> None:
        """Queue one message."""


@dataclass(slots=True, eq=False)
class AgentAccount:
    """What is counted for one link, over all its streams."""

    name: str
    drafter: str
    prior_alpha: float
    """Where the estimate of a new stream starts: what the streams before it have shown."""
    pace: Pace = field(default_factory=Pace)
    """The same, of its speed."""
    committed: int = 0
    drafted: int = 0
    accepted: int = 0
    bad_drafts: int = 0
    heeds_price: bool = False
    """Whether it has ever ended a draft because of the price."""


@dataclass(slots=True, eq=False)
class LiveStream:
    """One stream, identified by its link and its number there."""

    number: int
    outbox: Outbox
    account: AgentAccount
    stream: ServedStream
    row: int
    estimator: AcceptanceEstimator
    rate: Goodput
    """Tokens per second, smoothed in time."""
    pace: Pace
    """How fast its agent is."""
    budget: int = 0
    """How many tokens its agent may draft."""
    expected: int = 0
    """How many the schedule counts on: with a price, an agent may go further where its draft is likely enough."""
    price_permille: int = 0
    """`Plan.least_chance`, in thousandths, as its agent is told."""
    probe: Probe | None = None
    """The draft on the side it was asked for."""
    probe_at: float = 0.0
    """When it may be asked for one again."""
    arrived_at: float = 0.0
    """When its draft came."""
    draft: Draft | None = None
    q: list[DraftDistribution] = field(default_factory=list)
    in_pass: bool = False
    """Whether the pass that runs now reads or writes its row."""
    goodput: float = 1.0
    """Smoothed tokens per round, `X` of equation (4); every round commits at least one."""
    closed: bool = False
    """Whether it has ended; if a pass is at its row then, the row is released when the pass is over."""
