"""SIGHUP loads the draft anew, and the agent's streams go on with it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Self

from goodspeed.errors import GoodSpeedError
from goodspeed_agent.agent import Agent
from goodspeed_agent.drafters import Drafter

__all__ = ["Reloading"]

_log = logging.getLogger(__name__)

_SIGHUP = getattr(signal, "SIGHUP", None)
"""None elsewhere than on Unix."""


class Reloading:
    """While the block runs, SIGHUP exchanges the drafter of the agent it is given; elsewhere than on Unix nothing does.

    A draft that cannot be used is told about, and the agent keeps the one it has. A signal that comes before there is
    an agent, or while a draft is loaded, has it loaded once more afterwards: the last to stand there is drafted with.

    A terminal that is closed sends the same signal: where there was one and is none any more, the process ends by it,
    as others do.

    Args:
        load: makes the drafter; blocks, on a thread of its own.
        say: is told what came of it.
    """

    def __init__(self, load: Callable[[], Drafter], say: Callable[[str], None]) -> None:
        self._load = load
        self._say = say
        self._agent: Agent | None = None
        self._asked = False
        self._task: asyncio.Task[None] | None = None
        self._had_terminal = _on_a_terminal()

    def __enter__(self) -> Self:
        if _SIGHUP is not None:
            asyncio.get_running_loop().add_signal_handler(_SIGHUP, self._hung_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _SIGHUP is not None:
            asyncio.get_running_loop().remove_signal_handler(_SIGHUP)
        if self._task is not None:
            self._task.cancel()

    def attach(self, agent: Agent) -> None:
        """There is an agent now."""
        self._agent = agent
        self._begin()

    def _hung_up(self) -> None:
        if self._had_terminal and not _on_a_terminal():
            assert _SIGHUP is not None
            signal.signal(_SIGHUP, signal.SIG_DFL)
            signal.raise_signal(_SIGHUP)
        self._asked = True
        self._begin()

    def _begin(self) -> None:
        if self._asked and self._agent is not None and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._reload(self._agent), name="reload")

    async def _reload(self, agent: Agent) -> None:
        while self._asked:
            self._asked = False
            try:
                drafter = await asyncio.to_thread(self._load)
                await agent.swap(drafter)
            except GoodSpeedError as error:
                self._say(f"the draft stays as it is: {error}")
            except Exception:
                _log.exception("the draft stays as it is")
            else:
                self._say(f"drafting with {drafter.name} as it is now")


def _on_a_terminal() -> bool:
    return any(os.isatty(number) for number in (0, 1, 2))
