"""TLS records on their way in: one that brings nothing costs the time to decrypt it, and nobody is told of it.

In TLS 1.3 a peer may send as many key updates as it likes, each in a record of its own. The length of a record says how
much it carries, and what is handed on says how much of that was data. The rest is read as slowly as anything else that
nobody asked for, and little at once. While a connection is not read, its records are not either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

__all__ = ["Records"]

_HEADER_BYTES = 5
_OVERHEAD_BYTES = 17
"""Of a record of TLS 1.3: its tag, and what it is."""
_LEAST_BYTES = 5
"""That a record carries which brings nothing: a key update."""
_AT_ONCE_BYTES = 2**13
"""Some milliseconds of nothing but key updates."""


class Records(asyncio.BufferedProtocol):
    """Stands between a transport and asyncio's TLS upon it, and for whoever reads in place of TLS's own transport.

    Args:
        raw: the transport.
        idled: is told how many records brought nothing, and says how long not to read on, seconds.
    """

    def __init__(self, raw: asyncio.Transport, idled: Callable[[int], float]) -> None:
        self._raw = raw
        self._idled = idled
        self._loop = asyncio.get_running_loop()
        self._tls: asyncio.BufferedProtocol
        self._encrypted: asyncio.Transport | None = None
        self._counts = False
        self._buffer = memoryview(b"")
        self._header = bytearray()
        """Of the record that comes, as far as it is here."""
        self._length = 0
        """Of that record without its header, bytes, and"""
        self._coming = 0
        """how much of it is yet to come."""
        self._carried = 0
        """By all records that are here, bytes, without what was handed on."""
        self._paused = False
        self._alarm: asyncio.TimerHandle | None = None
        """Until which nothing is read."""

    def interpose(self) -> None:
        """TLS has taken the transport, and nothing has come of it yet."""
        self._tls = cast(asyncio.BufferedProtocol, self._raw.get_protocol())
        self._raw.set_protocol(self)

    def begin(self, encrypted: asyncio.Transport) -> None:
        """The handshake is over: what has come so far was its, or was handed on with it."""
        self._encrypted = encrypted
        self._counts = encrypted.get_extra_info("ssl_object").version() == "TLSv1.3"  # before it there are no updates
        self._carried = 0

    def handed_on(self, size_bytes: int) -> None:
        """So much of what the records carry came out of TLS."""
        self._carried -= size_bytes

    def is_closing(self) -> bool:
        """Whether nothing more will be read."""
        return self._encrypted is None or self._encrypted.is_closing()

    def pause_reading(self) -> None:
        """Neither decrypt nor read anything."""
        assert self._encrypted is not None
        self._paused = True
        self._encrypted.pause_reading()
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Do so again."""
        assert self._encrypted is not None
        self._paused = False
        if not self._encrypted.is_closing():
            self._encrypted.resume_reading()
        self._go_on()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to put what comes."""
        self._buffer = memoryview(self._tls.get_buffer(sizehint))[:_AT_ONCE_BYTES]
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So much has come."""
        self._look_at(self._buffer[:nbytes])
        self._tls.buffer_updated(nbytes)
        if self._counts and (idle := self._carried // _LEAST_BYTES) > 0:
            self._carried -= idle * _LEAST_BYTES
            self._wait(self._idled(idle))

    def eof_received(self) -> bool | None:
        """Nothing more will come."""
        return self._tls.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._tls.connection_lost(exc)

    def pause_writing(self) -> None:
        """There is too much on its way out."""
        self._tls.pause_writing()

    def resume_writing(self) -> None:
        """There no longer is."""
        self._tls.resume_writing()

    def _look_at(self, data: memoryview) -> None:
        at = 0
        while at < len(data):
            if self._coming:
                size = min(self._coming, len(data) - at)
                self._coming -= size
                if not self._coming:
                    self._carried += max(0, self._length - _OVERHEAD_BYTES)
            else:
                size = min(_HEADER_BYTES - len(self._header), len(data) - at)
                self._header += data[at : at + size]
                if len(self._header) == _HEADER_BYTES:
                    self._length = self._coming = int.from_bytes(self._header[3:], "big")
                    self._header.clear()
            at += size

    def _wait(self, wait_s: float) -> None:
        if wait_s > 0.0 and self._alarm is None:
            self._raw.pause_reading()
            self._alarm = self._loop.call_later(wait_s, self._rested)

    def _rested(self) -> None:
        self._alarm = None
        self._go_on()

    def _go_on(self) -> None:
        if self._alarm is None and not self._paused:
            self._raw.resume_reading()
