"""One agent's link while a storm passes over it: what its bytes meet changes while they are on their way.

The toxics of `goodspeed_bench.toxics` are set once for a link; these are told, at any time, to delay, to stall, to
slice or to cut. They also listen: a verdict that comes down is how an observer knows that an agent is back at work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from goodspeed_bench.toxics import Direction, Passage, Piece, Toxics

__all__ = ["Ear", "Weather"]

_SLICE_S = 0.0005
"""Between two slices."""
_HANDSHAKE_ENDS = b"\r\n\r\n"
_BINARY = 2
_LENGTH_16, _LENGTH_64 = 126, 127
_VERDICT = ord("V")


class Weather:
    """Of one link.

    Args:
        clock: seconds, monotonic: the proxy's.
        on_cut: called when a connection is reset.
        on_verdict: called with the time when the connection was made on which a verdict came.
    """

    def __init__(
        self, clock: Callable[[], float], on_cut: Callable[[], None], on_verdict: Callable[[float], None]
    ) -> None:
        self.clock = clock
        self.on_cut = on_cut
        self.on_verdict = on_verdict
        self._passages: dict[Direction, list[_Passage]] = {"upstream": [], "downstream": []}
        self._stalled_until = self._delayed_until = self._sliced_until = -math.inf
        self._delay_s, self._slice_bytes = 0.0, 0

    @property
    def toxics(self) -> Toxics:
        """What the proxy is given."""
        return (("upstream", _Way(self, "upstream")), ("downstream", _Way(self, "downstream")))

    def stall(self, seconds: float) -> None:
        """Let nothing pass for so long."""
        self._stalled_until = self.clock() + seconds

    def delay(self, seconds: float, delay_ms: float) -> None:
        """Have everything come later, for so long."""
        self._delayed_until, self._delay_s = self.clock() + seconds, delay_ms / 1e3

    def slice(self, seconds: float, size_bytes: int) -> None:
        """Let only small pieces pass, for so long."""
        self._sliced_until, self._slice_bytes = self.clock() + seconds, size_bytes

    def cut(self, direction: Direction, after_bytes: int) -> None:
        """Reset every connection of this moment once so many more bytes have passed; those to come are none of it."""
        for passage in self._passages[direction]:
            passage.cut_after = after_bytes

    def due_at(self, at: float) -> float:
        """When what is sent at some time gets through."""
        return max(at + (self._delay_s if at < self._delayed_until else 0.0), self._stalled_until)

    def slices(self, at: float, data: bytes) -> int:
        """The size of the pieces that data passes in."""
        return self._slice_bytes if at < self._sliced_until else max(1, len(data))

    def enter(self, direction: Direction, passage: _Passage) -> None:
        """A connection is made."""
        # Only the latest few can still be open.
        self._passages[direction] = [*self._passages[direction][-3:], passage]


@dataclass(frozen=True, slots=True)
class _Way:
    weather: Weather
    direction: Direction

    def open(self, noise: random.Random) -> Passage:
        passage = _Passage(self.weather, listens=self.direction == "downstream")
        self.weather.enter(self.direction, passage)
        return passage


class _Passage:
    def __init__(self, weather: Weather, *, listens: bool) -> None:
        self.cut_after: int | None = None
        self._weather = weather
        self._opened_at = weather.clock()
        self._ear = Ear() if listens else None
        self._last = 0.0
        self._over = False

    def take(self, piece: Piece) -> Iterable[Piece]:
        if self._over:
            return []
        data, cut = piece.data, False
        if self.cut_after is not None:
            cut, data = len(data) > self.cut_after, data[: self.cut_after]
            self.cut_after -= len(data)
        self._last = max(self._last, self._weather.due_at(piece.at))
        if self._ear is not None and self._ear.verdicts(data):
            self._weather.on_verdict(self._opened_at)
        parts = []
        size = self._weather.slices(piece.at, data)
        for start in range(0, len(data), size):
            self._last += _SLICE_S if start else 0.0
            parts.append(Piece(self._last, data[start : start + size]))
        if cut:
            self._over = True
            self._weather.on_cut()
            parts.append(Piece(self._last, b"", reset=True))
        elif not data:
            parts.append(Piece(self._last, b"", piece.reset))
        return parts


class Ear:
    """Listens to what a server sends down one WebSocket connection."""

    def __init__(self) -> None:
        self._heard = bytearray()
        self._greeted = False

    def verdicts(self, data: bytes) -> int:
        """How many verdicts are complete with these bytes."""
        heard = self._heard
        heard += data
        if not self._greeted:
            head, ends, _ = heard.partition(_HANDSHAKE_ENDS)
            if not ends:
                return 0
            del heard[: len(head) + len(ends)]
            self._greeted = True
        count = 0
        while (end := self._frame_end()) is not None:
            start, stop = end
            count += heard[0] & 0x0F == _BINARY and heard[start + 1 : start + 2] == bytes([_VERDICT])
            del heard[:stop]
        return count

    def _frame_end(self) -> tuple[int, int] | None:
        """Where the payload of the first frame begins and ends; None while it is not all here."""
        heard = self._heard
        if len(heard) < 2:
            return None
        length, start = heard[1] & 0x7F, 2
        if length == _LENGTH_16:
            length, start = int.from_bytes(heard[2:4], "big"), 4
        elif length == _LENGTH_64:
            length, start = int.from_bytes(heard[2:10], "big"), 10
        return (start, start + length) if len(heard) >= max(start, start + length) else None
