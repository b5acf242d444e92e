"""Never worse than no speculation: a grid over acceptance, draft speed, round trip and load.

All streams of a cell are alike. Central decoding serves them all in every pass, a token each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from bench.simulated.worlds import ENGINE
from goodspeed.scheduling import SecondsSched
from goodspeed.simulation import Agent, simulate

__all__ = ["AXES", "QUICK", "Axes", "Cell", "figures", "walk"]


@dataclass(frozen=True, slots=True)
class Axes:
    """What is crossed with what."""

    alpha: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
    draft_ms: Sequence[float] = (1.0, 5.0, 20.0, 50.0)
    round_trip_ms: Sequence[float] = (0.0, 20.0, 100.0, 300.0)
    streams: Sequence[int] = (1, 2, 32)


AXES = Axes()
QUICK = Axes(alpha=(0.1, 0.5, 0.95), draft_ms=(1.0, 50.0), round_trip_ms=(0.0, 100.0, 300.0), streams=(1, 32))


@dataclass(frozen=True, slots=True)
class Cell:
    """One world, and how it went."""

    streams: int
    alpha: float
    draft_ms: float
    round_trip_ms: float
    ratio: float
    """Geometric mean of the goodputs over central decoding's rate."""


def walk(axes: Axes, duration_s: float) -> list[Cell]:
    """Run every cell."""
    return [
        Cell(*cell, ratio=_ratio(*cell, duration_s=duration_s))
        for cell in itertools.product(axes.streams, axes.alpha, axes.draft_ms, axes.round_trip_ms)
    ]


def _ratio(streams: int, alpha: float, draft_ms: float, round_trip_ms: float, *, duration_s: float) -> float:
    agent = Agent(draft_ms / 1e3, round_trip_ms / 2e3, alpha)
    run = simulate([agent] * streams, ENGINE, SecondsSched(), rounds="rolling", duration_s=duration_s, seed=1)
    return run.geometric_mean * ENGINE.seconds(streams, streams)


def figures(cells: Sequence[Cell]) -> dict[str, object]:
    """Everything that is worth keeping."""
    ratios = np.array([cell.ratio for cell in cells])
    return {
        "cells": len(cells),
        "worst": asdict(min(cells, key=lambda cell: cell.ratio)),
        "below_0.98": int((ratios < 0.98).sum()),
        "median": float(np.median(ratios)),
        "best": float(ratios.max()),
        "all": [asdict(cell) for cell in cells],
    }
