"""A server that goes away: it begins nothing any more, and for a while it goes on with what was begun."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable

from goodspeed.errors import Overloaded

__all__ = ["RESTART_S", "Drain", "stop_on_signals"]

logger = logging.getLogger(__name__)

RESTART_S = 1.0
"""How long a server is taken to be away, by agents that know no other."""
_LONGEST_RETRY_S = 10.0
"""An agent that keeps to it asks again while its user waits."""


class Drain:
    """Whether a server goes away, and until when it goes on with what was begun.

    Args:
        drain_s: for how long.
        clock: seconds, monotonic.
    """

    def __init__(self, drain_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._drain_s = drain_s
        self._clock = clock
        self._until: float | None = None

    @property
    def begun(self) -> bool:
        """Whether it goes away."""
        return self._until is not None

    @property
    def left_s(self) -> float | None:
        """For how much longer it goes on; None while it does not go away."""
        return None if self._until is None else max(0.0, self._until - self._clock())

    @property
    def retry_after_s(self) -> float:
        """What whoever is refused is told to wait."""
        return min(_LONGEST_RETRY_S, (self.left_s or 0.0) + RESTART_S)

    def begin(self, *, at_once: bool = False) -> None:
        """Go away; once it does, it does.

        Args:
            at_once: go on with nothing.
        """
        if self._until is None or at_once:
            self._until = self._clock() + (0.0 if at_once else self._drain_s)

    def refusal(self) -> Overloaded:
        """What whoever wants to begin something is told."""
        return Overloaded(
            "the server is going away, and begins nothing any more: go on at another, or here in "
            f"{self.retry_after_s:.0f} s",
            retry_after_s=self.retry_after_s,
        )

    def check(self) -> None:
        """Let somebody begin something.

        Raises:
            Overloaded: the server goes away.
        """
        if self.begun:
            raise self.refusal()


def stop_on_signals(stop: asyncio.Event, drain_s: float) -> None:
    """Set `stop` at SIGTERM, SIGINT or SIGHUP; after a SIGTERM or SIGINT another of them ends the process at once.

    Args:
        stop: of the running loop.
        drain_s: how long it goes on then, for the log.
    """
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        name = signal.Signals(number).name
        logger.info("%s: closing when texts have ended, in %g s at the latest; once more to end at once", name, drain_s)
        for impatient in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(impatient)
            signal.signal(impatient, signal.SIG_DFL)  # a KeyboardInterrupt would still wait for the pass that runs
        stop.set()

    def on_hangup() -> None:
        # A terminal that is closed may say so twice, and that is not somebody's impatience.
        if not stop.is_set():
            logger.info("SIGHUP: closing when texts have ended, in %g s at the latest", drain_s)
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        loop.add_signal_handler(signal.SIGHUP, on_hangup)
