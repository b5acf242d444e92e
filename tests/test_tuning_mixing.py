"""Shares that hold from the first index on, and decks that are dealt out before they are shuffled again."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from goodspeed.tuning.lessons import Row
from goodspeed.tuning.mixing import Source, mixed, strata
from goodspeed.tuning.passages import Passage

shares_and_sizes = st.lists(st.tuples(st.floats(0.01, 10), st.integers(1, 9)), min_size=1, max_size=9)


def laid_out(sizes: list[int]) -> list[list[int]]:
    """Indices of groups of these sizes."""
    ends = list(itertools.accumulate(sizes))
    return [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


@settings(max_examples=40)
@given(shares_and_sizes, st.integers(0, 2**32))
def test_the_first_n_hold_every_group_in_its_share_within_one(figures: list[tuple[float, int]], seed: int) -> None:
    groups = laid_out([size for _, size in figures])
    shares = np.array([share for share, _ in figures])
    owner = {index: place for place, group in enumerate(groups) for index in group}
    drawn = itertools.islice(mixed(list(zip(shares.tolist(), groups, strict=True)), seed), 300)
    counts = np.zeros(len(groups))
    for n, index in enumerate(drawn, 1):
        counts[owner[index]] += 1
        assert np.abs(counts - n * shares / shares.sum()).max() <= 1 + 1e-9


def test_many_large_groups_do_not_keep_a_small_one_waiting() -> None:
    """Found by search: serving whoever is owed most leaves one of these owed 1.11 of an index."""
    shares = [0.0004, 0.4759, 0.0165, 0.002, 0.2614, 0.0073, 0.0118, 0.2222, 0.0024]
    drawn = list(itertools.islice(mixed([(share, [place]) for place, share in enumerate(shares)], 0), 400))
    for n in range(1, 401):
        counts = np.bincount(drawn[:n], minlength=len(shares))
        assert np.abs(counts - n * np.array(shares) / sum(shares)).max() <= 1 + 1e-9


@settings(max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 2**32))
def test_all_of_a_group_come_before_any_of_them_comes_twice(sizes: list[int], seed: int) -> None:
    groups = laid_out(sizes)
    drawn = list(itertools.islice(mixed([(1.0, group) for group in groups], seed), 100))
    for group in groups:
        own = [index for index in drawn if index in group]
        for begin in range(0, len(own) - len(group) + 1, len(group)):
            assert sorted(own[begin : begin + len(group)]) == group


def test_an_order_is_its_seeds_alone() -> None:
    groups = [(1.0, range(10)), (2.0, range(10, 30))]

    def order(seed: int) -> list[int]:
        return list(itertools.islice(mixed(groups, seed), 60))

    assert order(1) == order(1) != order(2)
    # Another time through, another order.
    first, second = ([index for index in part if index < 10] for part in (order(1)[:30], order(1)[30:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_clients_share_their_source_evenly_whatever_they_wrote() -> None:
    def rows(client: str, count: int) -> list[Row]:
        empty = np.zeros((0, 1))
        passage = Passage(np.zeros(9, np.int32), 1, empty.astype(np.int32), empty.astype(np.float16), client=client)
        return [Row(passage, 0, 1, 2) for _ in range(count)]

    sources = [Source("chat", [*rows("a", 5), *rows("b", 1)], 3.0), Source("code", rows("a", 2), 1.0)]
    laid, groups = strata(sources)
    assert len(laid) == 8
    assert groups == [(1.5, [0, 1, 2, 3, 4]), (1.5, [5]), (1.0, [6, 7])]
    assert [laid[indices[0]].client for _, indices in groups] == ["a", "b", "a"]
