"""How many threads suit a model on this machine: measured, since neither cores nor their number say it."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

__all__ = ["candidates", "contenders", "quickest", "timed", "usable_cores"]

_ROUNDS = 7
_LONGEST_S = 2.0
"""A large model on a slow machine is measured in fewer rounds."""
_WORTH = 0.05
"""More threads have to save this share of a token's time: there are others who can use them."""
_HOPELESS = 2.0
"""Who takes so many times as long as another is not measured more closely."""


def usable_cores() -> int:
    """Physical cores, as far as this process may use them; the logical ones where nobody can tell which those are."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        import psutil
    except ImportError:
        return allowed
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def candidates(cores: int) -> list[int]:
    """What to try: powers of two, and all cores."""
    return [*(2**power for power in range((cores - 1).bit_length())), cores]


def contenders(
    step: Callable[[int], object], counts: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> list[int]:
    """The numbers of threads that are worth measuring, found in a few steps, so that a large model is not run for long.

    From the most downwards, until one takes so long that fewer would only take longer.

    Args:
        step: does what is measured with so many threads.
        counts: the numbers of threads, at least one.
        clock: seconds.
    """
    kept: list[int] = []
    least_s = math.inf
    for count in sorted(counts, reverse=True):
        step(count)  # The first is slower.
        began_s = clock()
        step(count)
        took_s = clock() - began_s
        if took_s >= _HOPELESS * least_s:
            break
        kept.insert(0, count)
        least_s = min(least_s, took_s)
    return kept


def timed(
    step: Callable[[int], object], counts: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> dict[int, list[float]]:
    """How many seconds a step takes with each number of threads, several times over, in turns.

    Args:
        step: does what is measured with so many threads.
        counts: the numbers of threads.
        clock: seconds.
    """
    timings: dict[int, list[float]] = {count: [] for count in counts}
    for count in counts:
        step(count)  # The first is slower: threads start, memory is touched.
    began_s = clock()
    for _ in range(_ROUNDS):
        for count in counts:
            step_began_s = clock()
            step(count)
            timings[count].append(clock() - step_began_s)
        if clock() - began_s > _LONGEST_S:
            break
    return timings


def quickest(timings: Mapping[int, Sequence[float]]) -> int:
    """The fewest threads with which the median step takes hardly longer than with any other number of them.

    Args:
        timings: seconds, by the number of threads.
    """
    medians_s = {count: statistics.median(steps_s) for count, steps_s in timings.items()}
    enough_s = min(medians_s.values()) / (1.0 - _WORTH)
    return min(count for count, median_s in medians_s.items() if median_s <= enough_s)
