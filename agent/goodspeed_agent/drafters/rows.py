"""Which session has which row of a draft model's slab."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Rows"]

S = TypeVar("S")

_IDLE_USES = 256
"""Whose row was not used while others were so many times is not at work."""


@dataclass(slots=True)
class _Loan(Generic[S]):
    holder: weakref.ref[S]
    used: int


class Rows(Generic[S]):
    """Rows are lent: those of sessions that are gone first, then more, and at last that of whoever is idle longest.

    A session says nowhere that it ends, and one that has lost its row can compute again what it held. Those at work
    keep theirs: were more of them than rows to take turns, each would compute its whole text for every guess.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._loans: dict[int, _Loan[S]] = {}
        self._uses = 0

    def take(self, session: S, beside: Collection[S], most: int) -> tuple[int, S | None] | None:
        """A row for a session that has none.

        Args:
            session: whose.
            beside: those that are to keep theirs in any case.
            most: how many rows there may be at the moment.

        Returns:
            The row, and who has lost it; None if everybody is at work.
        """
        chosen = self._choose(beside, min(most, self._most))
        if chosen is not None:
            self._loans[chosen[0]] = _Loan(weakref.ref(session), self._uses)
        return chosen

    def used(self, row: int) -> None:
        """Its session computes now."""
        self._uses += 1
        self._loans[row].used = self._uses

    def give_back(self, row: int) -> None:
        """There is no such row after all: it was taken last, and beyond all others."""
        assert row == len(self._loans) - 1
        del self._loans[row]

    def at_work(self) -> list[S]:
        """Who used a row of late."""
        holders = ((loan.holder(), loan.used) for loan in self._loans.values())
        return [holder for holder, used in holders if holder is not None and self._uses - used < _IDLE_USES]

    def call_in(self) -> list[S]:
        """Lend all rows anew; says who has lost one."""
        holders = [holder for loan in self._loans.values() if (holder := loan.holder()) is not None]
        self._loans.clear()
        return holders

    def _choose(self, beside: Collection[S], most: int) -> tuple[int, S | None] | None:
        holders = {row: loan.holder() for row, loan in self._loans.items()}
        for row, holder in holders.items():
            if holder is None:
                return row, None
        if len(holders) < most:
            return len(holders), None
        idle = [
            (self._loans[row].used, row, holder)
            for row, holder in holders.items()
            if holder not in beside and self._uses - self._loans[row].used >= _IDLE_USES
        ]
        if not idle:
            return None
        _, row, holder = min(idle, key=lambda one: one[0])
        return row, holder
