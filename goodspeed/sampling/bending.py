"""Penalties and biases: what a user adds to the logits before anything is drawn.

They change the distribution that is to be kept, so both sides bend by the same rule: a server each row of a draft by
the tokens before that row, an agent its own logits, so that what it guesses has a chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from goodspeed.sampling.parameters import SamplingParams

__all__ = ["bend"]


def bend(logits: Tensor, params: SamplingParams, generated: Sequence[int], drafted: Sequence[int]) -> None:
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
        tokens = torch.tensor([token for token, _ in params.logit_bias], device=logits.device)
        logits[:, tokens] += torch.tensor([bias for _, bias in params.logit_bias], device=logits.device)
    if not params.penalised or not (generated or drafted):
        return
    seen, counts = np.unique(np.asarray(generated, dtype=np.int64), return_counts=True)
    distinct = np.union1d(seen, np.asarray(drafted, dtype=np.int64))
    times = np.zeros((len(logits), len(distinct)), dtype=np.int64)  # [S + 1, distinct]
    times[:, np.searchsorted(distinct, seen)] = counts
    for row, place in enumerate(np.searchsorted(distinct, drafted), 1):
        times[row:, place] += 1
    penalty = params.frequency_penalty * times + params.presence_penalty * (times > 0)
    logits[:, torch.from_numpy(distinct).to(logits.device)] -= torch.from_numpy(penalty).to(logits)
