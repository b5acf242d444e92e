"""What whoever watches is shown of the server: made once for all of them, and of many agents some at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence

from goodspeed.messages import Snapshot, encode
from goodspeed.snapshot import AgentRow, ServerSnapshot
from goodspeed_server.draining import Drain
from goodspeed_server.round_loop import RoundLoop
from goodspeed_server.telemetry import Telemetry

__all__ = ["SNAPSHOT_INTERVAL_S", "Showing"]

SNAPSHOT_INTERVAL_S = 0.25
"""Between two that a monitor is sent."""


class Showing:
    """Makes snapshots.

    Args:
        rounds: whose streams and capacity they show.
        telemetry: knows the rest.
        drain: whether the server goes away.
    """

    def __init__(self, rounds: RoundLoop, telemetry: Telemetry, drain: Drain) -> None:
        self._rounds = rounds
        self._telemetry = telemetry
        self._drain = drain
        self._begun_at = -math.inf
        """When the recent one was begun."""
        self._recent: ServerSnapshot
        self._frame: tuple[ServerSnapshot, bytes] | None = None
        self._making = asyncio.Lock()

    def snapshot(self) -> ServerSnapshot:
        """The server as it is now."""
        return self._snapshot([row for some in self._rows() for row in some])

    async def recent(self, age_s: float | None = None) -> ServerSnapshot:
        """The server as it was not so long ago; links are heard while it is made.

        Args:
            age_s: how old it may be; of those who ask while one is made all get the next.
        """
        oldest_at = self._rounds.now() - (SNAPSHOT_INTERVAL_S / 2 if age_s is None else age_s)
        async with self._making:
            if self._begun_at < oldest_at:
                begun_at, rows = self._rounds.now(), list[AgentRow]()
                for some in self._rows():
                    rows += some
                    await asyncio.sleep(0)
                self._recent, self._begun_at = self._snapshot(rows), begun_at
            return self._recent

    def outdate(self) -> None:
        """Something has changed that nobody is to be shown otherwise."""
        self._begun_at = -math.inf

    async def frame(self) -> bytes:
        """The message that shows it to a monitor."""
        shown = await self.recent()
        if self._frame is None or self._frame[0] is not shown:
            self._frame = shown, encode(Snapshot(shown.to_json()))
        return self._frame[1]

    def _rows(self) -> Iterator[list[AgentRow]]:
        return self._telemetry.agents(self._rounds.now(), self._rounds.live, self._rounds.is_prefilling)

    def _snapshot(self, agents: Sequence[AgentRow]) -> ServerSnapshot:
        return self._telemetry.snapshot(
            self._rounds.now(),
            self._rounds.live,
            agents,
            capacity=None if self._rounds.planner.limited_by_price else self._rounds.capacity,
            waiting=self._rounds.waiting,
            parked=self._rounds.parked,
            draining=self._drain.begun,
        )
