"""The texts that are written: each token is the one before it plus one, so both sides know what is right.

Whoever drafts draws whether a token is right, and is accepted as often as it likes; and what the target says costs next
to nothing.
"""

from __future__ import annotations

__all__ = ["VOCAB", "token_after"]

VOCAB = 64


def token_after(token: int, places: int = 1) -> int:
    """The token so many places behind another."""
    return (token + places) % VOCAB
