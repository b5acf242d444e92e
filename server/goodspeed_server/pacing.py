"""How much a peer is listened to. Pure: what comes goes in with the time, and how long not to read on comes out.

What is read costs the event loop's time, which everybody else's texts need too. So whoever links up may send what it is
asked for, and little besides: what is more is read more slowly, and by TCP its sender waits. Nothing is lost by that.
"""

from __future__ import annotations

import math

__all__ = ["Bucket", "PeerPace"]

_BURST = 1024.0
"""Messages: an agent that comes back opens all its texts at once."""
_LONG_BYTES = 4096
"""To read so many costs as much as to take a message."""
_BESIDES = 2.0
"""Messages that go with what is asked for: its end, and that of the text."""
_MOST_ASKED = 8192.0
"""As much as is asked of 128 texts by one pass."""
_ANSWER = 2.0
"""What it costs to refuse something, in messages."""


class Bucket:
    """A token bucket: `burst` at once, and `per_s` a second on the long run.

    Args:
        burst: how many it holds; it is full at first.
        per_s: how fast it fills.
    """

    __slots__ = ("_at", "_burst", "_level", "_per_s")

    def __init__(self, burst: float, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._level = burst
        self._at = -math.inf

    def lacking_s(self, now: float) -> float:
        """How long until there is one to take; 0 if there is."""
        self._fill(now)
        return max(0.0, (1.0 - self._level) / self._per_s)

    def take(self, now: float, count: float = 1.0) -> float:
        """Take one or more, whether they are there or not; says how long it will be until they were."""
        self._fill(now)
        self._level -= count
        return max(0.0, -self._level / self._per_s)

    def _fill(self, now: float) -> None:
        if now > self._at:
            if self._level < self._burst:
                self._level = min(self._burst, self._level + (now - self._at) * self._per_s)
            self._at = now


class PeerPace:
    """Shared by all links of a peer: of a token's holder, or of an address where nobody shows a token.

    It is counted in messages. One may come for each token that the peer is asked to draft, and two for each time that
    it is asked; `messages_per_s` whether it is asked for anything or not.

    Args:
        messages_per_s: those.
    """

    __slots__ = ("_asked", "_unasked")

    def __init__(self, messages_per_s: float) -> None:
        self._unasked = Bucket(_BURST, messages_per_s)
        self._asked = 0.0
        """What it was asked for and has not sent."""

    def asked(self, tokens: int) -> None:
        """It is asked to draft so many."""
        self._asked = min(_MOST_ASKED, self._asked + tokens + _BESIDES)

    def came(self, now: float, size_bytes: int, frames: int) -> float:
        """So much of it was read, with so many frames in it: how long not to read on, seconds."""
        return self._spend(now, frames + size_bytes / _LONG_BYTES)

    def answered(self, now: float) -> None:
        """It was refused something, or told again what it had been told: that counts with whatever it sends next."""
        self._spend(now, _ANSWER)

    def _spend(self, now: float, cost: float) -> float:
        asked = min(self._asked, cost)
        self._asked -= asked
        return self._unasked.take(now, cost - asked)
