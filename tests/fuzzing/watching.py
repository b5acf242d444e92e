"""What must not happen while a process is fuzzed: a traceback in its log, a task that failed unheard, anything kept."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import psutil

__all__ = ["Footprint", "complaints", "settled"]

_SETTLE_S = 30.0


class _Errors(logging.Handler):
    def __init__(self, seen: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self._seen.append(logging.Formatter("%(name)s: %(message)s").format(record))


@contextlib.contextmanager
def complaints() -> Iterator[list[str]]:
    """Everything that is logged as an error or with a traceback, and every task whose failure nobody awaited."""
    seen: list[str] = []
    handler, loop = _Errors(seen), asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        seen.append(f"{context['message']}: {context.get('exception')!r}")

    logging.getLogger().addHandler(handler)
    loop.set_exception_handler(unheard)
    try:
        yield seen
        gc.collect()  # what was never awaited says so as it goes
    finally:
        logging.getLogger().removeHandler(handler)
        loop.set_exception_handler(before)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What this process holds, once nothing is under way."""

    rss_bytes: int
    objects: int
    """That the garbage collector knows of."""
    tasks: int
    threads: int

    @classmethod
    def now(cls) -> Self:
        """Of the running event loop's process."""
        gc.collect()
        return cls(
            psutil.Process().memory_info().rss, len(gc.get_objects()), len(asyncio.all_tasks()),
            threading.active_count(),
        )  # fmt: skip


async def settled(idle: Callable[[], bool]) -> None:
    """Wait until there is nothing left to do.

    Raises:
        TimeoutError: that does not come.
    """
    async with asyncio.timeout(_SETTLE_S):
        while not idle():
            await asyncio.sleep(0.01)
