"""Whose drafts do not come of what is claimed for them, remembered beyond their links.

An account that raises the alarm of `goodspeed.audit` is *distrusted*: its texts are decoded without its drafts, which
keeps them the target's own, and costs nobody else anything. That holds for all its links, and for those it makes later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from goodspeed.audit import Audit

__all__ = ["REMEMBER_S", "Audits", "Standing"]

REMEMBER_S = 86_400.0
"""For how long an account is remembered after its last link has gone, seconds."""
_MOST_AWAY = 1024
"""How many accounts without a link are remembered."""
_MOST_NAMES = 16


@dataclass(slots=True, eq=False)
class Standing:
    """What the audit has made of an account, shared by all its links."""

    audit: Audit = field(default_factory=Audit)
    distrusted: bool = False
    links: int = 0
    names: dict[str, None] = field(default_factory=dict)
    """What agents of the account have called themselves, the last one last."""
    left_at: float = 0.0


class Audits:
    """The standings of all accounts: of those with a link, and of as many others as there is room for.

    An account is a token's holder, or, where nobody shows a token, who comes with a name from an address. Who comes
    with another name then starts anew; what it can have by that before it is found out again is a few tokens' worth.

    Args:
        remember_s: for how long who has left is remembered, seconds.
        most_away: how many of those.
    """

    def __init__(self, *, remember_s: float = REMEMBER_S, most_away: int = _MOST_AWAY) -> None:
        self._remember_s = remember_s
        self._most_away = most_away
        self._here: dict[str, Standing] = {}
        self._away: OrderedDict[str, Standing] = OrderedDict()  # who left first comes first

    def __len__(self) -> int:
        return len(self._here) + len(self._away)

    def joined(self, account: str, name: str, now: float) -> Standing:
        """An agent of an account has linked up under a name."""
        self._expire(now)
        standing = self._here.get(account) or self._away.pop(account, None) or Standing()
        self._here[account] = standing
        standing.links += 1
        standing.names.pop(name, None)
        standing.names[name] = None
        if len(standing.names) > _MOST_NAMES:
            del standing.names[next(iter(standing.names))]
        return standing

    def left(self, account: str, now: float) -> None:
        """One of an account's links has gone."""
        self._expire(now)
        standing = self._here[account]
        standing.links -= 1
        if standing.links:
            return
        del self._here[account]
        if not standing.audit.tokens and not standing.distrusted:
            return  # nothing is known of it
        standing.left_at = now
        self._away[account] = standing
        while len(self._away) > self._most_away:
            # Names are free where nobody shows a token: a crowd of fresh ones is not to wash away those found out.
            trusted = (known for known, one in self._away.items() if not one.distrusted)
            del self._away[next(trusted, None) or next(iter(self._away))]

    def distrusted(self, name: str) -> list[Standing]:
        """Those that are distrusted of which an agent has called itself so."""
        return [one for one in self._all() if one.distrusted and name in one.names]

    def distrusted_names(self) -> set[str]:
        """What agents of accounts that are distrusted called themselves last."""
        return {next(reversed(one.names)) for one in self._all() if one.distrusted and one.names}

    def names_of_distrusted(self) -> set[str]:
        """All that agents of accounts that are distrusted have called themselves, as far as it is remembered."""
        return {name for one in self._all() if one.distrusted for name in one.names}

    def trust(self, name: str) -> list[Standing]:
        """Believe again what agents of this name claim; those to whom that is news."""
        forgiven = self.distrusted(name)
        for standing in forgiven:
            standing.distrusted = False
            standing.audit.restart()
        return forgiven

    def _all(self) -> Iterator[Standing]:
        yield from self._here.values()
        yield from self._away.values()

    def _expire(self, now: float) -> None:
        while self._away and now - next(iter(self._away.values())).left_at >= self._remember_s:
            self._away.popitem(last=False)
