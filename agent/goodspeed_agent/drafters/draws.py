"""How a draft model draws its next token, for one row, quickly.

`sampling.warping` is exact over whole vocabularies and made for batches. A draft need not be exact, only likely, and
beside a tiny model's forward pass a few dozen tensor operations would double the cost of a token: so the likeliest
tokens are taken out once, and the rest is arithmetic on a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from goodspeed.rules import Coupled, rule_named
from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule
from goodspeed_agent.drafters.interface import Guess

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Draw", "likeliest", "make_draw"]

Draw: TypeAlias = "Callable[[Tensor, int], Guess]"
"""Draws the token of a position from float32 [vocab] logits."""

_TINY = float(np.finfo(np.float32).tiny)


def make_draw(params: SamplingParams, rule: Rule) -> Draw:
    """The way to draw that agrees best with the target.

    Args:
        params: of the stream.
        rule: the server's.
    """

    def greedy(logits: Tensor, position: int) -> Guess:
        token = int(logits.argmax())
        return Guess(token, _probability(logits, token))

    def drawn(logits: Tensor, position: int) -> Guess:
        tokens, p = likeliest(logits, params, known.candidates)
        token, evidence = known.draw(tokens, p, params.seed, position)
        confidence = _probability(logits, int(tokens[0])) if params.greedy else float(1.0 / p.sum())
        return Guess(token, confidence, evidence)

    known = rule_named(rule)
    return greedy if params.greedy and type(known) is Coupled else drawn


def _probability(logits: Tensor, token: int) -> float:
    """What the model itself gives a token, at temperature 1."""
    return float((logits[token] - logits.logsumexp(-1)).exp())


def likeliest(logits: Tensor, params: SamplingParams, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The likeliest tokens that may be drawn, and how likely they are relative to the first.

    Args:
        logits: float32 [vocab].
        params: temperature, top-k, top-p and min-p.
        count: how many at most.

    Returns:
        [n] token ids, the likeliest first, and [n] positive weights, the first of them 1.
    """
    if params.greedy:
        return logits.argmax(-1, keepdim=True).cpu().numpy(), np.ones(1, dtype=np.float32)
    wanted = min(max(count, params.top_k), logits.shape[-1])
    top, ids = (row.cpu().numpy() for row in logits.topk(wanted))
    weights = np.exp((top - top[0]) / np.float32(params.temperature))
    if params.top_k:
        weights = weights[: params.top_k]
    kept = int(np.count_nonzero(weights >= max(params.min_p, _TINY)))
    if params.top_p < 1.0:
        mass = weights.sum() if params.top_k else ((logits - float(top[0])) / params.temperature).exp().sum().item()
        kept = min(kept, int(np.count_nonzero(weights.cumsum() - weights < params.top_p * mass)))
    kept = max(1, min(kept, count))
    return ids[:kept], weights[:kept]
