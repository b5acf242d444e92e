"""How long passes take, measured on the engine at start-up; that also warms the engine up."""

from __future__ import annotations

import itertools

from goodspeed.engine import Engine, Segment
from goodspeed.timing import PassSample

__all__ = ["measure_passes"]

_CONTEXT = 64
_REPETITIONS = 5
_ROW_TOKENS = (1, 5)
"""A decoding step, and the verification of a draft of four."""


def measure_passes(engine: Engine) -> list[PassSample]:
    """Time passes of a few sizes, decoding steps and verifications; no stream may be open.

    Returns:
        Busy time, each row with a context of some tens of tokens.
    """
    sizes = sorted({1, 2, 4, 8, 16, 32, engine.rows} & set(range(1, engine.rows + 1)))
    clock = engine.busy_clock
    rows = [engine.allocate() for _ in range(sizes[-1])]
    # What is attended to does not matter for the time it takes, so that nothing has to be cached first.
    context = max(0, min(_CONTEXT, engine.max_length - max(_ROW_TOKENS)))
    measured = []
    try:
        for size, tokens in itertools.product(sizes, (n for n in _ROW_TOKENS if context + n <= engine.max_length)):
            step = [Segment(row, context, [0] * tokens, tokens) for row in rows[:size]]
            times_s = []
            for _ in range(_REPETITIONS):
                started = clock()
                engine.forward(step).argmax(-1).tolist()
                times_s.append(clock() - started)
            # The quickest, since the first ones warm up: what is compared with this shall not look better for it.
            measured.append(PassSample(size, size * tokens, min(times_s)))
    finally:
        for row in rows:
            engine.release(row)
    return measured
