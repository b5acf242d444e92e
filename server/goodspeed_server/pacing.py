"""How much a peer is listened to. Pure: what comes goes in with the time, and how long not to read on comes out.

What is read costs the event loop's time, which everybody else's texts need too. So whoever links up may send what it is
asked for, and little besides: what is more is read more slowly, and by TCP its sender waits. Nothing is lost by that.
"""

from __future__ import annotations

import math

__all__ = ["Bucket", "LinkPace", "PeerPace"]

_BURST = 1024.0
"""Messages: an agent that comes back opens all its texts at once."""
_OF_A_LINK = 16.0
"""As much may come over a link whose peer has nothing left, before that link waits for its share."""
_STRANGERS = 16.0
"""Before anything is known of who it is."""
_LONG_BYTES = 4096
"""To read so many costs as much as to take a message."""
_PIECE = 0.25
"""To be woken for anything at all, likewise."""
_ANSWER = 2.0
"""To refuse something, likewise."""
_MOST_ASKED = 8192.0
"""As much as is asked of 128 texts by one pass."""


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

    It is counted in messages. `messages_per_s` may come whatever they are, and for each token that the peer is asked to
    draft one draft costs nothing.

    Args:
        messages_per_s: those.
    """

    __slots__ = ("_asked", "links", "messages_per_s", "unasked")

    def __init__(self, messages_per_s: float) -> None:
        self.messages_per_s = messages_per_s
        self.unasked = Bucket(_BURST, messages_per_s)
        self.links = 0
        """That share it."""
        self._asked = 0.0
        """Drafts that it was asked for and has not sent."""

    def asked(self, tokens: int) -> None:
        """It is asked to draft so many."""
        self._asked = min(_MOST_ASKED, self._asked + tokens)

    def draft_came(self) -> float:
        """One came for a text that it has: what it is given back of what it cost."""
        if self._asked < 1.0:
            return 0.0
        self._asked -= 1.0
        self.unasked.give_back(1.0 + _PIECE)
        return 1.0 + _PIECE


class LinkPace:
    """Of one link. It waits when its peer has nothing left, and then for no more than its share of what the peer may.

    So a link that sends little does not wait for another that floods, though the two have one peer.

    Args:
        peer: whose link it is; None while nobody knows, of whom little is read.
        messages_per_s: of nobody.
    """

    __slots__ = ("_at", "_level", "_peer")

    def __init__(self, peer: PeerPace | None, messages_per_s: float = 1.0) -> None:
        self._peer = peer or PeerPace(messages_per_s)
        self._peer.links += 1
        if peer is None:
            self._peer.unasked.take(0.0, _BURST - _STRANGERS)
        else:
            # After an outage many of a peer's links come at once, with texts to go on with.
            peer.unasked.give_back(_OF_A_LINK)
        self._level = _OF_A_LINK
        self._at = -math.inf

    def gone(self) -> None:
        """The link is no more."""
        self._peer.links -= 1

    def came(self, now: float, size_bytes: int, frames: int) -> float:
        """So much of it was read, with so many frames in it: how long not to read on, seconds."""
        return self._spend(now, _PIECE + frames + size_bytes / _LONG_BYTES)

    def answered(self, now: float) -> None:
        """It was refused something, or told again what it had been told: that counts with whatever it sends next."""
        self._spend(now, _ANSWER)

    def asked(self, tokens: int) -> None:
        """It is asked to draft so many."""
        self._peer.asked(tokens)

    def draft_came(self) -> None:
        """One came for a text that it has."""
        self._level = min(_OF_A_LINK, self._level + self._peer.draft_came())

    def _spend(self, now: float, cost: float) -> float:
        share_per_s = self._peer.messages_per_s / max(1, self._peer.links)  # whoever has gone may be answered yet
        if now > self._at:
            self._level = min(_OF_A_LINK, self._level + (now - self._at) * share_per_s)
            self._at = now
        self._level -= cost
        return min(self._peer.unasked.take(now, cost), max(0.0, -self._level / share_per_s))
