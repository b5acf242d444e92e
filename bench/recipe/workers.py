"""Data-parallel gradients in threads of one process.

Each thread works through micro-batches of its own with single-threaded operations. Threads inside an operation would
meet at a barrier thousands of times a step, and on a busy machine each barrier waits for the slowest.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """A fixed number of threads that share one model."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(1)
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Applies `function` to all items, in order."""
        return list(self._pool.map(function, items))

    def backward(self, model: nn.Module, loss_of: Callable[[T], torch.Tensor], batch: Sequence[T]) -> float:
        """Fills every parameter's gradient with that of the mean loss over equal micro-batches; returns that loss."""
        parameters = list(model.parameters())

        def gradients(part: T) -> tuple[float, tuple[torch.Tensor, ...]]:
            loss = loss_of(part)
            return loss.item(), torch.autograd.grad(loss, parameters)

        results = self.map(gradients, batch)
        for parameter, *parts in zip(parameters, *(part for _, part in results), strict=True):
            parameter.grad = torch.stack(parts).mean(0)
        return sum(loss for loss, _ in results) / len(results)
