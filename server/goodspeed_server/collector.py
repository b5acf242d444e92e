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
"""Objects that have come and not gone since it looked last. A round of 2,000 streams has 40,000 under way, none of which
is garbage; with Python's 700 the collector took a tenth of the event loop's time, 30 ms at once."""
_EVERY_S = 600.0
_GROWN_BYTES = 2**26
"""As much may wait for the collector to find it."""
_LOOK_EVERY_S = 2.0


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@contextlib.asynccontextmanager
async def sparing_collector(
    *,
    every_s: float = _EVERY_S,
    grown_bytes: int = _GROWN_BYTES,
    look_every_s: float = _LOOK_EVERY_S,
    resident_bytes: Callable[[], int] = _resident_bytes,
) -> AsyncIterator[None]:
    """While this is open, have the collector look at nothing that was there before, and rarely at what is old.

    Args:
        every_s: that it looks at all the rest at least.
        grown_bytes: or as soon as the process has grown by so much since.
        look_every_s: how often that is looked at.
        resident_bytes: the memory of the process.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, thresholds[1], _NEVER)
    collecting = asyncio.create_task(_collect(every_s, grown_bytes, look_every_s, resident_bytes))
    try:
        yield
    finally:
        collecting.cancel()
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def _collect(every_s: float, grown_bytes: int, look_every_s: float, resident_bytes: Callable[[], int]) -> None:
    clock = asyncio.get_running_loop().time
    collected_at, held = -math.inf, 0
    while True:
        await asyncio.sleep(look_every_s)
        try:
            resident = resident_bytes()
            if clock() - collected_at >= every_s or resident - held >= grown_bytes:
                gc.collect()
                collected_at, held = clock(), resident_bytes()
        except (OSError, psutil.Error) as error:  # there are no files left, for one, and much may be garbage
            logger.warning("the server's memory cannot be read (%s): it is looked through for garbage", error)
            gc.collect()
