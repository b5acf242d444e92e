"""Work of a drafter in steps, so that the work of several streams can be done side by side."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

from goodspeed_agent.drafters.interface import DraftSession

__all__ = ["Steps", "alone"]

T = TypeVar("T")

Steps: TypeAlias = Generator[DraftSession, None, T]
"""Yields the session that it is about to ask for a guess; whoever runs it may let several of them compute first."""


def alone(steps: Steps[T]) -> T:
    """Run it to its end, beside nothing else."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
