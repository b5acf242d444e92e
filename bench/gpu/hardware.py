"""What the device can do at best: how fast it copies, and how fast it multiplies."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bench.gpu.targets import Weights
from goodspeed.engine import Segment

__all__ = ["Hardware", "synchronise"]

_COPIES_BYTES = {"cuda": 2**31, "cpu": 2**25}
_MATRIX_SIZE = {"cuda": 8192, "cpu": 512}
_TRIES = 5
_RUNS = 5


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class Hardware:
    """Measured on the device itself, the best of some tries: a floor should be one."""

    name: str
    memory_bytes: int
    """All that was free at the start."""
    copy_bytes_per_s: float
    """Read and written bytes both count."""
    operations_per_s: float
    """Of a large matrix product in the type of the weights; a multiplication and an addition are two."""

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype, free_bytes: int) -> Hardware:
        """Run a copy and a matrix product."""
        size = _COPIES_BYTES[device.type]
        source = torch.ones(size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copy_s = _best_s(lambda: target.copy_(source), device)
        n = _MATRIX_SIZE[device.type]
        left, right = torch.randn(2, n, n, device=device, dtype=torch.float32).to(dtype)
        product = torch.empty_like(left)
        matrix_s = _best_s(lambda: torch.matmul(left, right, out=product), device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
        return cls(name, free_bytes, 2 * size / copy_s, 2 * n**3 / matrix_s)

    def floor_s(self, weights: Weights, segments: Sequence[Segment], kv_bytes_per_token: int) -> tuple[float, float]:
        """The least that a forward pass could take.

        Returns:
            By the bytes that it reads, weights and cache; and by its operations. It takes the larger one at least.
        """
        cached = sum(segment.end for segment in segments)
        read = weights.bytes + cached * kv_bytes_per_token
        operations = (
            2 * weights.body * sum(segment.new for segment in segments)
            + 2 * weights.head * sum(segment.logits for segment in segments)
            + weights.attention_operations * sum(segment.new * segment.end for segment in segments)
        )
        return read / self.copy_bytes_per_s, operations / self.operations_per_s


def _best_s(run: Callable[[], object], device: torch.device) -> float:
    run()
    times_s = []
    for _ in range(_TRIES):
        synchronise(device)
        begun_s = time.perf_counter()
        for _ in range(_RUNS):
            run()
        synchronise(device)
        times_s.append((time.perf_counter() - begun_s) / _RUNS)
    return min(times_s)
