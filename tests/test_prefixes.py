"""The longest beginning that somebody holds is found, whatever was held, extended and cut before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from goodspeed.prefixes import BLOCK_TOKENS, PrefixIndex, Shared, common_length

SCOPES = st.sampled_from(["a", "b"])
ROWS = st.integers(0, 5)
# Few tokens, and stretches of equal ones, so that many texts share beginnings of any length, block ends among them.
TEXTS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([1, 2, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1])), max_size=5
).map(lambda runs: [token for token, count in runs for _ in range(count)])


def brute_force(held: dict[int, tuple[str, list[int]]], scope: str, text: list[int]) -> int:
    """How much of a text somebody in the scope holds, by looking at everybody, token by token."""
    best = 0
    for where, tokens in held.values():
        if where == scope:
            shared = 0
            while shared < min(len(tokens), len(text)) and tokens[shared] == text[shared]:
                shared += 1
            best = max(best, shared)
    return best


WRITES = st.tuples(ROWS, SCOPES, st.integers(0, 80), TEXTS)
COPIES = st.tuples(ROWS, ROWS)


@given(st.lists(st.one_of(WRITES, WRITES, COPIES), max_size=25), SCOPES, TEXTS, ROWS)
def test_what_is_found_is_the_longest_that_anybody_holds(
    events: list[tuple[int, str, int, list[int]] | tuple[int, int]], scope: str, text: list[int], prefer: int
) -> None:
    index: PrefixIndex[int] = PrefixIndex()
    held: dict[int, tuple[str, list[int]]] = {}
    for event in events:
        if len(event) == 2:
            source, target = event
            if source in index and source != target:
                index.copy(source, target)
                held[target] = held[source]
            continue
        row, where, kept, more = event
        before, tokens = held.get(row, (where, []))
        tokens = tokens[:kept] + more
        index.cut(row, kept)
        index.hold(row, where, tokens, len(tokens))
        held[row] = (where if tokens else before, tokens)
        assert index.held(row) == len(tokens)
    expected = brute_force(held, scope, text)
    found = index.longest(scope, text, prefer)
    if found is None:
        assert expected == 0
        return
    assert found.tokens == expected > 0
    where, tokens = held[found.holder]
    assert (where, tokens[:expected]) == (scope, text[:expected])
    where, tokens = held.get(prefer, ("", []))
    if where == scope and tokens[:expected] == text[:expected]:
        assert found.holder == prefer


@given(st.lists(st.tuples(ROWS, SCOPES, TEXTS), max_size=12))
def test_of_what_nobody_holds_nothing_is_left(writes: list[tuple[int, str, list[int]]]) -> None:
    index: PrefixIndex[int] = PrefixIndex()
    for row, scope, tokens in writes:
        index.cut(row, 0)
        index.hold(row, scope, tokens, len(tokens))
    for row in range(6):
        index.cut(row, 0)
    assert not len(index)
    assert not index._roots


def test_where_two_hold_as_much_the_first_to_come_is_named() -> None:
    index: PrefixIndex[str] = PrefixIndex()
    text = list(range(40))
    for holder in ("first", "second"):
        index.hold(holder, None, text, 35)
    assert index.longest(None, text) == Shared("first", 35)
    index.cut("first", 34)
    assert index.longest(None, text) == Shared("second", 35)


@given(TEXTS, TEXTS)
def test_what_two_begin_with(ours: list[int], theirs: list[int]) -> None:
    length = common_length(ours, theirs)
    assert ours[:length] == theirs[:length]
    assert length in (len(ours), len(theirs)) or ours[length] != theirs[length]
