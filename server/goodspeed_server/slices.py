"""What is done for many streams is done for some at a time, so that links are heard in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

__all__ = ["AT_ONCE", "slices_of"]

ItemT = TypeVar("ItemT")

AT_ONCE = 64
"""Streams: some milliseconds of the event loop's time."""


def slices_of(items: Sequence[ItemT]) -> Iterator[Sequence[ItemT]]:
    """`AT_ONCE` at a time, in order; the last ones are fewer."""
    for first in range(0, len(items), AT_ONCE):
        yield items[first : first + AT_ONCE]
