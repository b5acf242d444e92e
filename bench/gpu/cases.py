"""What is measured, the most important first: rows, budgets and caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = ["CASES", "Case"]

_LOWEST, _HIGHEST = 0.40, 0.92
"""Acceptance rates of the agents, evenly spread: the range of the scenario in which the schedules are compared."""


@dataclass(frozen=True)
class Case:
    """Rounds of one kind."""

    rows: int
    capacity: int
    """`C`: drafted tokens of a round, all rows together."""
    cache: int
    """Tokens that each row has cached."""
    aim: float | None = None
    """The most that a round should take, in floors."""

    @property
    def name(self) -> str:
        """In a few words."""
        return f"{self.rows} rows, C = {self.capacity}, cache {self.cache}"

    @property
    def max_length(self) -> int:
        """What a row has to hold."""
        return self.cache + max(self.budgets) + 1

    @cached_property
    def alphas(self) -> Sequence[float]:
        """The acceptance rate of each row's agent."""
        return [_LOWEST + (_HIGHEST - _LOWEST) * row / max(1, self.rows - 1) for row in range(self.rows)]

    @cached_property
    def budgets(self) -> Sequence[int]:
        """Where the paper's schedule settles for these agents: what maximises `sum log mu(alpha_i, S_i)`."""
        budgets = [0] * self.rows
        for _ in range(self.capacity):
            gains = [goodput(a, s + 1) / goodput(a, s) for a, s in zip(self.alphas, budgets, strict=True)]
            budgets[max(range(self.rows), key=gains.__getitem__)] += 1
        return budgets

    @property
    def expected_tokens(self) -> float:
        """What a round commits on average, all rows together."""
        return sum(goodput(alpha, budget) for alpha, budget in zip(self.alphas, self.budgets, strict=True))


def goodput(alpha: float, budget: int) -> float:
    """`mu(alpha, S)`: tokens that one round commits on average."""
    return float((1 - alpha ** (budget + 1)) / (1 - alpha))


_FIRST = Case(8, 28, 1024, aim=1.25)
_SECOND = Case(32, 128, 1024, aim=1.4)
_LARGE = [
    _FIRST,
    _SECOND,
    Case(4, 28, 1024),
    Case(8, 28, 4096),
    Case(8, 20, 1024),
    Case(16, 56, 2048),
    Case(64, 256, 1024),
    Case(8, 28, 8192),
    Case(32, 128, 4096),
    Case(64, 256, 4096),
    Case(64, 256, 8192),
]

CASES: dict[str, Sequence[Case]] = {
    "qwen3-14b": _LARGE,
    "llama-3.1-8b": [Case(8, 28, 1024), Case(32, 128, 1024), Case(8, 28, 8192), Case(64, 256, 4096)],
    "tiny": [Case(4, 8, 64), Case(8, 28, 96)],
}
"""By shape. Budgets are those of the paper's table, 2.5 to 7 drafted tokens a row."""
