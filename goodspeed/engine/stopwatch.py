"""How long the device is at something that is only queued: to wait for the end of it would leave the device idle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Stopwatch"]


class Stopwatch:
    """Times what is done between two calls, again and again.

    Args:
        device: where it is done.
        clock: seconds; what is done on a CPU is over when the call returns, and is timed by this.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self._device = device
        self._clock = clock
        self._events: list[torch.cuda.Event] = []
        if device.type == "cuda":
            event: Any = torch.cuda.Event
            self._events = [event(enable_timing=True) for _ in range(2)]
        self._times_s = [0.0, 0.0]

    def start(self) -> None:
        """It begins here."""
        self._mark(0)

    def stop(self) -> None:
        """It has been queued; on a CPU it is over."""
        self._mark(1)

    def seconds(self) -> float:
        """How long it took; waits until it is over."""
        if self._events:
            begun, over = self._events
            over.synchronize()
            took_ms: float = begun.elapsed_time(over)
            return took_ms / 1e3
        return self._times_s[1] - self._times_s[0]

    def _mark(self, end: int) -> None:
        if self._events:
            self._events[end].record(torch.cuda.current_stream(self._device))
        else:
            self._times_s[end] = self._clock()
