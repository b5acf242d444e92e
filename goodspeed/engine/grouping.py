"""Which segments of a pass share a padded forward, so that one long prompt chunk does not widen everybody's line."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["FORWARD_TOKENS", "groups_by_length"]

FORWARD_TOKENS = 256
"""What a forward costs before its first token, in tokens: a GPU reads all weights and launches all kernels for one
token as for these many. So verification turns, which differ by a few tokens, stay one rectangle, and chunks leave it.
"""


def groups_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Cut the segments, sorted by length, into the rectangles that cost least in all.

    A group costs `FORWARD_TOKENS + count * longest`.

    Args:
        lengths: how many new tokens each segment has; at least one segment.

    Returns:
        Indices into `lengths`, shortest group first; ascending in each group, and each index once.
    """
    count = len(lengths)
    if count * max(lengths) - sum(lengths) <= FORWARD_TOKENS:
        return [list(range(count))]  # no cut saves more than all the padding; most rounds end here
    order = sorted(range(count), key=lengths.__getitem__)
    costs, begins = [0], [0]  # of the `end` shortest segments: the least cost, and where its last group begins
    for end in range(1, count + 1):
        longest = lengths[order[end - 1]]
        cost, begin = min((costs[begin] + FORWARD_TOKENS + (end - begin) * longest, begin) for begin in range(end))
        costs.append(cost)
        begins.append(begin)
    groups: list[list[int]] = []
    end = count
    while end:
        groups.insert(0, sorted(order[begins[end] : end]))
        end = begins[end]
    return groups
