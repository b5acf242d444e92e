"""Newcomers, who link up while a case counts, and how long that takes them.

One comes every second, whatever became of those before. All come while it counts, so that each belongs to one case; for
whoever is still waiting when the case ends, it took at least so long.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from bench.bare import linked
from goodspeed.credentials import Credentials
from goodspeed.errors import ProtocolError

__all__ = ["Newcomers", "newcomers"]

_EVERY_S = 1.0


@dataclass
class Newcomers:
    """What became of them."""

    linked_up_s: list[float] = field(default_factory=list)
    """How long each took that was welcomed."""
    waited_s: list[float] = field(default_factory=list)
    """How long each had waited that was not, when the case ended or when it gave up."""
    kept_out: int = 0
    """How many were refused, were cut off, or gave up."""

    async def keep_coming(self, address: str, shown: Credentials) -> None:
        """One after another, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._come(address, shown))
                await asyncio.sleep(_EVERY_S)

    async def _come(self, address: str, shown: Credentials) -> None:
        began_s = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(linked(address, "newcomer", shown))
            except asyncio.CancelledError:
                self.waited_s.append(time.monotonic() - began_s)
                raise
            except TimeoutError:
                self.waited_s.append(time.monotonic() - began_s)
                self.kept_out += 1
            except (OSError, InvalidHandshake, ConnectionClosed, ProtocolError):
                self.kept_out += 1
            else:
                self.linked_up_s.append(time.monotonic() - began_s)


@contextlib.asynccontextmanager
async def newcomers(address: str, shown: Credentials) -> AsyncIterator[Newcomers]:
    """Have newcomers meanwhile; what became of all of them is known in the end.

    Args:
        address: of the server.
        shown: by each of them.

    Raises:
        ExceptionGroup: a newcomer failed at something else than at being let in.
    """
    found = Newcomers()
    coming = asyncio.create_task(found.keep_coming(address, shown))
    try:
        yield found
    finally:
        coming.cancel()
        await asyncio.wait([coming])
    if not coming.cancelled():
        coming.result()
