"""Prompt tokens that ride along with a pass."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["share_out"]


def share_out(wanted: Sequence[int], room: int) -> list[int]:
    """How many prompt tokens of each stream the next pass carries, at most `room` together.

    Equal shares, the shortest first so that what they leave goes to the others: a short prompt is never stuck behind
    long ones.

    Args:
        wanted: how many tokens each prompt still lacks.
        room: how many the pass may carry.
    """
    shares = [0] * len(wanted)
    for place, number in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        shares[number] = min(-(-room // (len(wanted) - place)), wanted[number])
        room -= shares[number]
    return shares
