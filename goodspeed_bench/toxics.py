"""What a link does to bytes, in toxiproxy's vocabulary: latency with jitter, bandwidth, slicer, reset_peer.

Each toxic is pure: a piece of the stream goes in with the time it gets here, and comes out, whole or in parts, with the
time it leaves. Times never run backwards, so that a stream stays a stream however much its latency jitters, and no
toxic waits for anything: what is under way never holds back what comes behind it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

__all__ = ["Bandwidth", "Direction", "Latency", "Passage", "Piece", "ResetPeer", "Slicer", "Toxic", "Toxics"]

Direction: TypeAlias = Literal["upstream", "downstream"]
"""From the client to the server, and back."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a stream, and when it is due."""

    at: float
    """Seconds, on the clock of whoever moves it."""
    data: bytes
    """Empty: the end of the stream."""
    reset: bool = False
    """The connection is reset instead."""


class Passage(Protocol):
    """A toxic at work on one direction of one connection."""

    def take(self, piece: Piece) -> Iterable[Piece]:
        """One piece in; what comes of it, in order."""


class Toxic(Protocol):
    """What is set for a link."""

    def open(self, noise: random.Random) -> Passage:
        """Begin a connection; whatever is random in it is drawn from `noise`."""


Toxics: TypeAlias = Sequence[tuple[Direction, Toxic]]
"""Of a link, in the order in which bytes meet them."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Everything arrives later: `latency_ms`, give or take up to `jitter_ms`."""

    latency_ms: float
    jitter_ms: float = 0.0

    def open(self, noise: random.Random) -> Passage:
        """Begin a connection."""
        return _Delaying(self, noise)


class _Delaying:
    def __init__(self, toxic: Latency, noise: random.Random) -> None:
        self._toxic = toxic
        self._noise = noise
        self._last = 0.0

    def take(self, piece: Piece) -> Iterable[Piece]:
        jitter_ms = self._noise.uniform(-self._toxic.jitter_ms, self._toxic.jitter_ms)
        # TCP delivers in order: what was sent later waits for what was sent before.
        self._last = max(self._last, piece.at + max(0.0, self._toxic.latency_ms + jitter_ms) / 1e3)
        return [Piece(self._last, piece.data, piece.reset)]


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """No more than `kbytes_per_s` pass, in units of 1000 bytes."""

    kbytes_per_s: float

    def open(self, noise: random.Random) -> Passage:
        """Begin a connection."""
        return _Throttling(self)


class _Throttling:
    def __init__(self, toxic: Bandwidth) -> None:
        self._bytes_per_s = 1e3 * toxic.kbytes_per_s
        self._free_at = 0.0

    def take(self, piece: Piece) -> Iterable[Piece]:
        self._free_at = max(self._free_at, piece.at) + len(piece.data) / self._bytes_per_s
        return [Piece(self._free_at, piece.data, piece.reset)]


@dataclass(frozen=True, slots=True)
class Slicer:
    """Pieces of no more than `size_bytes`, each `delay_ms` behind the one before."""

    size_bytes: int
    delay_ms: float = 0.0

    def open(self, noise: random.Random) -> Passage:
        """Begin a connection."""
        return _Slicing(self)


class _Slicing:
    def __init__(self, toxic: Slicer) -> None:
        self._toxic = toxic
        self._last = 0.0

    def take(self, piece: Piece) -> Iterable[Piece]:
        size = self._toxic.size_bytes
        for start in range(0, max(1, len(piece.data)), size):
            delay_s = self._toxic.delay_ms / 1e3 if start else 0.0
            self._last = max(self._last, piece.at) + delay_s
            yield Piece(self._last, piece.data[start : start + size], piece.reset)


@dataclass(frozen=True, slots=True)
class ResetPeer:
    """The connection is reset `timeout_ms` after the first bytes came; nothing passes."""

    timeout_ms: float = 0.0

    def open(self, noise: random.Random) -> Passage:
        """Begin a connection."""
        return _Resetting(self)


class _Resetting:
    def __init__(self, toxic: ResetPeer) -> None:
        self._timeout_s = toxic.timeout_ms / 1e3
        self._over = False

    def take(self, piece: Piece) -> Iterable[Piece]:
        if self._over:
            return []
        self._over = True
        return [Piece(piece.at + self._timeout_s, b"", reset=True)]
