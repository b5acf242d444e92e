"""Padded passes that are recorded once and replayed: on a GPU one launch in the place of thousands.

```
segments -> Bucket -> static inputs -> replay (a CUDA graph) -> logits where they are wanted
              |                                                       |
              +---- none for it, or eager is faster: eager -----------+
```

What is recorded has fixed shapes and fixed addresses, so that a pass is rounded up to a bucket of lines, new tokens and
cache length, and copied into that bucket's own inputs. Whether that is worth it is measured, bucket by bucket, on the
passes that come: the first of a bucket runs eagerly, the next one captures, times both, and stays with the faster.
Running a pass again changes nothing, since it stores the same keys and values in the same slots.

`torch.compile` is no third way. On a CPU what stands around a packed pass's attention was compiled for any number of
tokens, and took longer than `lean`, whose products are the same and whose other steps are few. On a GPU
it would fuse kernels that a graph has made cheap to launch, which is to be measured before it is built: compiling takes
tens of seconds, and again, in the middle of a round, where a shape is not what was compiled for.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from goodspeed.engine.attention import causal_mask, fold_groups, unfold_groups
from goodspeed.engine.layouts import Segment
from goodspeed.engine.slab import Slab

__all__ = ["Bucket", "Choice", "Graphs", "Recorder", "bucket_of", "recorder_on"]

logger = logging.getLogger(__name__)

Run: TypeAlias = Callable[[], Tensor]

_LARGEST = 512
"""Lines times width: beyond, a forward has so much to compute that its launches are hidden behind it."""
_SHORTEST = 128
"""The least cache length: so few slots cost next to nothing."""
_ASKED = 2
"""How often a bucket is asked for until it is captured."""
_CAPTURING_S = 60.0
"""What all captures of an engine may take: each holds up a round."""
_REPETITIONS = 5


class Recorder(Protocol):
    """What a device has for recording."""

    def record(self, function: Run) -> Run:
        """Record what a function does with tensors; what is returned does the same again, into the same output.

        Raises:
            RuntimeError: the function does what cannot be recorded, or memory lacks.
        """
        ...

    def time_s(self, run: Run) -> float:
        """How long a function takes until its result is there."""
        ...


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape of what is recorded."""

    lines: int
    width: int
    """New tokens of each line."""
    end: int
    """How many slots are attended to."""
    block: bool
    """Whether line `i` is row `i` of the slab, which is then read where it is; otherwise the rows are copied first."""


def bucket_of(segments: Sequence[Segment], rows: int, max_length: int) -> Bucket | None:
    """The smallest bucket that holds some segments.

    Lines and width are rounded up by less than a half, the cache length by less than a quarter.

    Args:
        segments: of one padded batch.
        rows: of the slab.
        max_length: of its rows.

    Returns:
        None if the pass is not for recording: it is large, or a chunk of a prompt, whose logits nobody wants.
    """
    if any(segment.logits == 0 for segment in segments):
        return None
    width = min(_rounded(max(segment.new for segment in segments), 2), max_length)
    end = min(_rounded(max(_SHORTEST, *(segment.end for segment in segments)), 4), max_length)
    gathered = min(_rounded(len(segments), 2), rows)
    spanned = min(_rounded(1 + max(segment.row for segment in segments), 2), rows)
    # To copy a row costs what to read three costs, and lines that idle have other work to do than to read.
    block = spanned <= 2 * gathered
    lines = spanned if block else gathered
    return Bucket(lines, width, end, block) if lines * width <= _LARGEST else None


