"""The gate: whom to let in, by address and in all, before anything is known of who it is.

Pure: connections, requests and messages go in with the time, decisions come out. An address is an IPv4 address, or an
IPv6 network of 64 bits, which is what one customer of a provider has. What is remembered of addresses is bounded: those
at none of their limits are forgotten first, the longest unseen before all others, and one that is being limited is not
forgotten for a stranger's sake: where there is no room, strangers share one account.
"""

from __future__ import annotations

import functools
import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from goodspeed_server.pacing import Bucket, PeerPace
from goodspeed_server.settings import (
    FAILED_TOKENS_PER_MINUTE,
    HANDSHAKES_PER_MINUTE,
    LINKS_PER_ADDRESS,
    DoorSettings,
)

__all__ = ["REMEMBERED", "Gate", "Refusal", "Visitor", "key_of"]

REMEMBERED = 2**14
"""Addresses without a connection that are remembered, besides those that have one."""
_LEAST_PENDING = 64
_PENDING_SHARE = 8
"""One in so many of the links, on top of them, may be connections that have not become links yet."""
_TOLD_AT_ONCE = 4
"""Of one address; whom else it sends meanwhile is cut off without a word."""
_TOLD_BURST, _TOLD_PER_S = 32, 1.0
"""Nor is an address told more often."""
_MINUTE_S = 60.0
_FULL_RETRY_S = 10.0

WhoT = TypeVar("WhoT")


class Refusal(NamedTuple):
    """Why somebody is not let in."""

    code: str
    """For the metrics."""
    status: int
    """Of HTTP."""
    sentence: str
    retry_after_s: float


@dataclass(slots=True, eq=False)
class _Address:
    """What is known of one."""

    key: str | None
    handshakes: Bucket | None
    failures: Bucket | None
    most_links: int | None
    pace: PeerPace | None
    """Of all its links; None if each has its own."""
    links: int = 0
    """Connections, from when they were accepted."""
    turned_away: int = 0
    """That are still to be told so."""
    limited_at: float = -math.inf
    """When it last met one of its limits."""
    told: Bucket = field(default_factory=lambda: Bucket(_TOLD_BURST, _TOLD_PER_S))

    @property
    def there(self) -> bool:
        return self.links + self.turned_away > 0


@dataclass(slots=True, eq=False)
class Visitor(Generic[WhoT]):
    """A connection, from when it was accepted until it has gone."""

    who: WhoT
    address: _Address = field(repr=False)
    refusal: Refusal | None = None
    """What it is to be told, if it was turned away when it came."""
    cut: bool = False
    """Whether not even that: too many of its address are being told already."""
    is_link: bool = False
    heard_at: float = -math.inf
    gone: bool = False


