"""A time without a link, for an agent whose draft may answer meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["Outage"]


class Outage:
    """Waits a little, then lets the draft answer, and at last gives up what a server had begun.

    Args:
        alone_after_s: how long to wait for a link before the draft answers.
        patience_s: how long texts that were begun wait for one; the draft waits no longer either.
        go_alone: lets the draft answer.
        give_up: ends what was begun.
    """

    def __init__(
        self,
        alone_after_s: float,
        patience_s: float,
        go_alone: Callable[[], Awaitable[None]],
        give_up: Callable[[], None],
    ) -> None:
        self._alone_after_s = min(alone_after_s, patience_s)
        self._patience_s = patience_s
        self._go_alone = go_alone
        self._give_up = give_up
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """There is no link; nothing changes if there was none before."""
        if self._task is None:
            self._task = asyncio.create_task(self._last(), name="outage")

    def end(self) -> None:
        """There is one, or none is wanted any more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _last(self) -> None:
        await asyncio.sleep(self._alone_after_s)
        await self._go_alone()
        await asyncio.sleep(self._patience_s - self._alone_after_s)
        self._give_up()
