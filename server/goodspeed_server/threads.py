"""How many CPU threads the target's passes are quickest with: tried at the start, since cores alone do not say it."""

from __future__ import annotations

import logging
import statistics
from typing import TYPE_CHECKING

import torch

from goodspeed.engine import Engine, Segment
from goodspeed.engine.support import reach
from goodspeed.threads import candidates, contenders, quickest, timed, usable_cores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["use_quickest_threads"]

logger = logging.getLogger(__name__)

_ROWS = 8
_ROW_TOKENS = 5
_LENGTH = 128
"""Of each row after the pass that is tried."""


def use_quickest_threads(model: PreTrainedModel) -> None:
    """Have torch compute with as many threads as a pass of verification is quickest with.

    No more are tried than torch would use by itself: `OMP_NUM_THREADS` stays a limit.

    Args:
        model: the target; what does not run on a CPU is left alone.

    Raises:
        UnsupportedModel: the engine cannot serve this architecture.
    """
    most = min(torch.get_num_threads(), usable_cores())
    if model.device.type != "cpu" or most == 1:
        return
    length = min(_LENGTH, reach(model) or _LENGTH)
    start = max(0, length - _ROW_TOKENS)
    engine = Engine(model, rows=_ROWS, max_length=length, layout="packed", device=model.device, dtype=model.dtype)
    # What is attended to does not matter for the time it takes, so that nothing has to be cached first.
    segments = [Segment(row, start, [0] * (length - start), length - start) for row in range(_ROWS)]

    def step(threads: int) -> None:
        torch.set_num_threads(threads)
        engine.forward(segments)

    timings = timed(step, contenders(step, candidates(most)))
    chosen = quickest(timings)
    torch.set_num_threads(chosen)
    medians = ", ".join(f"{statistics.median(s) * 1e3:.1f} ms with {count}" for count, s in timings.items())
    logger.info("passes run with %d of %d threads: one takes %s", chosen, most, medians)