def _rounded(count: int, parts: int) -> int:
    """Up to the next of the `parts` steps between powers of two."""
    step = max(1, (1 << (count.bit_length() - 1)) // parts)
    return -(-count // step) * step


@dataclass(frozen=True, slots=True)
class Choice:
    """What a bucket's passes take both ways, seconds; the faster one was chosen."""

    bucket: Bucket
    eager_s: float
    replay_s: float

    @property
    def replayed(self) -> bool:
        """Whether replaying was the faster."""
        return self.replay_s < self.eager_s


class Graphs:
    """Runs padded batches by replaying them where that is faster, and eagerly elsewhere.

    Args:
        model: with the engine's attention in place.
        slab: that it runs on; every layer has its memory.
        device: where both are.
        recorder: of that device.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        slab: Slab,
        device: torch.device,
        recorder: Recorder,
    ) -> None:
        self._model = model
        self._slab = slab
        self._device = device
        self._recorder = recorder
        self._asked = Counter[Bucket]()
        self._graphs: dict[Bucket, _Graph | None] = {}
        self._left_s = _CAPTURING_S
        self.paused = False
        """Whether everything runs eagerly: to compare."""
        self.choices: list[Choice] = []
        """What was measured, in the order of capture."""
        self.tried = 0
        """How many buckets were captured, or were to be: the pass that did it took longer than any other will."""

    def forget(self, slab: Slab) -> None:
        """Run on other memory from now on: what was recorded is at the addresses of the old one."""
        self._slab = slab
        self._graphs.clear()
        self._asked.clear()

    def run(self, segments: Sequence[Segment], eagerly: Run) -> Tensor:
        """Run a padded batch.

        Args:
            segments: as for `Engine.forward`.
            eagerly: does the same without a graph.

        Returns:
            float32 [sum of the segments' `logits`, vocab].
        """
        bucket = None if self.paused else bucket_of(segments, self._slab.rows, self._slab.max_length)
        if bucket is None:
            return eagerly()
        if bucket not in self._graphs:
            self._asked[bucket] += 1
            if self._asked[bucket] < _ASKED or self._left_s <= 0:
                return eagerly()
            self._graphs[bucket] = self._faster(bucket, segments, eagerly)
        graph = self._graphs[bucket]
        return eagerly() if graph is None else graph.run(segments)

    def _faster(self, bucket: Bucket, segments: Sequence[Segment], eagerly: Run) -> _Graph | None:
        """A bucket's graph, or None where it cannot be had or eager is the faster."""
        begun_s = time.perf_counter()
        self.tried += 1
        try:
            graph = _Graph(bucket, self._model, self._slab, self._device, self._recorder, segments)
            time_s = self._recorder.time_s
            choice = Choice(bucket, time_s(eagerly), time_s(lambda: graph.run(segments)))
        except RuntimeError as error:
            # What the model does or the memory lacks for one bucket is so for the others: none is tried after it.
            self._left_s = 0.0
            logger.warning("passes of %s run eagerly, and so do all that are not captured yet: %s", bucket, error)
            return None
        self._left_s -= time.perf_counter() - begun_s
        self.choices.append(choice)
        way = "replayed" if choice.replayed else "run eagerly"
        logger.info("%s is %s: eager %.2f ms, replay %.2f", bucket, way, 1e3 * choice.eager_s, 1e3 * choice.replay_s)
        return graph if choice.replayed else None


class _Graph:
    """One bucket, recorded."""

    def __init__(
        self,
        bucket: Bucket,
        model: PreTrainedModel,
        slab: Slab,
        device: torch.device,
        recorder: Recorder,
        segments: Sequence[Segment],
    ) -> None:
        self._model = model
        self._slab = slab
        self._inputs = _Inputs(bucket, device)
        self._inputs.load(segments)  # what is recorded is also run, and may only store what the pass stores
        self._replay = recorder.record(self._forward)

    def run(self, segments: Sequence[Segment]) -> Tensor:
        """Replay it for some segments: float32 [sum of `logits`, vocab]."""
        wanted = self._inputs.load(segments)
        return self._replay().index_select(0, wanted).float()

    def _forward(self) -> Tensor:
        """Run the model over the static inputs: [lines * width, vocab]."""
        output = self._model(
            input_ids=self._inputs.tokens,
            position_ids=self._inputs.positions,
            logits_to_keep=0,  # all: a selection has no fixed shape
            use_cache=False,
            engine_batch=_StaticBatch(self._inputs, self._slab),
        )
        logits: Tensor = output.logits
        return logits.flatten(0, 1)


class _Inputs:
    """What a recorded pass reads, at addresses that stay: one buffer, so that one copy fills it."""

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self.bucket = bucket
        cells = bucket.lines * bucket.width
        self._buffer = torch.zeros(3 * cells + 2 * bucket.lines, dtype=torch.int64, device=device)
        parts = torch.split(self._buffer, [cells, cells, bucket.lines, bucket.lines, cells])
        self.tokens: Tensor = parts[0].view(bucket.lines, bucket.width)
        self.positions: Tensor = parts[1].view(bucket.lines, bucket.width)
        self.rows: Tensor = parts[2]  # [lines], of the slab
        self.sources: Tensor = parts[3]  # [lines], whose keys and values each line stores
        self._wanted: Tensor = parts[4]  # [lines * width], the first of which count

    def load(self, segments: Sequence[Segment]) -> Tensor:
        """Fill them, and have lines without a segment idle.

        A line that idles stores nothing of its own, but once more what the first segment's line stores, in the same
        slots: so it needs no slots to spoil.

        Returns:
            int64 [sum of `logits`]: which of the lines' logits, end to end, are wanted.
        """
        lines, width = self.bucket.lines, self.bucket.width
        places = [segment.row for segment in segments] if self.bucket.block else list(range(len(segments)))
        tokens, positions = [0] * (lines * width), [0] * (lines * width)
        rows = list(range(lines)) if self.bucket.block else [segments[0].row] * lines
        sources = [places[0]] * lines
        wanted: list[int] = []
        for line, segment in zip(places, segments, strict=True):
            first, padding = line * width, width - segment.new
            tokens[first : first + width] = [*segment.tokens, *[segment.tokens[-1]] * padding]
            positions[first : first + width] = [*range(segment.start, segment.end), *[segment.end - 1] * padding]
            rows[line], sources[line] = segment.row, line
            wanted += range(first + segment.new - segment.logits, first + segment.new)
        filled = torch.tensor([*tokens, *positions, *rows, *sources, *wanted])
        self._buffer[: len(filled)].copy_(filled)
        return self._wanted[: len(wanted)]


class _StaticBatch:
    """The attention of one forward over static inputs; see `AttendingBatch`. Nothing in it depends on their values."""

    def __init__(self, inputs: _Inputs, slab: Slab) -> None:
        self._inputs = inputs
        self._bucket = inputs.bucket
        self._slab = slab
        width = self._bucket.width
        self._rows = inputs.rows[inputs.sources, None].expand(-1, width).reshape(-1)  # [lines * width]
        self._slots = inputs.positions[inputs.sources].reshape(-1)  # [lines * width]
        self._masks: dict[int | None, Tensor] = {}  # by window, the same in every layer that has it

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None
    ) -> Tensor:
        """Store a layer's new keys and values and attend to all slots of the bucket."""
        sources, end = self._inputs.sources, self._bucket.end
        keys, values = self._slab.store(layer, self._rows, self._slots, key[sources], value[sources])
        kv_heads = keys.shape[1]
        groups = query.shape[1] // kv_heads
        if window not in self._masks:
            self._masks[window] = causal_mask(self._inputs.positions, 0, end, window, groups, query.dtype)
        rows = slice(0, self._bucket.lines) if self._bucket.block else self._inputs.rows
        attended = F.scaled_dot_product_attention(
            fold_groups(query, kv_heads),
            keys[:, :, :end][rows],
            values[:, :, :end][rows],
            attn_mask=self._masks[window],
            scale=scaling,
        )
        return unfold_groups(attended, groups)


def recorder_on(device: torch.device) -> Recorder | None:
    """How passes are recorded on a device; None where they are not.

    Ranks that share a model have to run the same collectives in the same order: there each pass is run as it comes.
    """
    if device.type != "cuda" or (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return _CudaRecorder(device)


class _CudaRecorder:
    """Records CUDA graphs that share their memory: one runs at a time, and its output is read before the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recorded = WeakSet[torch.cuda.CUDAGraph]()

    def record(self, function: Run) -> Run:
        with torch.cuda.device(self._device):
            # Libraries make their workspaces when they first run, which must not be while recording.
            current = torch.cuda.current_stream()
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                function()
                function()
            current.wait_stream(aside)
            if not self._recorded:
                # A pool that its last graph has left cannot be recorded into any more.
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = function()
            self._recorded.add(graph)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def time_s(self, run: Run) -> float:
        times_s = []
        for _ in range(_REPETITIONS):
            begun_s = time.perf_counter()
            run()
            torch.cuda.synchronize(self._device)
            times_s.append(time.perf_counter() - begun_s)
        return statistics.median(times_s)
