"""What a connection has brought and nobody has read yet.

A transport hands over whatever has come, hundreds of kilobytes at once, and a parser that is given all of it makes
thousands of frames of it, each of which wants to be answered. Here it is taken in slices, as long as there is time for
it, and the transport brings no more while anything is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

__all__ = ["Unread"]

_SLICE_BYTES = 512
_LONGEST_SLICE_BYTES = 2**13
"""Of a long frame, of which there is nothing to answer before its end."""
_AT_ONCE = 8
"""Slices, before others have their turn on the event loop."""


class Bringing(Protocol):
    """What brings bytes, of a transport."""

    def is_closing(self) -> bool:
        """Whether nothing more will be read."""

    def pause_reading(self) -> None:
        """Bring nothing."""

    def resume_reading(self) -> None:
        """Bring more."""


class Unread:
    """The bytes of one connection, in their order.

    Args:
        transport: brings them.
        take: reads a slice; says how many frames there were in it, and how long not to read on, seconds.
    """

    def __init__(self, transport: Bringing, take: Callable[[bytes], tuple[int, float]]) -> None:
        self._transport = transport
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._bytes = bytearray()
        self._slice = _SLICE_BYTES
        self._full = False
        """Whether what was read waits for somebody to handle it."""
        self._alarm: asyncio.TimerHandle | None = None
        """Until which nothing is read."""
        self._end: Callable[[], object] | None = None
        """What is to be told that nothing more will come."""
        self._over = False

    def bring(self, data: bytes) -> None:
        """Something came."""
        self._bytes += data
        self._read()

    def end(self, tell: Callable[[], object]) -> None:
        """Nothing more will come, and that is told when all that came is read."""
        self._end = tell
        self._read()

    def fill(self) -> None:
        """There is no room for more frames."""
        self._full = True

    def drain(self) -> None:
        """There is room again."""
        self._full = False
        self._loop.call_soon(self._read)

    def read_on(self) -> None:
        """Do not wait any more."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._read_on()

    def drop(self) -> None:
        """Read nothing any more."""
        self._over = True
        self._bytes.clear()
        if self._alarm is not None:
            self._alarm.cancel()

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            if not (self._bytes and self._may_read):
                break
            self._read_slice()
        else:
            self._loop.call_soon(self._read)
        if self._transport.is_closing():
            self._transport.resume_reading()  # what comes is for nobody, but TLS has an end of its own
            return
        if self._over:
            return
        if self._bytes or not self._may_read:
            self._transport.pause_reading()
        elif self._end is not None:
            tell, self._end = self._end, None
            tell()
        else:
            self._transport.resume_reading()

    def _read_slice(self) -> None:
        piece = bytes(self._bytes[: self._slice])
        del self._bytes[: self._slice]
        frames, wait_s = self._take(piece)
        self._slice = _SLICE_BYTES if frames else min(2 * self._slice, _LONGEST_SLICE_BYTES)
        if wait_s > 0.0 and not self._over:
            self._alarm = self._loop.call_later(wait_s, self._read_on)

    def _read_on(self) -> None:
        self._alarm = None
        self._read()

    @property
    def _may_read(self) -> bool:
        return not (self._over or self._full or self._alarm is not None or self._transport.is_closing())
