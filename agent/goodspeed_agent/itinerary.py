"""Which of several servers to go to next, and when."""

from __future__ import annotations

import math
from collections.abc import Sequence

from goodspeed.addresses import check_url
from goodspeed_agent.backoff import Backoff

__all__ = ["Itinerary", "addresses"]


def addresses(given: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses that a user names, each once, in the order of preference.

    Args:
        given: one or several, each of which may be several with commas between.

    Raises:
        InvalidRequest: one of them is none, or there are none.
    """
    parts = (given,) if isinstance(given, str) else given
    urls = tuple(dict.fromkeys(url.strip() for part in parts for url in part.split(",") if url.strip()))
    for url in urls or ("",):
        check_url(url)
    return urls


class Itinerary:
    """Goes from address to address: to the most preferred one that has not just failed, and stays where it works.

    Whoever fails is not asked again before every other was; only then is there a wait, which grows from lap to lap. An
    address that says when to come back rests until then. One patience is over all of it.

    Args:
        count: how many addresses there are, the most preferred one first.
        backoff: the waits between laps, and when to give up.
    """

    def __init__(self, count: int, backoff: Backoff) -> None:
        assert count > 0
        self.place = 0
        """The address to try next, or where the link stands; counted from 0."""
        self.laps = 0
        """How often all have failed in a row."""
        self._backoff = backoff
        self._left = list(range(count))
        """Addresses that are not struck off, in the order of preference."""
        self._failed: set[int] = set()
        """In this lap."""
        self._not_before_s = [-math.inf] * count
        self._since_s: float | None = None
        """When the first failure in a row was, or a server that said goodbye was last heard: infinity until then. None
        while the link works."""

    @property
    def alone(self) -> bool:
        """Whether there is nowhere else to go, ever."""
        return len(self._left) == 1

    def succeeded(self) -> None:
        """The link works: the next failure is the first again."""
        self._failed.clear()
        self._since_s, self.laps = None, 0

    def lost(self, now_s: float) -> float | None:
        """A link that stood is gone, unannounced; returns as `failed`.

        Connections are lost more often than servers are, and the server may still hold what it computed for the
        streams: one that worked is tried once more before any other.
        """
        if self.alone or self._since_s is not None:
            return self.failed(now_s)
        self._since_s = now_s
        return 0.0

    def failed(self, now_s: float, at_least_s: float = 0.0) -> float | None:
        """The address cannot be used now.

        Args:
            now_s: the time, by any steady clock.
            at_least_s: how long the server asked to be left alone.

        Returns:
            How long to wait before `place` is tried, 0 for at once; None if it is time to give up.
        """
        self._refused(now_s, at_least_s)
        return self._go_on(now_s)

    def strike_off(self, now_s: float) -> float | None:
        """The address is of no use and is not tried again, which takes that there is another; returns as `failed`."""
        assert not self.alone
        self._refused(now_s, 0.0)
        self._left.remove(self.place)
        return self._go_on(now_s)

    def leave(self, now_s: float, at_least_s: float = 0.0) -> bool:
        """The server is going away and speaks until then; says whether there is another, `place`, to go to at once.

        Nothing is given up as long as it speaks.
        """
        ready = [place for place in self._ready(now_s) if place != self.place]
        if not ready:
            return False
        self._refused(now_s, at_least_s)
        self._since_s = math.inf
        self.place = ready[0]
        return True

    def left(self, now_s: float) -> None:
        """The server that goes away is heard no more."""
        if self._since_s == math.inf:
            self._since_s = now_s

    def _refused(self, now_s: float, at_least_s: float) -> None:
        if self._since_s is None:
            self._since_s = now_s
        self._failed.add(self.place)
        self._not_before_s[self.place] = now_s + at_least_s

    def _ready(self, now_s: float) -> list[int]:
        """Addresses that were not tried in this lap and do not rest."""
        return [place for place in self._left if place not in self._failed and self._not_before_s[place] <= now_s]

    def _go_on(self, now_s: float) -> float | None:
        assert self._since_s is not None
        over_s = self._since_s + self._backoff.give_up_after_s
        if ready := self._ready(now_s):
            self.place = ready[0]
            # Every address is tried once, however little patience there is.
            return 0.0 if self.laps == 0 or now_s <= over_s else None
        self.laps += 1
        self._failed.clear()
        rest_s = max(0.0, min(self._not_before_s[place] for place in self._left) - now_s)
        wait_s = self._backoff.wait_s(self.laps, over_s - now_s - rest_s)
        if wait_s is None:
            return None
        wait_s += rest_s
        self.place = next(place for place in self._left if self._not_before_s[place] <= now_s + wait_s)
        return wait_s
