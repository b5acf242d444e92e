"""Passes are timed once for each shape of engine, not at every server's start, of which that would be the most."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from goodspeed.engine import Engine
from goodspeed.timing import PassSample
from goodspeed_server.calibration import measure_passes

__all__ = ["measured_once"]

_PASSES: dict[tuple[type[Engine], int, int, str], list[PassSample]] = {}


@contextlib.contextmanager
def measured_once() -> Iterator[None]:
    """Servers of one model that are made meanwhile share what was measured, if rows, lengths and layout are alike."""
    with mock.patch("goodspeed_server.target.measure_passes", _passes):
        yield


def _passes(engine: Engine) -> list[PassSample]:
    shape = type(engine), engine.rows, engine.max_length, engine.layout
    if shape not in _PASSES:
        _PASSES[shape] = measure_passes(engine)
    return list(_PASSES[shape])
