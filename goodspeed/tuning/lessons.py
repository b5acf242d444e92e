"""Passages as batches: rows of equal length, and both models' distributions over the same few outcomes.

A target's distribution is known for its `k` likeliest tokens. Whatever is left is one more outcome, for the draft as
for the target: every distance between the two is then a lower bound of the true one, and no probability is made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from goodspeed.tuning.objectives import LOG_FLOOR, acceptance
from goodspeed.tuning.passages import Passage

__all__ = ["Lesson", "Row", "accepted", "coarse", "coarse_log_p", "coarse_log_q", "collate", "cut"]

_TINY = 1e-9
_NONE = -1
"""In place of a token that is none."""


@dataclass(frozen=True, slots=True)
class Row:
    """A window of a passage that holds some of its distributions."""

    passage: Passage
    begin: int
    """The first token it holds."""
    first: int
    """The first token it asks about; those before it are context, or an earlier window's."""
    end: int
    """One past the last."""

    @property
    def client(self) -> str:
        """Whose text it is."""
        return self.passage.client


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch of rows; position `t` is about the token at `t + 1`."""

    tokens: Tensor
    """int64 [rows, length]; rows are padded on the right."""
    known: Tensor
    """bool [rows, length - 1]: where the target's distribution is known."""
    support: Tensor
    """int64 [rows, length - 1, k]; -1 for no token, where a passage's distributions are narrower than others'."""
    log_p: Tensor
    """float32 [rows, length - 1, k]; 0 where nothing is known."""
    clients: tuple[str, ...]
    """Whose each row is."""

    def to(self, device: torch.device) -> Lesson:
        """The same on another device."""
        tokens, known, support, log_p = (
            part.to(device) for part in (self.tokens, self.known, self.support, self.log_p)
        )
        return Lesson(tokens, known, support, log_p, self.clients)


def cut(passages: Sequence[Passage], length: int) -> list[Row]:
    """Cut passages into windows of at most `length` tokens that cover every known position once.

    A window begins as early as it may, so that its distributions are read with what came before them: where there is so
    much, half a window of it.
    """
    assert length >= 2
    rows = []
    for passage in passages:
        first, last = passage.start, passage.start + passage.known
        end = min(last, max(length, first + length // 2))
        while first < last:
            rows.append(Row(passage, max(0, end - length), first, end))
            first, end = end, min(last, end + length // 2)
    return rows


def collate(rows: Sequence[Row]) -> Lesson:
    """Lay rows out as a batch."""
    length = max(row.end - row.begin for row in rows)
    width = max(row.passage.support.shape[1] for row in rows)
    tokens = np.zeros((len(rows), length), np.int64)
    known = np.zeros((len(rows), length - 1), np.bool_)
    support = np.full((len(rows), length - 1, width), _NONE, np.int64)
    log_p = np.zeros((len(rows), length - 1, width), np.float32)
    for place, row in enumerate(rows):
        passage = row.passage
        count = row.end - row.begin
        tokens[place, :count] = passage.tokens[row.begin : row.end]
        at = slice(row.first - 1 - row.begin, row.end - 1 - row.begin)
        source = slice(row.first - passage.start, row.end - passage.start)
        size = passage.support.shape[1]
        known[place, at] = True
        support[place, at, :size] = passage.support[source]
        log_p[place, at, :size] = passage.log_p[source]
        # A narrower passage's missing outcomes are none, not certainties.
        log_p[place, at, size:] = LOG_FLOOR
    return Lesson(
        torch.from_numpy(tokens),
        torch.from_numpy(known),
        torch.from_numpy(support),
        torch.from_numpy(log_p),
        tuple(row.client for row in rows),
    )


def coarse(lesson: Lesson, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Both models' log-probabilities at the known positions.

    Args:
        lesson: says where they are, and what the target thinks.
        logits: of the draft, [rows, length - 1, vocab].

    Returns:
        The target's and the draft's, each [known positions, k + 1].
    """
    known = lesson.known
    return coarse_log_p(lesson.log_p[known]), coarse_log_q(logits[known], lesson.support[known])


def accepted(lesson: Lesson, log_p: Tensor, log_q: Tensor) -> Tensor:
    """The acceptance rate of what `coarse` gave, back at its positions and 0 elsewhere: [rows, length - 1]."""
    rates = torch.zeros(lesson.known.shape, dtype=log_q.dtype, device=log_q.device)
    rates[lesson.known] = acceptance(log_p, log_q)
    return rates


def coarse_log_p(log_p: Tensor) -> Tensor:
    """The target over its likeliest tokens and the rest: [..., k] to [..., k + 1], floored and summing to one."""
    return _with_rest(log_p.clamp_min(LOG_FLOOR))


def coarse_log_q(logits: Tensor, support: Tensor) -> Tensor:
    """The draft over the same outcomes.

    Args:
        logits: of the draft, [..., vocab].
        support: int64 [..., k], different tokens; negative where there is none.

    Returns:
        float32 or wider, [..., k + 1].
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    chosen = logits.gather(-1, support.clamp_min(0)) - logits.logsumexp(-1, keepdim=True)
    chosen = chosen.masked_fill(support < 0, LOG_FLOOR)
    return _with_rest(chosen.clamp_min(LOG_FLOOR))


def _with_rest(log_probs: Tensor) -> Tensor:
    rest = (1.0 - log_probs.exp().sum(-1, keepdim=True)).clamp_min(_TINY).log()
    return torch.cat([log_probs, rest], dim=-1)
