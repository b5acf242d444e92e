"""In which precision a CPU runs a model: some multiply bfloat16 in hardware, others take many times as long for it."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

__all__ = ["precision_on_cpu", "quicker"]

logger = logging.getLogger(__name__)

_WORTH = 0.7
"""What bfloat16 has to take at most, of float32's time: clear enough that each start of a server finds the same."""
_LARGE = 2**28
"""Float32 weights of so many bytes. A smaller model gains little, and its texts are the same on every machine."""
_ELEMENTS = 2**24
"""Of the matrix that is tried, at most."""
_TOKENS = 16
_TURNS = 5


def precision_on_cpu(config: PretrainedConfig) -> torch.dtype:
    """What a model is to be run in: float32, or bfloat16 if it is large, was stored in that, and is much quicker so.

    Args:
        config: the model's.
    """
    text: Any = config.get_text_config()
    hidden, inner, layers = (
        getattr(text, name, None) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    stored = getattr(config, "dtype", None) or getattr(text, "dtype", None)
    if stored != torch.bfloat16 or not (hidden and inner and layers) or 12 * layers * hidden * inner < _LARGE:
        return torch.float32
    weight = torch.randn(min(inner, max(1, _ELEMENTS // hidden)), hidden)
    tokens = torch.randn(_TOKENS, hidden)
    halves = weight.bfloat16(), tokens.bfloat16()
    return quicker(lambda: F.linear(tokens, weight), lambda: F.linear(halves[1], halves[0]))


def quicker(
    float32: Callable[[], object], bfloat16: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> torch.dtype:
    """The precision to run in, by what something takes in each; float32 unless the other is clearly the quicker.

    Args:
        float32: does it in that.
        bfloat16: does it in that.
        clock: seconds.
    """
    times_s: tuple[list[float], list[float]] = ([], [])
    for turn in range(-1, _TURNS):
        for way, run in enumerate((float32, bfloat16)):
            begun_s = clock()
            run()
            if turn >= 0:  # the first one warms up
                times_s[way].append(clock() - begun_s)
    whole_s, half_s = map(statistics.median, times_s)
    chosen = torch.bfloat16 if half_s <= _WORTH * whole_s else torch.float32
    logger.info("a product takes %.2f ms in float32, %.2f in bfloat16: %s", 1e3 * whole_s, 1e3 * half_s, chosen)
    return chosen
