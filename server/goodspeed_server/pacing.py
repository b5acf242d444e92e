"""How much a peer is listened to. Pure: what comes goes in with the time, and how long not to read on comes out.

What is read costs the event loop's time, which everybody else's texts need too. So whoever links up may send what it is
asked for, and little besides: what is more is read more slowly, and by TCP its sender waits. Nothing is lost by that.
"""

from __future__ import annotations

import math

__all__ = ["Bucket", "LinkPace", "PeerPace"]

_BURST = 1024.0
"""Units of reading, see `PeerPace`: an agent that comes back opens all its texts at once."""
_OF_A_LINK = 16.0
"""As much may come over a link whose peer has nothing left, before that link waits for its share."""
_STRANGERS = 16.0
"""Before anything is known of who it is."""
_LONG_BYTES = 4096
"""To read so many costs a unit."""
_PIECE = 0.25
"""To be woken for anything at all, or to part a frame from what comes with it."""
_FRAME = 1.0 + _PIECE
"""To take a message."""
_ANSWER = 2.0
"""To refuse something."""
_MOST_ASKED = 8192.0
"""Tokens: as much as is asked of 128 texts by one pass."""
_DEEPEST = 4.0
"""So many bursts may be owed, and what is overdrawn beyond is forgotten: who is owed so much waits for it as it is."""


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

    def take(self, now: float, count: float = 1.0) -> None:
        """Take one or more, whether they are there or not."""
        self._fill(now)
        self._level = max(-_DEEPEST * self._burst, self._level - count)

    def due_s(self, coming: float = 0.0) -> float:
        """How long until nothing is owed, if so many are given back; as of when one was last taken."""
        return max(0.0, -(self._level + coming) / self._per_s)

    def give_back(self, count: float) -> None:
        """Some of what was taken was not to be."""
        self._level = min(self._burst, self._level + count)

    def _fill(self, now: float) -> None:
        if now > self._at:
            if self._level < self._burst:
                self._level = min(self._burst, self._level + (now - self._at) * self._per_s)
            self._at = now


class PeerPace:
    """Of a peer: of a token's holder, or of an address where nobody shows a token.

    It is counted in units of reading. A message is 1.25 of them: one to take it, and a quarter to part it from what
    comes with it. What is read and brings none is a quarter, each 4 KiB one more, and a refusal two. A draft that was
    asked for is given back.

    Args:
        messages_per_s: units a second on the long run: four fifths as many short messages.
        burst: units at once.
    """

    __slots__ = ("links", "messages_per_s", "unasked")

    def __init__(self, messages_per_s: float, burst: float = _BURST) -> None:
        self.messages_per_s = messages_per_s
        self.unasked = Bucket(burst, messages_per_s)
        self.links = 0
        """That share it."""


class LinkPace:
    """Of one link. It waits when its peer has nothing left, and then for no more than its share of what the peer may.

    So a link that sends little does not wait for another that floods, though the two have one peer; nor does one that
    sends what it is asked for. For each token that it is asked to draft one comes for nothing.

    Args:
        peer: whose link it is; None while nobody knows, of whom little is read.
        messages_per_s: of nobody.
    """

    __slots__ = ("_asked", "_at", "_here", "_level", "_peer")

    def __init__(self, peer: PeerPace | None, messages_per_s: float = 1.0) -> None:
        self._peer = peer or PeerPace(messages_per_s, _STRANGERS)
        self._peer.links += 1
        if peer is not None:
            # After an outage many of a peer's links come at once, with texts to go on with.
            peer.unasked.give_back(_OF_A_LINK)
        self._here = True
        self._level = _OF_A_LINK
        self._at = -math.inf
        self._asked = 0.0
        """Tokens that it was asked to draft and has not sent."""

    def gone(self) -> None:
        """The link is no more; said twice it is no more gone."""
        self._peer.links -= self._here
        self._here = False

    def came(self, now: float, size_bytes: int, frames: int) -> float:
        """So much of it was read, with so many frames in it: how long not to read on, seconds.

        Frames may be what was asked for, which only shows when they are handled. So many are not waited for.
        """
        self._spend(now, (frames * _FRAME if frames else _PIECE) + size_bytes / _LONG_BYTES)
        return self._due_s(_FRAME * min(frames, self._asked))

    def idled(self, now: float, pieces: int) -> float:
        """So much of it was read that brought nothing, not even bytes: how long not to read on, seconds."""
        self._spend(now, pieces * _PIECE)
        return self._due_s()

    def answered(self, now: float) -> None:
        """It was refused something, or told again what it had been told: that counts with whatever it sends next."""
        self._spend(now, _ANSWER)

    def asked(self, tokens: int) -> None:
        """It is asked to draft so many."""
        self._asked = min(_MOST_ASKED, self._asked + tokens)

    def draft_came(self, tokens: int) -> None:
        """One of so many tokens came: what it cost is given back, if it was asked for."""
        if self._asked < 1.0:
            return
        self._asked = max(0.0, self._asked - max(1, tokens))
        self._peer.unasked.give_back(_FRAME)
        self._level = min(_OF_A_LINK, self._level + _FRAME)

    def _due_s(self, coming: float = 0.0) -> float:
        return min(self._peer.unasked.due_s(coming), max(0.0, -(self._level + coming) / self._share_per_s))

    @property
    def _share_per_s(self) -> float:
        return self._peer.messages_per_s / max(1, self._peer.links)  # whoever has gone may be answered yet

    def _spend(self, now: float, cost: float) -> None:
        if now > self._at:
            self._level = min(_OF_A_LINK, self._level + (now - self._at) * self._share_per_s)
            self._at = now
        self._level -= cost
        self._peer.unasked.take(now, cost)
