"""The garbage collector stops everybody for as long as it takes to look at all there is.

Of a server that is modules, the model, and what thousands of links hold: a fifth of a second, again and again, though
hardly anything is ever found that is not gone by itself. So what is there when it begins is not looked at any more, and
what is old only where memory grows, or now and then. What is young is looked at where there is more of it than a round
has under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
from collections.abc import AsyncIterator, Callable

import psutil

__all__ = ["sparing_collector"]

logger = logging.getLogger(__name__)

_NEVER = 2**30
_YOUNG = 50_000
"""Objects that have come, and not gone, since it looked last: a round of 2,000 streams has some 40,000 under way, none
of which is garbage. Python's own 700 would have it look at them again and again."""
_EVERY_S = 600.0
_GROWN_BYTES = (2**26, 2**28)
"""As much may wait for the collector to find it, at least and at most: who has much to look through does so more
rarely."""
_LOOK_EVERY_S = 2.0
_BLIND_EVERY_S = 60.0
"""Where memory cannot be read, it may grow unseen."""


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@contextlib.asynccontextmanager
async def sparing_collector(
    *,
    every_s: float = _EVERY_S,
    blind_every_s: float = _BLIND_EVERY_S,
    grown_bytes: tuple[int, int] = _GROWN_BYTES,
    look_every_s: float = _LOOK_EVERY_S,
    resident_bytes: Callable[[], int] = _resident_bytes,
) -> AsyncIterator[None]:
    """While this is open, have the collector look at nothing that was there before, and rarely at what is old.

    Args:
        every_s: that it looks at all the rest at least.
        blind_every_s: the same, while the memory of the process cannot be read.
        grown_bytes: or as soon as the process has grown since by half of all that has come while this is open; by so
            much at least, and so much at most.
        look_every_s: how often that is looked at.
        resident_bytes: the memory of the process.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, thresholds[1], _NEVER)
    collector = _Collector(every_s, blind_every_s, grown_bytes, resident_bytes)
    collecting = asyncio.create_task(_collect(collector, look_every_s), name="collector")
    collecting.add_done_callback(_over)
    try:
        yield
    finally:
        collecting.cancel()
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        await asyncio.wait([collecting])


async def _collect(collector: _Collector, look_every_s: float) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(look_every_s)
        collector.look(clock)


def _over(collecting: asyncio.Task[None]) -> None:
    """Said as it happens: a server goes on for days without it."""
    if not collecting.cancelled() and (error := collecting.exception()) is not None:
        logger.error("old garbage is collected no more: start the server again before it fills memory", exc_info=error)


class _Collector:
    """Collects what is old when it is time; the arguments are those of `sparing_collector`."""

    def __init__(
        self, every_s: float, blind_every_s: float, grown_bytes: tuple[int, int], resident_bytes: Callable[[], int]
    ) -> None:
        self._every_s = every_s
        self._blind_every_s = blind_every_s
        self._grown_bytes = grown_bytes
        self._resident_bytes = resident_bytes
        self._collected_at = -math.inf
        self._began: int | None = None
        """Bytes that were there at the first look."""
        self._held: int | None = None
        """Bytes that were left then; None if that could not be read."""
        self._blind = False
        """Whether memory could not be read last."""

    def look(self, clock: Callable[[], float]) -> None:
        """See how much memory there is, and collect if it is time."""
        resident = self._read()
        interval_s = self._every_s if resident is not None else min(self._every_s, self._blind_every_s)
        if self._has_grown_to(resident) or clock() - self._collected_at >= interval_s:
            gc.collect()
            self._collected_at, self._held = clock(), self._read()

    def _has_grown_to(self, resident: int | None) -> bool:
        if resident is None:
            return False
        if self._began is None:
            self._began = resident
        if self._held is None:
            self._held = resident
        least, most = self._grown_bytes
        return resident - self._held >= min(most, max(least, (self._held - self._began) // 2))

    def _read(self) -> int | None:
        try:
            resident = self._resident_bytes()
        except (OSError, psutil.Error) as error:  # there are no files left, for one, and much may be garbage
            if not self._blind:
                logger.warning(
                    "the server's memory cannot be read (%s): it is looked through for garbage every %g s until it can",
                    error,
                    min(self._every_s, self._blind_every_s),
                )
            self._blind = True
            return None
        self._blind = False
        return resident
