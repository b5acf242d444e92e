"""Log-probabilities of committed tokens, as they cross the wire beside a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from goodspeed.errors import ProtocolError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MAX_ALTERNATIVES", "TokenLogprobs", "entry_bytes", "pack_logprobs", "unpack_logprobs"]

MAX_ALTERNATIVES = 20
"""The most that OpenAI's API gives beside a token."""

_LEAST = -9999.0
"""In place of what is less, minus infinity too: what OpenAI writes for a token that cannot be."""
_ROUNDING = 1e-3
_ALTERNATIVE = np.dtype([("token", "<u4"), ("logprob", "<f4")])


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What the target thought where a token was committed, before temperature, penalties and truncation."""

    logprob: float
    """Of the token."""
    alternatives: tuple[tuple[int, float], ...]
    """The likeliest tokens and their log-probabilities, the likeliest first."""


def entry_bytes(alternatives: int) -> int:
    """The size of one token's entry."""
    return 4 + alternatives * _ALTERNATIVE.itemsize


def pack_logprobs(logits: Tensor, tokens: Sequence[int], alternatives: int) -> bytes:
    """Lay entries end to end: the token's own log-probability, then (token, log-probability) of the alternatives.

    Args:
        logits: float32 [n, vocab], where each of the tokens was committed.
        tokens: n of them.
        alternatives: how many; at most the vocabulary.
    """
    log_p = logits.log_softmax(-1)
    own = log_p[range(len(tokens)), list(tokens)].cpu().numpy().astype("<f4")
    top, ids = (part.cpu().numpy() for part in log_p.topk(alternatives, dim=-1))
    entries = np.empty((len(tokens), alternatives), dtype=_ALTERNATIVE)
    entries["token"], entries["logprob"] = ids, top
    return b"".join(own[place : place + 1].tobytes() + entries[place].tobytes() for place in range(len(tokens)))


def unpack_logprobs(packed: bytes, alternatives: int) -> list[TokenLogprobs]:
    """Read what `pack_logprobs` wrote.

    Raises:
        ProtocolError: it is not a whole number of entries, or one of them is no log-probability.
    """
    size = entry_bytes(alternatives)
    if len(packed) % size:
        raise ProtocolError(f"{len(packed)} bytes of log-probabilities: entries have {size}")
    entries = []
    for offset in range(0, len(packed), size):
        own = float(np.frombuffer(packed, "<f4", 1, offset)[0])
        found = np.frombuffer(packed, _ALTERNATIVE, alternatives, offset + 4)
        values = [own, *found["logprob"].tolist()]
        if not all(value <= _ROUNDING for value in values):
            raise ProtocolError("a log-probability is none: it is above 0, or no number")
        own, *others = (max(value, _LEAST) for value in values)
        entries.append(TokenLogprobs(own, tuple(zip(found["token"].tolist(), others, strict=True))))
    return entries
