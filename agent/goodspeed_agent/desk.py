"""The one thread on which an agent drafts: what a server waits for first, and what is drafted ahead in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

__all__ = ["Desk"]

T = TypeVar("T")


class Desk:
    """Runs drafting off the event loop, one piece of work at a time: models do not share a core well.

    To be used on one event loop.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drafting")
        self._urgent = 0
        self._nothing_urgent = asyncio.Event()
        self._nothing_urgent.set()
        self._turn = asyncio.Lock()

    async def at_once(self, work: Callable[[], T]) -> T:
        """Run something that a server waits for."""
        self._urgent += 1
        self._nothing_urgent.clear()
        try:
            return await self._run(work)
        finally:
            self._urgent -= 1
            if not self._urgent:
                self._nothing_urgent.set()

    async def in_between(self, brief: Callable[[], Callable[[], T]]) -> T:
        """Run a short piece of work, one at a time, when nothing else is to be done; whoever waits longest is next.

        Once begun it cannot be stopped: a cancelled caller waits for its end, and hears of its failure.

        Args:
            brief: asked for the work when its turn has come, on the event loop.
        """
        async with self._turn:
            await self._nothing_urgent.wait()
            running = self._run(brief())
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                while not running.done():
                    with contextlib.suppress(asyncio.CancelledError):  # once more; it still runs
                        await asyncio.wait([running])
                running.result()
                raise

    def _run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        # In the caller's context, so that what is logged there is about the caller's stream.
        return asyncio.get_running_loop().run_in_executor(self._thread, copy_context().run, work)

    def close(self) -> None:
        """Take on nothing more; what has begun is left to end by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)
