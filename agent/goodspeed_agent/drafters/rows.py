"""Which session has which row of a draft model's slab."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import Generic, TypeVar

__all__ = ["Rows"]

S = TypeVar("S")


class Rows(Generic[S]):
    """Rows are lent: those of sessions that are gone first, then more, and at last the one that waited longest.

    A session says nowhere that it ends, and one that has lost its row can always compute what it held again.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lent: dict[int, weakref.ref[S]] = {}  # by row, whoever computed longest ago first

    def take(self, session: S, beside: Collection[S]) -> tuple[int, S | None]:
        """A row for a session that has none.

        Args:
            session: whose.
            beside: those that keep theirs, fewer than there may be rows.

        Returns:
            The row, and who has lost it.
        """
        row, loser = self._choose(beside)
        self._lent.pop(row, None)
        self._lent[row] = weakref.ref(session)
        return row, loser

    def used(self, row: int) -> None:
        """Its session computes now."""
        self._lent[row] = self._lent.pop(row)

    def _choose(self, beside: Collection[S]) -> tuple[int, S | None]:
        holders = {row: holder() for row, holder in self._lent.items()}
        for row, holder in holders.items():
            if holder is None:
                return row, None
        if len(holders) < self._most:
            return len(holders), None
        return next((row, holder) for row, holder in holders.items() if holder not in beside)
