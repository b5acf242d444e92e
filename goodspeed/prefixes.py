"""Who holds what a text begins with: token sequences that grow and are cut, and the longest beginning that one shares.

A trie of blocks. A whole block of tokens is one step in it, so that finding a beginning of `n` tokens takes
`n / BLOCK_TOKENS` steps, however many hold it; what is left of it, less than a block, is looked for among those that
came as far. Blocks are compared token by token and never by a hash alone: whoever is found does hold these tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

__all__ = ["BLOCK_TOKENS", "PrefixIndex", "Shared", "common_length"]

BLOCK_TOKENS = 16

HolderT = TypeVar("HolderT", bound=Hashable)


class Shared(NamedTuple, Generic[HolderT]):
    """The longest beginning that is held."""

    holder: HolderT
    tokens: int
    """How long it is, at least 1."""


@dataclass(slots=True, eq=False)
class _Node(Generic[HolderT]):
    """The end of a sequence of whole blocks."""

    block: tuple[int, ...] = ()
    """The last of them."""
    children: dict[tuple[int, ...], _Node[HolderT]] = field(default_factory=dict)
    holders: dict[HolderT, None] = field(default_factory=dict)
    """Whose tokens begin with it, in the order in which they came."""


@dataclass(slots=True, eq=False)
class _Held(Generic[HolderT]):
    """What one holds."""

    scope: Hashable
    path: list[_Node[HolderT]]
    """From the scope's root, one node for each whole block behind it."""
    tokens: list[int] = field(default_factory=list)


class PrefixIndex(Generic[HolderT]):
    """Sequences of tokens by who holds them; only those of one scope are found from there."""

    def __init__(self) -> None:
        self._roots: dict[Hashable, _Node[HolderT]] = {}
        self._held: dict[HolderT, _Held[HolderT]] = {}

    def __contains__(self, holder: object) -> bool:
        return holder in self._held

    def __len__(self) -> int:
        return len(self._held)

    def held(self, holder: HolderT) -> int:
        """How many tokens one holds."""
        return len(self._held[holder].tokens) if holder in self._held else 0

    def hold(self, holder: HolderT, scope: Hashable, tokens: Sequence[int], length: int) -> None:
        """Note that one holds the first `length` of `tokens`; what it is known to hold in that scope is part of them.

        Args:
            holder: who.
            scope: where it is found; what it held in another is forgotten.
            tokens: a text.
            length: how much of it, no less than was known.
        """
        held = self._held.get(holder)
        if held is not None and held.scope != scope:
            self.cut(holder, 0)
            held = None
        if length == 0:
            return
        if held is None:
            root = self._roots.setdefault(scope, _Node())
            root.holders[holder] = None
            held = self._held[holder] = _Held(scope, [root])
        assert len(held.tokens) <= length <= len(tokens)
        held.tokens += tokens[len(held.tokens) : length]
        for end in range(len(held.path) * BLOCK_TOKENS, length + 1, BLOCK_TOKENS):
            block = tuple(held.tokens[end - BLOCK_TOKENS : end])
            node = held.path[-1].children.setdefault(block, _Node(block))
            node.holders[holder] = None
            held.path.append(node)

    def copy(self, source: HolderT, target: HolderT) -> None:
        """Note that one holds what another does, and nothing else."""
        held = self._held[source]
        self.cut(target, 0)
        self.hold(target, held.scope, held.tokens, len(held.tokens))

    def cut(self, holder: HolderT, length: int) -> None:
        """Note that of what one holds only the first `length` tokens are still there, if so many were."""
        held = self._held.get(holder)
        if held is None:
            return
        del held.tokens[length:]
        while len(held.path) - 1 > length // BLOCK_TOKENS:
            node = held.path.pop()
            del node.holders[holder]
            if not node.holders:
                del held.path[-1].children[node.block]
        if length == 0:
            root = held.path.pop()
            del root.holders[holder], self._held[holder]
            if not root.holders:
                del self._roots[held.scope]

    def longest(self, scope: Hashable, tokens: Sequence[int], prefer: HolderT | None = None) -> Shared[HolderT] | None:
        """Who holds the longest beginning of a text.

        Args:
            scope: among whom.
            tokens: the text, or as much of it as is of use.
            prefer: whom to name where several hold as much; else who has come so far first.

        Returns:
            None if nobody holds its first token.
        """
        node = self._roots.get(scope)
        if node is None:
            return None
        depth = 0
        while (child := node.children.get(tuple(tokens[depth : depth + BLOCK_TOKENS]))) is not None:
            node = child
            depth += BLOCK_TOKENS
        rest = tokens[depth : depth + BLOCK_TOKENS]
        best: Shared[HolderT] | None = None
        for holder in node.holders:
            theirs = self._held[holder].tokens[depth : depth + BLOCK_TOKENS]
            length = depth + common_length(theirs, rest)
            if best is None or length > best.tokens or (length == best.tokens and holder == prefer):
                best = Shared(holder, length)
        return best if best is not None and best.tokens else None


def common_length(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """The length of what two sequences begin with."""
    shorter = min(len(ours), len(theirs))
    if ours[:shorter] == theirs[:shorter]:
        return shorter
    return next(place for place in range(shorter) if ours[place] != theirs[place])
