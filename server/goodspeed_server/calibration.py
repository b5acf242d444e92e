"""How long plain decoding takes, measured on the engine at start-up; that also warms the engine up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from goodspeed_server.engine import Engine, Segment

__all__ = ["busy_clock", "measure_plain_pass", "plain_pass_s"]

_CONTEXT = 64
_REPETITIONS = 5


def busy_clock(device: torch.device) -> Callable[[], float]:
    """The clock that busy time is read from, by the thread that is busy, seconds.

    On a CPU it is the thread's own processor time: what other programs on the machine take is not the engine's work.
    """
    return time.thread_time if device.type == "cpu" else time.perf_counter


def measure_plain_pass(engine: Engine) -> dict[int, float]:
    """Time one decoding step at a few batch sizes; no stream may be open.

    Returns:
        Busy seconds by number of rows, each with a context of some tens of tokens.
    """
    sizes = sorted({1, 2, 4, 8, 16, 32, engine.rows} & set(range(1, engine.rows + 1)))
    clock = busy_clock(engine.device)
    rows = [engine.allocate() for _ in range(sizes[-1])]
    # What is attended to does not matter for the time it takes, so that nothing has to be cached first.
    context = min(_CONTEXT, engine.max_length - 1)
    measured = {}
    try:
        for size in sizes:
            step = [Segment(row, context, [0], 1) for row in rows[:size]]
            times_s = []
            for _ in range(_REPETITIONS):
                started = clock()
                engine.forward(step).argmax(-1).tolist()
                times_s.append(clock() - started)
            # The quickest, since the first ones warm up: what is compared with this shall not look better for it.
            measured[size] = min(times_s)
    finally:
        for row in rows:
            engine.release(row)
    return measured


def plain_pass_s(measured: Mapping[int, float], rows: int) -> float:
    """Interpolate the time of one plain decoding step over `rows` rows."""
    return float(np.interp(rows, list(measured), list(measured.values())))
