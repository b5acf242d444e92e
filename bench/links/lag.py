"""How late the event loop is."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Lag"]


class Lag:
    """Asks the loop at points in time that are fixed beforehand: one long block is met by all that fall into it.

    Whoever sleeps, and sleeps again, meets it once, however long it is, and finds the loop better than its links do.

    Args:
        every_s: between two points.
    """

    def __init__(self, every_s: float = 0.005) -> None:
        self._every_s = every_s
        self._late_s: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._due = time.monotonic() + every_s
        self._alarm = self._loop.call_later(every_s, self._ask)

    def stop(self) -> list[float]:
        """Ask no more, and say by how much each point was late, seconds."""
        self._alarm.cancel()
        return self._late_s

    def _ask(self) -> None:
        now = time.monotonic()
        while self._due <= now:
            self._late_s.append(now - self._due)
            self._due += self._every_s
        self._alarm = self._loop.call_later(self._due - now, self._ask)
