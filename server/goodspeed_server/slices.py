"""What is done for many streams is done for some at a time, so that links are heard in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import TypeVar

__all__ = ["many", "slices_of"]

ItemT = TypeVar("ItemT")

_AT_ONCE = 64
"""Streams: some milliseconds of the event loop's time."""


def many(items: Sized) -> bool:
    """Whether there is more than one slice of them."""
    return len(items) > _AT_ONCE


def slices_of(items: Sequence[ItemT]) -> Iterator[Sequence[ItemT]]:
    """So many at a time, in order; the last ones are fewer."""
    for first in range(0, len(items), _AT_ONCE):
        yield items[first : first + _AT_ONCE]
