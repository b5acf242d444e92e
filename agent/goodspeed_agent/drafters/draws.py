"""How a draft model draws its next token, for one row, quickly.

`sampling.warping` is exact over whole vocabularies and made for batches. A draft need not be exact, only likely, and
beside a tiny model's forward pass a few dozen operations on a whole vocabulary would double the cost of a token: so the
likeliest tokens are taken out once, and the rest is arithmetic on a few numbers. All of it is numpy, so that a model
needs no torch to be drawn from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from goodspeed.rules import Coupled, rule_named
from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule
from goodspeed_agent.drafters.interface import Guess

__all__ = ["Draw", "likeliest", "make_draw"]

Logits: TypeAlias = NDArray[np.float32]

Draw: TypeAlias = Callable[[Logits, int], Guess]
"""Draws the token of a position from float32 [vocab] logits."""

_SAMPLED = 16
"""One in so many logits tells about where the likeliest begin."""
_TINY = float(np.finfo(np.float32).tiny)
_HOTTEST = float(np.finfo(np.float32).max)


def make_draw(params: SamplingParams, rule: Rule) -> Draw:
    """The way to draw that agrees best with the target.

    Args:
        params: of the stream.
        rule: the server's.
    """

    def greedy(logits: Logits, position: int) -> Guess:
        token = int(logits.argmax())
        return Guess(token, _probability(logits, token))

    def drawn(logits: Logits, position: int) -> Guess:
        tokens, p = likeliest(logits, params, known.candidates)
        token, evidence = known.draw(tokens, p, params.seed, position)
        confidence = _probability(logits, int(tokens[0])) if params.greedy else float(1.0 / p.sum())
        return Guess(token, confidence, evidence)

    known = rule_named(rule)
    return greedy if params.greedy and type(known) is Coupled else drawn


def _probability(logits: Logits, likeliest: int) -> float:
    """What the model itself gives its likeliest token, at temperature 1."""
    return float(1.0 / np.exp(logits - logits[likeliest]).sum())


def likeliest(logits: Logits, params: SamplingParams, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The likeliest tokens that may be drawn, and how likely they are relative to the first.

    Args:
        logits: float32 [vocab].
        params: temperature, top-k, top-p and min-p.
        count: how many at most.

    Returns:
        [n] token ids, the likeliest first, and [n] positive weights, the first of them 1.
    """
    if params.greedy:
        return logits.argmax(-1, keepdims=True), np.ones(1, dtype=np.float32)
    top, ids = _top(logits, max(count, params.top_k))
    temperature = np.float32(min(params.temperature, _HOTTEST))
    weights = np.exp((top - top[0]) / temperature)
    if params.top_k:
        weights = weights[: params.top_k]
    kept = int(np.count_nonzero(weights >= max(params.min_p, _TINY)))
    if params.top_p < 1.0:
        mass = weights.sum() if params.top_k else np.exp((logits - top[0]) / temperature).sum()
        kept = min(kept, int(np.count_nonzero(weights.cumsum() - weights < params.top_p * mass)))
    kept = max(1, min(kept, count))
    return ids[:kept], weights[:kept]


def _top(logits: Logits, count: int) -> tuple[Logits, NDArray[np.int64]]:
    """The largest logits in descending order, and whose they are: `count` of them, or all there are."""
    ids = _candidates(logits, count)
    top = logits[ids]
    order = np.argsort(-top)[:count]
    return top[order], ids[order]


def _candidates(logits: Logits, count: int) -> NDArray[np.int64]:
    """Tokens among which are the `count` largest logits, and not many more.

    Of a large vocabulary a sample says where they are to be sought; where it misleads, all of them are looked at.
    """
    size = len(logits)
    if count >= size:
        return np.arange(size)
    sample = logits[::_SAMPLED]
    rank = 3 * count // (2 * _SAMPLED) + 8
    if rank < len(sample) // 2:
        found = np.flatnonzero(logits >= np.partition(sample, -rank)[-rank])
        if len(found) >= count:
            return found
    return np.argpartition(logits, size - count)[size - count :]
