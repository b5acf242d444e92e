"""How long an agent is away from its work, and what for."""

from __future__ import annotations

from typing import Literal, TypeAlias

from bench.chaos.faults import Kind

__all__ = ["Cause", "Recovery"]

Cause: TypeAlias = Kind | Literal["several faults"]


class Recovery:
    """One agent's.

    Who is struck again before it is back says nothing of how long either fault takes to get over: such an absence is
    one of several faults, from the first of them on.
    """

    def __init__(self) -> None:
        self._cause: Cause | None = None
        """None while it is at work."""
        self._first_at = self._last_at = 0.0

    def struck(self, kind: Kind, at: float) -> None:
        """A fault has taken it from its work.

        Args:
            kind: of fault.
            at: seconds.
        """
        if self._cause is None:
            self._cause, self._first_at = kind, at
        else:
            self._cause = "several faults"
        self._last_at = at

    def told(self, at: float, opened_at: float) -> tuple[Cause, float] | None:
        """It was told a verdict.

        Args:
            at: seconds.
            opened_at: when the connection was made; one that a fault has ended since may still deliver.

        Returns:
            What has kept it from its work until now, and for how long; None if nothing has, or still does.
        """
        if self._cause is None or opened_at <= self._last_at:
            return None
        over = self._cause, at - self._first_at
        self._cause = None
        return over
