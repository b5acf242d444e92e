"""Who gets a row: streams up to the engine's rows, a fair and bounded queue behind them, a refusal behind that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Generic, TypeVar

from goodspeed.errors import Overloaded
from goodspeed_server.absences import Absences, Absent

__all__ = ["Admission"]

KeyT = TypeVar("KeyT", bound=Hashable)
OwnerT = TypeVar("OwnerT", bound=Hashable)
RequestT = TypeVar("RequestT")

_FIRST_GUESS_S = 1.0
"""How soon a row falls free, as long as none ever has."""
_LEAST_RETRY_S = 0.5
_LONGEST_RETRY_S = 30.0
_STEP = 0.2
"""Of the smoothing of how long streams keep their rows."""


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[KeyT, RequestT]):
    key: KeyT
    request: RequestT
    arrival: int
    tokens: int
    weight: Callable[[], float]


class Admission(Generic[KeyT, OwnerT, RequestT]):
    """The queue in front of the engine, fair among the owners of what waits in it.

    The next row goes to the owner with the fewest rows for its weight; among equals to the one that has been without a
    row for the longest while it waited, and to its requests in order of arrival. So who asks for much waits for itself:
    the place of an owner's first request grows only by those who come back, while the owner has no row.

    A full queue has room for a newcomer whose owner, with it, has less in the queue for its weight than somebody else:
    the last request of the one with the most is displaced.

    Who has to leave the queue, and may be back, keeps its place in the order and its room, as far as nobody who is
    there wants for room; no row is kept for it.

    Args:
        rows: how many streams the engine holds.
        max_waiting: how many streams may wait; 0 refuses as soon as every row is taken.
        max_tokens: how many tokens those that wait may hold together.
        keep_s: for how long the place of who has left is kept; 0 keeps none.
        held_so_far_s: at a time, for how long those that have a row have had it, on average.
    """

    def __init__(
        self,
        rows: int,
        *,
        max_waiting: int,
        max_tokens: int,
        keep_s: float = 0.0,
        held_so_far_s: Callable[[float], float] = lambda now: 0.0,
    ) -> None:
        self._rows = rows
        self._max_waiting = max_waiting
        self._max_tokens = max_tokens
        self._ticks = count()
        """Of what comes and what falls free."""
        self._owners: dict[KeyT, OwnerT] = {}
        self._queues: dict[OwnerT, dict[KeyT, _Waiting[KeyT, RequestT]]] = {}  # each in order of arrival
        self._served_until: dict[OwnerT, int] = {}
        """When a row of an owner that waits fell free last, in ticks."""
        self._held_so_far_s = held_so_far_s
        self._held_s: float | None = None
        self._last_slot = 0.0
        self.tokens = 0
        """That wait."""
        self.absences: Absences[Hashable] = Absences(keep_s)
        """Whose places are kept."""

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, key: KeyT) -> bool:
        return key in self._owners

    def wait(
        self,
        key: KeyT,
        request: RequestT,
        *,
        owner: OwnerT,
        weight: Callable[[], float],
        tokens: int,
        now: float,
        name: Hashable = None,
    ) -> list[tuple[KeyT, RequestT]]:
        """Put a request at the end of its owner's queue, or where it stood before it left.

        Args:
            key: of the request; none like it waits.
            request: what waits.
            owner: whose it is.
            weight: what its owner counts, above 0; asked at every decision. Of an owner with several requests, that of
                the first of them holds.
            tokens: how many it holds, 1 or more.
            now: seconds.
            name: by which it left.

        Returns:
            What it has displaced.

        Raises:
            Overloaded: the queue is full, and nobody has more in it than this owner would.
        """
        assert key not in self._owners
        place = self.absences.back(name)
        displaced = self._displaced_by(owner, weight, tokens)
        if displaced is None:
            raise self.refusal(now)
        gone = [(other, self._take(other).request) for other in displaced]
        arrival = next(self._ticks) if place is None else place.arrival
        queue = self._queues.setdefault(owner, {})
        queue[key] = _Waiting(key, request, arrival, tokens, weight)
        self._owners[key] = owner
        if place is not None:
            self._queues[owner] = dict(sorted(queue.items(), key=lambda item: item[1].arrival))
        self.tokens += tokens
        self._make_room()
        return gone

    def order(self, rows: Mapping[OwnerT, int]) -> list[KeyT]:
        """Those who wait, in the order in which rows would be given to them.

        Args:
            rows: how many each owner has now, and keeps.
        """
        entries = []
        for owner, queue in self._queues.items():
            requests = queue.values()
            held, weight = rows.get(owner, 0), next(iter(requests)).weight()
            until = self._served_until.get(owner, 0)
            # Each of its requests finds one row more taken: so it stands behind all before it.
            for taken, one in enumerate(requests, start=held):
                entries.append((taken / weight, max(one.arrival, until), one.arrival, one.key))
        # Of who has left and is back the arrival may be another's, too; and keys do not compare.
        entries.sort(key=lambda entry: entry[:3])
        return [key for *_, key in entries]

    def next(self, rows: Mapping[OwnerT, int], count: int = 1) -> list[tuple[KeyT, RequestT]]:
        """Take the requests whose turn it is, `count` of them or as many as there are; `rows` as in `order`."""
        keys = self._first(rows) if count == 1 else self.order(rows)[:count]
        return [(key, self._take(key).request) for key in keys]

    def _first(self, rows: Mapping[OwnerT, int]) -> list[KeyT]:
        """The beginning of the order, which of a long queue is found sooner than all of it."""
        keys, least = list[KeyT](), (math.inf, 0, 0)
        for owner, queue in self._queues.items():
            first = next(iter(queue.values()))
            share = rows.get(owner, 0) / first.weight()
            if share <= least[0]:
                standing = share, max(first.arrival, self._served_until.get(owner, 0)), first.arrival
                if standing < least:
                    keys, least = [first.key], standing
        return keys

    def request(self, key: KeyT) -> RequestT:
        """One that waits."""
        return self._queues[self._owners[key]][key].request

    def withdraw(self, key: KeyT) -> RequestT | None:
        """Forget a request; None if there was none."""
        return self._take(key).request if key in self._owners else None

    def leave(self, key: KeyT, name: Hashable, now: float) -> RequestT:
        """Forget a request, and keep its place for when it is back under this name."""
        # Its owner may be another when it is back, of whom nobody knows when a row of theirs fell free last.
        served_until = self._served_until.get(self._owners[key], 0)
        waiting = self._take(key)
        self.absences.leave(name, Absent(max(waiting.arrival, served_until), waiting.tokens, now))
        return waiting.request

    def keep_place(self, name: Hashable, tokens: int, now: float) -> None:
        """Keep the place at the end of the queue for a request that may come under this name."""
        self.absences.leave(name, Absent(next(self._ticks), tokens, now))
        self._make_room()

    def those(self, which: Callable[[KeyT], bool]) -> list[KeyT]:
        """The requests that wait of whose keys `which` says so."""
        return [key for key in self._owners if which(key)]

    def row_fell_free(self, owner: OwnerT, held_s: float) -> None:
        """An owner's stream has had its row for so long, and has it no more: learn how soon rows fall free."""
        if owner in self._queues:
            self._served_until[owner] = next(self._ticks)
        self._held_s = held_s if self._held_s is None else self._held_s + _STEP * (held_s - self._held_s)

    def refusal(self, now: float) -> Overloaded:
        """What somebody is told for whom there is no room, or none any more.

        Rows fall free one after another, and all who are told so at once are told to come back one after another.
        """
        every_s = self._row_falls_free_every_s(now)
        self._last_slot = min(max(self._last_slot, now) + every_s, now + _LONGEST_RETRY_S)
        retry_after_s = max(_LEAST_RETRY_S, self._last_slot - now)
        waiting = f" and {len(self)} streams wait already" if len(self) else ""
        return Overloaded(
            f"every row of the server is taken{waiting}: try again in {retry_after_s:.1f} s "
            "(its operator can raise --max-streams, --max-waiting or --max-waiting-tokens)",
            retry_after_s=retry_after_s,
        )

    def _make_room(self) -> None:
        self.absences.make_room(self._max_waiting - len(self), self._max_tokens - self.tokens)

    def _row_falls_free_every_s(self, now: float) -> float:
        # Rows that are held for longer than any was say so before the first of them falls free.
        held_so_far_s = self._held_so_far_s(now)
        if self._held_s is None:
            return max(_FIRST_GUESS_S, held_so_far_s / self._rows)
        return max(self._held_s, held_so_far_s) / self._rows

    def _take(self, key: KeyT) -> _Waiting[KeyT, RequestT]:
        owner = self._owners.pop(key)
        queue = self._queues[owner]
        waiting = queue.pop(key)
        if not queue:
            del self._queues[owner]
            self._served_until.pop(owner, None)
        self.tokens -= waiting.tokens
        return waiting

    def _weight(self, owner: OwnerT) -> float:
        return next(iter(self._queues[owner].values())).weight()

    def _displaced_by(self, owner: OwnerT, weight: Callable[[], float], tokens: int) -> list[KeyT] | None:
        """Who has to go for one more request of an owner; None if it has to go itself."""
        streams, in_all = len(self) + 1, self.tokens + tokens
        displaced: list[_Waiting[KeyT, RequestT]] = []
        while streams > self._max_waiting or in_all > self._max_tokens:
            # Most of those who come to a full queue are refused here, and there may be many of them.
            by_tokens = streams <= self._max_waiting
            gone = Counter(self._owners[one.key] for one in displaced)

            def share(other: OwnerT, gone: Counter[OwnerT] = gone, by_tokens: bool = by_tokens) -> float:
                queue = self._queues[other]
                if not by_tokens:
                    return (len(queue) - gone[other]) / self._weight(other)
                left = islice(queue.values(), len(queue) - gone[other])
                return sum(one.tokens for one in left) / self._weight(other)

            most = max((other for other in self._queues if other != owner), key=share, default=None)
            if most is None or share(most) <= self._own_share(owner, weight, tokens, by_tokens=by_tokens):
                return None
            last = next(islice(reversed(self._queues[most].values()), gone[most], None))
            displaced.append(last)
            streams, in_all = streams - 1, in_all - last.tokens
        return [one.key for one in displaced]

    def _own_share(self, owner: OwnerT, weight: Callable[[], float], tokens: int, *, by_tokens: bool) -> float:
        """What an owner would have in the queue for its weight with one more request."""
        queue = self._queues.get(owner, {})
        measured = sum(one.tokens for one in queue.values()) + tokens if by_tokens else len(queue) + 1
        return measured / (self._weight(owner) if queue else weight())
