"""Which runs an attack is compared with.

A shared machine is slower for seconds at a time, so that a control of an attack's own kind runs behind every second
attack, and each attacked case is compared with the mean of the two controls around it: the last one before it and the
first one behind it. All turns are one row of cases, in which every second turn is in reverse:
`control a b control c c control b a control`.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Generic, TypeVar

__all__ = ["Compared", "between_controls"]

CaseT = TypeVar("CaseT")
_BETWEEN_CONTROLS = 2


@dataclass(frozen=True, slots=True)
class Compared(Generic[CaseT]):
    """An attacked case, and the controls around it."""

    attacked: CaseT
    before: CaseT
    behind: CaseT

    def ratio(self, of: Callable[[CaseT], float]) -> float:
        """Of what the attacked case has, to what its controls have on average."""
        return of(self.attacked) / self.control(of)

    def more(self, of: Callable[[CaseT], float]) -> float:
        """What the attacked case has, beyond what its controls have on average."""
        return of(self.attacked) - self.control(of)

    def control(self, of: Callable[[CaseT], float]) -> float:
        """What its controls have on average."""
        return fmean((of(self.before), of(self.behind)))


async def between_controls(
    attacks: Sequence[str], turns: int, run: Callable[[str | None, int], Awaitable[CaseT]]
) -> dict[str, list[Compared[CaseT]]]:
    """Run every attack in every turn, and controls around them.

    Args:
        attacks: their names.
        turns: how often each runs.
        run: runs a case, of the attack of that name or else a control; the number is no other case's.

    Returns:
        By the name of each attack, one comparison for each turn.
    """
    found: dict[str, list[Compared[CaseT]]] = {name: [] for name in attacks}
    order = [name for turn in range(turns) for name in (attacks if turn % 2 == 0 else reversed(attacks))]
    numbers = itertools.count()
    before = await run(None, next(numbers))
    for begin in range(0, len(order), _BETWEEN_CONTROLS):
        names = order[begin : begin + _BETWEEN_CONTROLS]
        attacked = [await run(name, next(numbers)) for name in names]
        behind = await run(None, next(numbers))
        for name, case in zip(names, attacked, strict=True):
            found[name].append(Compared(case, before, behind))
        before = behind
    return found
