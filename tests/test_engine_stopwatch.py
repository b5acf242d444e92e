from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from goodspeed.engine.stopwatch import Stopwatch


def test_on_a_cpu_it_is_read_from_the_clock() -> None:
    clock = itertools.count()
    watch = Stopwatch(torch.device("cpu"), lambda: float(next(clock)))
    for _ in range(2):
        watch.start()
        watch.stop()
        next(clock)
        assert watch.seconds() == 1.0


def test_on_a_gpu_it_is_the_device_that_marks_the_ends_and_nobody_waits_until_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Events stand in a stream, behind what was queued before them."""
    done: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self._name = ""

        def record(self, stream: Any) -> None:
            self._name = f"event of {stream}"
            done.append(self._name)

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, end: Event) -> float:
            assert self is not end
            return 1500.0

    device = torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: f"stream of {where}")
    watch = Stopwatch(device, lambda: pytest.fail("the host's clock says nothing of a device"))
    watch.start()
    done.append("launches")
    watch.stop()
    assert done == ["event of stream of cuda:3", "launches", "event of stream of cuda:3"]
    assert watch.seconds() == 1.5
    assert done[3:] == ["wait"]
