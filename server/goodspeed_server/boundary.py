"""What has to be done between two rounds, while no pass is at any stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from goodspeed.errors import GoodSpeedError

__all__ = ["Boundary"]

T = TypeVar("T")


class Boundary:
    """Errands that wait for the end of a round.

    Args:
        on_errand: called when there is one.
    """

    def __init__(self, on_errand: Callable[[], None]) -> None:
        self._on_errand = on_errand
        self._errands: deque[Callable[[], None]] = deque()
        self._over = False

    @property
    def errands(self) -> int:
        """How many wait."""
        return len(self._errands)

    async def reached(self, errand: Callable[[], T]) -> T:
        """Do something when the round that runs is over, and say what came of it.

        Raises:
            GoodSpeedError: there are no more rounds.
            Exception: whatever the errand raised.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def run() -> None:
            if done.done():  # who asked has gone, and the errand with it
                return
            if self._over:
                done.set_exception(GoodSpeedError("the server is shutting down, and changes nothing any more"))
                return
            try:
                done.set_result(errand())
            except Exception as error:  # it is the asker's, and no trouble of the rounds
                done.set_exception(error)

        self._errands.append(run)
        if self._over:
            self.here()
        self._on_errand()
        return await done

    def here(self) -> None:
        """No pass runs now: do what waits for that, in the order in which it was asked for."""
        while self._errands:
            self._errands.popleft()()

    def end(self) -> None:
        """There is no further round: refuse what waits, and what is still to come."""
        self._over = True
        self.here()
