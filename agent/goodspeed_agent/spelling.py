"""From tokens to text, as a user hears of it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from goodspeed.logprobs import TokenLogprobs
from goodspeed_agent.generation import Generation
from goodspeed_agent.report import Completion, Origin
from goodspeed_agent.text import TextStream

__all__ = ["OnText", "Piece", "spell"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """What has come of a text."""

    text: str
    """That is certain; may be empty."""
    tokens: Sequence[int]
    """That were committed; there may be none, and their text may come later."""
    parts: Sequence[str] = ()
    """The text again, as it became certain with each of the tokens."""
    origins: Sequence[Origin] = ()
    """Of the tokens."""
    logprobs: Sequence[TokenLogprobs | None] = ()
    """Of the tokens, where they were asked for."""
    draft: str | None = None
    """As in `Completion`."""


OnText = Callable[[Piece], None]


async def spell(
    generation: Generation,
    coming: AsyncGenerator[list[int], None],
    decode: Callable[[Sequence[int]], str],
    stop: Sequence[str],
    on_text: OnText | None,
    *,
    draft: str | None = None,
) -> Completion:
    """Turn tokens into text as they come, up to a stop string.

    Args:
        generation: whose they are.
        coming: yields them, and is left at a stop string.
        decode: tokens to text.
        stop: the text ends before the first of these.
        on_text: called as the text comes.
        draft: which draft writes it alone; None where a server verifies it.

    Raises:
        Exception: whatever `coming` raises.
    """
    began_s, prompt = time.monotonic(), generation.request.prompt
    text = TextStream(decode, stop, prompt=prompt)
    pieces: list[str] = []
    parts: list[str] = []

    def take(new: list[str], tokens: list[int]) -> None:
        piece = "".join(new)
        pieces.append(piece)
        parts.extend(new[: len(tokens)])
        if on_text is not None:
            these = slice(len(text.tokens) - len(tokens), len(text.tokens))
            on_text(Piece(piece, tokens, new, generation.origins[these], generation.logprobs[these], draft))

    async with aclosing(coming):
        async for tokens in coming:
            taken = len(text.tokens)
            new = []
            for token in tokens:
                new.append(text.push(token))
                if text.stopped:
                    break
            take(new, text.tokens[taken:])
            if text.stopped:
                break
    take([text.finish()], [])
    finish = "stop" if text.stopped else generation.transcript.finish
    assert finish is not None
    _log.info(
        "a text ends (%s): prompt %d tokens, text %d tokens in %.2f s%s",
        finish, len(prompt), len(text.tokens), time.monotonic() - began_s, "" if draft is None else ", unverified",
    )  # fmt: skip
    return Completion(
        "".join(pieces), text.tokens, finish, generation.transcript.prompt_tokens, generation.speculation,
        generation.logprobs[: len(text.tokens)], parts, draft,
    )  # fmt: skip
