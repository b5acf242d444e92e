"""Whether a draft means the same by its tokens as the target, where all there is to compare is a list of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from goodspeed.errors import TokenizerMismatch

__all__ = ["TokenLister", "check_tokens"]

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space; a converter may have undone that in some of the tokens."""


@runtime_checkable
class TokenLister(Protocol):
    """A drafter that has no fingerprint to show, since all it knows of its tokenizer is the tokens."""

    @property
    def tokens(self) -> Sequence[str]:
        """What each id stands for, as the vocabulary spells it; there may be padding behind them."""


def check_tokens(draft: str, tokens: Sequence[str], target: str, wanted: Sequence[str | None]) -> None:
    """See that every token of the target is the same token to the draft.

    A draft is given tokens and gives tokens back: it matters what they stand for, and not how a text is cut into them.

    Args:
        draft: what it is called.
        tokens: what each id stands for there.
        target: what it is called.
        wanted: what each id stands for there; None where it stands for nothing.

    Raises:
        TokenizerMismatch: it is not.
    """
    advice = "choose a GGUF of the target's family, or --draft suffix, which fits every target"
    if len(tokens) < len(wanted):
        raise TokenizerMismatch(
            f"the draft {draft!r} knows {len(tokens)} tokens and {target!r} {len(wanted)}: they share no tokenizer; "
            + advice
        )
    differing = [
        token
        for token, text in enumerate(wanted)
        if text is not None and text.replace(_SPACE, " ") != tokens[token].replace(_SPACE, " ")
    ]
    if differing:
        first = differing[0]
        raise TokenizerMismatch(
            f"the draft {draft!r} does not share a tokenizer with {target!r}: {len(differing)} of {len(wanted)} tokens "
            f"are others, token {first} is {tokens[first]!r} there and {wanted[first]!r} to the target; {advice}"
        )
