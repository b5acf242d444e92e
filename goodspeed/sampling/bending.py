"""Penalties and biases: what a user adds to the logits before anything is drawn.

They change the distribution that is to be kept, so both sides bend by the same rule: a server each row of a draft by
the tokens before that row, an agent its own logits, so that what it guesses has a chance. An agent may have no torch:
logits are of either kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from goodspeed.sampling.parameters import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["bend"]


def bend(
    logits: Tensor | NDArray[np.float32], params: SamplingParams, generated: Sequence[int], drafted: Sequence[int]
) -> None:
    """Add a stream's biases and take off its penalties, in place.

    As in OpenAI's API, a token that was generated `c` times loses `frequency_penalty c + presence_penalty [c > 0]`.
    What a row loses does not depend on how much of it was drafted, to the last bit: neither does the text.

    Args:
        logits: float32 [S + 1, vocab], at every drafted position and one past.
        params: of the stream.
        generated: the tokens behind the prompt, those that are drafted not among them.
        drafted: S tokens.
    """
    assert len(logits) == len(drafted) + 1
    if params.logit_bias:
        tokens, biases = zip(*params.logit_bias, strict=True)
        _add(logits, np.array(tokens), np.array(biases))
    if not params.penalised or not (generated or drafted):
        return
    seen, counts = np.unique(np.asarray(generated, dtype=np.int64), return_counts=True)
    distinct = np.union1d(seen, np.asarray(drafted, dtype=np.int64))
    times = np.zeros((len(logits), len(distinct)), dtype=np.int64)  # [S + 1, distinct]
    times[:, np.searchsorted(distinct, seen)] = counts
    for row, place in enumerate(np.searchsorted(distinct, drafted), 1):
        times[row:, place] += 1
    _add(logits, distinct, -(params.frequency_penalty * times + params.presence_penalty * (times > 0)))


def _add(logits: Tensor | NDArray[np.float32], tokens: NDArray[np.int64], amounts: NDArray[np.float64]) -> None:
    """Add float64 [tokens] or [S + 1, tokens] to some tokens' logits, each amount rounded to float32 first."""
    if isinstance(logits, np.ndarray):
        logits[:, tokens] += amounts.astype(np.float32)
    else:
        import torch

        logits[:, torch.from_numpy(tokens).to(logits.device)] += torch.from_numpy(amounts).to(logits)
