"""The end of what a server keeps of its work: it is written as far as the disk takes it in the time that there is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Protocol

__all__ = ["Keeper", "end_keepers"]

logger = logging.getLogger(__name__)

_LEAST_S = 4.0
"""A disk that works has so much time, however late it is."""


class Keeper(Protocol):
    """Writes on a thread of its own."""

    def close(self, within_s: float) -> None:
        """Write what is there; blocks meanwhile, but no longer than that."""


async def end_keepers(keepers: Sequence[Keeper], until_s: float) -> None:
    """Let all of them write what they have, side by side; whatever becomes of that, the server ends.

    Args:
        keepers: that write.
        until_s: for how long, by `time.monotonic`, and a little longer where that is too short for a disk that works.
    """
    within_s = max(_LEAST_S, until_s - time.monotonic())
    closing = (asyncio.to_thread(keeper.close, within_s) for keeper in keepers)
    for trouble in await asyncio.gather(*closing, return_exceptions=True):
        if isinstance(trouble, Exception):
            logger.error("what the server keeps could not be written to its end", exc_info=trouble)
