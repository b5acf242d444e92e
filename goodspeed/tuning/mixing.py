"""Which rows make up a batch: every source and every client gets its stated share, whatever the amounts of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from goodspeed.tuning.lessons import Row

__all__ = ["Source", "mixed", "strata"]


@dataclass(frozen=True, slots=True)
class Source:
    """Rows from one place, and their share of the training."""

    name: str
    rows: Sequence[Row]
    share: float
    """Relative to the other sources'."""


def strata(sources: Sequence[Source]) -> tuple[list[Row], list[tuple[float, list[int]]]]:
    """Lay the sources' rows end to end, and cut them by source and client.

    Returns:
        The rows, and for every pair of source and client its share and its indices into them; the clients of a source
        have equal shares of it.
    """
    rows: list[Row] = []
    groups: list[tuple[float, list[int]]] = []
    for source in sources:
        by_client: dict[str, list[int]] = {}
        for row in source.rows:
            by_client.setdefault(row.client, []).append(len(rows))
            rows.append(row)
        groups += [(source.share / len(by_client), indices) for indices in by_client.values()]
    return rows, groups


def mixed(groups: Sequence[tuple[float, Sequence[int]]], seed: int) -> Iterator[int]:
    """Draw indices for ever, so that the first n hold each group in its share, to within one index, whatever n is.

    All of a group come before any of them comes twice.

    Args:
        groups: share and indices of each; shares are above 0 and none is empty.
        seed: of the order within a group.
    """
    shares = np.array([share for share, _ in groups])
    shares /= shares.sum()
    owed = np.zeros(len(groups))
    decks = [_shuffled(indices, seed, place) for place, (_, indices) in enumerate(groups)]
    while True:
        owed += shares
        # Of those that are owed anything, whoever would be the first to be owed a whole one. To serve who is owed most
        # is not enough: a small group may then be owed more than one when many large ones are due together.
        place = int(np.where(owed > 0, (1.0 - owed) / shares, np.inf).argmin())
        owed[place] -= 1.0
        yield next(decks[place])


def _shuffled(indices: Sequence[int], seed: int, place: int) -> Iterator[int]:
    rng = np.random.default_rng((seed, place))
    while True:
        for chosen in rng.permutation(len(indices)):
            yield indices[chosen]
