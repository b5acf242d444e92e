from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.engine.grouping import FORWARD_TOKENS, groups_by_length


def grouped_cost(lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> int:
    return sum(FORWARD_TOKENS + len(group) * max(lengths[index] for index in group) for group in groups)


@given(lengths=st.lists(st.integers(1, 12) | st.integers(1, 2048), min_size=1, max_size=7))
def test_no_cut_of_a_pass_is_cheaper_than_the_one_made(lengths: list[int]) -> None:
    groups = groups_by_length(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(group == sorted(group) for group in groups)
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    inner = range(1, len(lengths))
    cuts = [cut for size in range(len(lengths)) for cut in combinations(inner, size)]
    others = [[order[a:b] for a, b in pairwise([0, *cut, len(lengths)])] for cut in cuts]
    assert grouped_cost(lengths, groups) == min(grouped_cost(lengths, other) for other in others)


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        pytest.param([4, 9, 1], [[0, 1, 2]], id="drafts"),
        pytest.param([512, *[9, 2] * 7], [list(range(1, 15)), [0]], id="a chunk and drafts"),
        pytest.param([256, *[9, 2] * 7, 256], [list(range(1, 15)), [0, 15]], id="two chunks and drafts"),
        pytest.param([20, *[9, 2] * 7], [list(range(15))], id="a chunk too short for a forward of its own"),
        pytest.param([512], [[0]], id="alone"),
    ],
)
def test_the_groups_of_a_pass(lengths: list[int], groups: list[list[int]]) -> None:
    assert groups_by_length(lengths) == groups
