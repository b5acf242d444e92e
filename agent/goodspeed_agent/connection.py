"""A connection to a server that is lost when the server takes nothing of what it is sent.

`websockets` watches for the answers to its pings, but a ping waits for room like everything else that is sent: to a
server that has stopped to read none gets out once that is full, and none is late.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from websockets.asyncio.client import ClientConnection

__all__ = ["TAKING_S", "Connection"]

_log = logging.getLogger(__name__)

TAKING_S = 60.0
"""The longest that nothing may be taken of what waits: the largest message, 2 MB through 0.3 Mbit/s. What is encrypted
is seen to be taken by the message, and not by the byte."""


class Connection(ClientConnection):
    """One to a server.

    Args:
        arguments: of a `ClientConnection`.
        options: likewise.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._put_bytes = 0
        """How many had to wait, ever."""
        self._alarm: asyncio.TimerHandle | None = None
        """Rings where so much waits that whoever sends more has to wait, too."""

    def send_data(self) -> None:
        """Send what there is to send."""
        before = self.transport.get_write_buffer_size()
        super().send_data()
        self._put_bytes += self.transport.get_write_buffer_size() - before
        if self.paused and self._alarm is None:
            self._watch()

    def resume_writing(self) -> None:
        """There is room."""
        super().resume_writing()
        self._watch_no_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._watch_no_more()
        super().connection_lost(exc)

    @property
    def _taken_bytes(self) -> int:
        """Of all that had to wait."""
        return self._put_bytes - self.transport.get_write_buffer_size()

    def _watch(self) -> None:
        self._alarm = self.loop.call_later(TAKING_S, self._look, self._taken_bytes)

    def _watch_no_more(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _look(self, taken_before_bytes: int) -> None:
        if self._taken_bytes > taken_before_bytes:
            self._watch()
            return
        _log.warning("the server has taken nothing of what it is sent for %g s", TAKING_S)
        self.transport.abort()
