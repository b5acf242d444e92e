"""An engine without a model: its passes take as long as it is told, and leave the processor alone meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bench.links.text import VOCAB, token_after
from goodspeed.engine import Engine, Segment
from goodspeed.engine.slab import Slab

__all__ = ["SyntheticEngine"]


class SyntheticEngine(Engine):
    """The real engine's rows and checks, and a pass that waits as one does for a GPU, without the interpreter's lock.

    Args:
        pass_s: how long a pass takes,
        token_s: and how much longer for each token in it.
        rows: as the engine's, and so is `max_length`.
        _model: there is no need of it, nor of what else an engine wants to know.
    """

    def __init__(
        self, _model: object, *, pass_s: float, token_s: float, rows: int, max_length: int, **_rest: Any
    ) -> None:
        self.vocab_size = VOCAB
        self.layout = "packed"
        self.device = torch.device("cpu")
        self._slab = Slab(rows, max_length)
        self._written, self._inherited = {}, set()
        self._pass_s = pass_s
        self._token_s = token_s

    @property
    def busy_clock(self) -> Callable[[], float]:
        """Wall time: the thread that waits uses no other."""
        return time.perf_counter

    def _run(self, segments: Sequence[Segment]) -> Tensor:
        time.sleep(self._pass_s + self._token_s * sum(segment.new for segment in segments))
        said = [token_after(token) for segment in segments for token in segment.tokens[segment.new - segment.logits :]]
        return one_hot(torch.tensor(said, dtype=torch.int64), VOCAB).float()  # [sum of `logits`, vocab]