class Gate(Generic[WhoT]):
    """Counts connections and what they fail at.

    Args:
        settings: the operator's choices.
        cut_off: is told whose connection has to go, since it has not become a link in so long, and others come.
        make_way: is told whose link has to go for another's, since it is idle.
        is_busy: whether a link has streams.
    """

    def __init__(
        self,
        settings: DoorSettings,
        *,
        cut_off: Callable[[WhoT], None],
        make_way: Callable[[WhoT], None],
        is_busy: Callable[[WhoT], bool],
    ) -> None:
        self._settings = settings
        self._cut_off = cut_off
        self._make_way = make_way
        self._is_busy = is_busy
        self.max_pending = max(_LEAST_PENDING, settings.max_links // _PENDING_SHARE)
        """So many connections may be no links yet."""
        self._pending: OrderedDict[Visitor[WhoT], None] = OrderedDict()
        """Not links yet, the oldest first."""
        self._links: OrderedDict[Visitor[WhoT], None] = OrderedDict()
        """Those that were silent for longest first."""
        self._here: dict[str, _Address] = {}
        """Addresses that have a connection,"""
        self._calm: OrderedDict[str, _Address] = OrderedDict()
        """those that have none and are at none of their limits, and"""
        self._limited: OrderedDict[str, _Address] = OrderedDict()
        """those that have none and were at one when they were last seen; both in order of that."""
        self._strangers = self._address(None, loopback=False)

    @property
    def links(self) -> int:
        """How many there are."""
        return len(self._links)

    @property
    def pending(self) -> int:
        """How many connections are no links yet."""
        return len(self._pending)

    @property
    def remembered(self) -> int:
        """Of how many addresses something is known."""
        return len(self._here) + len(self._calm) + len(self._limited)

    def everybody(self) -> list[WhoT]:
        """Who has a connection."""
        return [visitor.who for visitor in (*self._pending, *self._links)]

    def sheds(self, host: str, now: float) -> Refusal | None:
        """Why a connection of this host, were it made, would be cut off without a word; None if it would not.

        Args:
            host: as in `arrive`.
            now: seconds.
        """
        key, _ = key_of(host)
        address = self._here.get(key) or self._limited.get(key)
        if address is None or _is_told(address, now):
            return None
        refusal = self._limit_met(address, now)
        if refusal is not None and key in self._limited:
            self._limited.move_to_end(key)
        return refusal

    def pace(self, visitor: Visitor[WhoT]) -> PeerPace:
        """How much whoever shows no token is listened to: what is this machine's own, or a proxy's, by link."""
        return visitor.address.pace or PeerPace(self._settings.messages_per_s)

    def arrive(self, who: WhoT, host: str, now: float) -> Visitor[WhoT]:
        """A connection was accepted.

        Args:
            who: it is.
            host: the other side's IP address; empty where that is not known.
            now: seconds.
        """
        address = self._find(host, now)
        visitor = Visitor(who, address, self._too_many(address, now))
        if visitor.refusal is None:
            address.links += 1
        elif _is_told(address, now):
            address.told.take(now)
            address.turned_away += 1
        else:
            visitor.cut = visitor.gone = True
            self._rest(address, now)
            return visitor
        self._pending[visitor] = None
        if address.key is not None:
            self._here[address.key] = address
        if len(self._pending) > self.max_pending:
            # Who means it has shaken hands by then; whoever holds connections open without a word has the oldest.
            oldest = next(iter(self._pending))
            self.left(oldest, now)
            self._cut_off(oldest.who)
        return visitor

    def barred(self, visitor: Visitor[WhoT], now: float) -> Refusal | None:
        """Whether no token of its address is looked at: too many were wrong."""
        failures = visitor.address.failures
        lacking_s = 0.0 if failures is None else failures.lacking_s(now)
        if lacking_s <= 0.0:
            return None
        visitor.address.limited_at = now
        return Refusal(
            "too_many_failures", 429, "too many wrong tokens came from this address: none is looked at now", lacking_s
        )

    def failed(self, visitor: Visitor[WhoT], now: float) -> None:
        """Its token was wrong."""
        if visitor.address.failures is not None:
            visitor.address.failures.take(now)

    def admit(self, visitor: Visitor[WhoT], now: float) -> Refusal | None:
        """Make a link of a connection, in place of an idle one if need be; or say why not."""
        assert not visitor.gone
        if len(self._links) >= self._settings.max_links:
            idle = self._idle(now)
            if idle is None:
                return Refusal(
                    "too_many_links",
                    503,
                    f"this server has {self._settings.max_links} links, which is all it takes (its operator can raise "
                    "--max-links)",
                    _FULL_RETRY_S,
                )
            self._links.pop(idle)
            idle.is_link = False
            self._make_way(idle.who)
        del self._pending[visitor]
        visitor.is_link, visitor.heard_at = True, now
        self._links[visitor] = None
        return None

    def heard(self, visitor: Visitor[WhoT], now: float) -> None:
        """A link brought a message."""
        if visitor.is_link:
            visitor.heard_at = now
            self._links.move_to_end(visitor)

    def left(self, visitor: Visitor[WhoT], now: float) -> None:
        """Its connection has gone; said twice it is no more gone."""
        if visitor.gone:
            return
        visitor.gone = True
        visitor.is_link = False
        self._pending.pop(visitor, None)
        self._links.pop(visitor, None)
        address = visitor.address
        if visitor.refusal is None:
            address.links -= 1
        else:
            address.turned_away -= 1
        self._rest(address, now)

    def _rest(self, address: _Address, now: float) -> None:
        """Remember an address that may have no connection any more among those that have none."""
        if address.key is not None and not address.there:
            self._here.pop(address.key, None)
            resting = self._limited if now - address.limited_at < _MINUTE_S else self._calm
            resting[address.key] = address

    def _idle(self, now: float) -> Visitor[WhoT] | None:
        for visitor in self._links:
            if now - visitor.heard_at < self._settings.idle_s:
                return None
            if not self._is_busy(visitor.who):
                return visitor
        return None

    def _too_many(self, address: _Address, now: float) -> Refusal | None:
        refusal = self._limit_met(address, now)
        if refusal is None and address.handshakes is not None:
            address.handshakes.take(now)
        return refusal

    def _limit_met(self, address: _Address, now: float) -> Refusal | None:
        if address.most_links is not None and address.links >= address.most_links:
            address.limited_at = now
            return Refusal(
                "too_many_links_of_address",
                429,
                f"{address.most_links} links come from this address, which is all that one may have (the server's "
                "operator can raise --max-links-per-address)",
                _FULL_RETRY_S,
            )
        if address.handshakes is not None:
            lacking_s = address.handshakes.lacking_s(now)
            if lacking_s > 0.0:
                address.limited_at = now
                return Refusal("too_many_handshakes", 429, "too many connections come from this address", lacking_s)
        return None

    def _find(self, host: str, now: float) -> _Address:
        key, loopback = key_of(host)
        found = self._here.get(key) or self._calm.pop(key, None) or self._limited.pop(key, None)
        if found is None:
            found = self._address(key, loopback=loopback) if self._make_room(now) else self._strangers
        return found

    def _make_room(self, now: float) -> bool:
        """Forget who is forgotten first; whether there is room for one more now."""
        if len(self._calm) + len(self._limited) < REMEMBERED:
            return True
        if self._calm:
            self._calm.popitem(last=False)
            return True
        oldest = next(iter(self._limited.values()))
        if now - oldest.limited_at < _MINUTE_S:
            return False
        self._limited.popitem(last=False)  # its buckets are as good as full by now
        return True

    def _address(self, key: str | None, *, loopback: bool) -> _Address:
        settings = self._settings

        def limit(chosen: int | None, usual: int) -> int | None:
            return usual if chosen is None and not loopback else chosen

        def bucket(per_minute: int | None) -> Bucket | None:
            return None if per_minute is None else Bucket(per_minute, per_minute / _MINUTE_S)

        return _Address(
            key,
            handshakes=bucket(limit(settings.handshakes_per_minute, HANDSHAKES_PER_MINUTE)),
            failures=bucket(limit(settings.failed_tokens_per_minute, FAILED_TOKENS_PER_MINUTE)),
            most_links=limit(settings.max_links_per_address, LINKS_PER_ADDRESS),
            pace=None if loopback else PeerPace(settings.messages_per_s),
        )


def _is_told(address: _Address, now: float) -> bool:
    """Whether one more of an address that is turned away is told so."""
    return address.turned_away < _TOLD_AT_ONCE and address.told.lacking_s(now) == 0.0


@functools.lru_cache(maxsize=2**12)
def key_of(host: str) -> tuple[str, bool]:
    """What addresses are told apart by, and whether this one is the machine itself.

    Args:
        host: an IPv4 or IPv6 address; whatever is none has one key in common.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "", False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            if address.is_loopback:
                return str(address), True
            return str(ipaddress.IPv6Address(int(address) >> 64 << 64)) + "/64", False
        address = address.ipv4_mapped
    return str(address), address.is_loopback
