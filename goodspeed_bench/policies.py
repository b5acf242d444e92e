"""What is compared: a scheduler, a way of closing rounds, and a capacity."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from goodspeed_agent.ahead import AheadMode
from goodspeed_server.settings import RoundsName

__all__ = ["Policy"]


class Policy(Struct, frozen=True):
    """One way to run the server."""

    name: str
    scheduler: str
    rounds: RoundsName
    capacity: int | None = None
    """Draft tokens a round, `C`, of eight streams; fewer streams get their share of it."""
    co_located: bool = False
    """Whether the server drafts by itself; see `target.ColocatedEngine`."""
    draft_ahead: AheadMode = "off"
    """Whether agents draft on while they wait."""
    early_stop: bool = False
    """Whether agents are told the price of a token."""

    def with_capacity(self, capacity: int) -> Policy:
        """The same with another `C`."""
        return msgspec.structs.replace(self, capacity=capacity)
