"""A model, its slab, and the forward pass over both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from goodspeed.engine.attention import ATTENTION
from goodspeed.engine.graphs import Graphs, Recorder, recorder_on
from goodspeed.engine.layouts import Batch, Packed, Padded, Segment
from goodspeed.engine.lean import Lean
from goodspeed.engine.slab import Slab
from goodspeed.engine.support import check_layers, check_positions
from goodspeed.engine.trial import run_leanly
from goodspeed.errors import UnsupportedModel
from goodspeed.quantisation import can_be_recorded, is_quantised

__all__ = ["Engine", "Layout"]

Layout = Literal["packed", "padded"]
"""How a batch is laid out; see `layouts`."""

_LAYOUTS: dict[Layout, type[Batch]] = {"packed": Packed, "padded": Padded}


class Engine:
    """Runs a model over the new tokens of many rows at once.

    The engine keeps no lengths. Each pass says where every row's new tokens start, so the caller rolls a row back by
    starting lower the next time; what was cached beyond is overwritten.

    Args:
        model: from here on it is the engine's: it is moved, and its attention is replaced. Quantised weights stay
            where and what they are.
        rows: how many streams the slab holds.
        max_length: tokens a row holds, prompt and text together.
        layout: packed for a CPU, padded for a GPU.
        device: where to run; of quantised weights, where they are.
        dtype: of the weights, and of what is cached.
        recorder: of padded passes, to be replayed; by default what the device has, if anything. See `graphs`.
        lean: whether to run it by `Lean` where that is possible, on a CPU.

    Raises:
        UnsupportedModel: the model cannot be served.
    """

    graphs: Graphs | None = None
    """What records padded passes and replays them, if anything does."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        rows: int,
        max_length: int,
        layout: Layout,
        device: torch.device | str,
        dtype: torch.dtype,
        recorder: Recorder | None = None,
        lean: bool = True,
    ) -> None:
        check_layers(model)
        check_positions(model, max_length)
        self.layout = layout
        self.device = torch.device(device)
        self._slab = Slab(rows, max_length)
        self._written: dict[int, int] = {}
        """How far each row has been written to since it was last clear."""
        self._inherited: set[int] = set()
        """Rows that somebody else has written to, and their new owner has not."""
        self._model = _placed(model, self.device, dtype)
        self._model.set_attn_implementation(ATTENTION)
        self._lean: Lean | None = None
        """Runs the model where it may be run so."""
        self.vocab_size = self._probe()
        if lean and self.device.type == "cpu":
            self._lean = run_leanly(model)
        recorder = recorder or recorder_on(self.device)
        if recorder is not None and can_be_recorded(model):
            self.graphs = Graphs(model, self._slab, self.device, recorder)

    @property
    def rows(self) -> int:
        """How many streams the slab holds."""
        return self._slab.rows

    @property
    def max_length(self) -> int:
        """How many tokens a row holds."""
        return self._slab.max_length

    @property
    def kv_bytes(self) -> int:
        """The memory of the whole slab."""
        return self._slab.kv_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """The memory one token takes in the slab."""
        return self._slab.kv_bytes_per_token

    @property
    def free_rows(self) -> int:
        """How many rows are free."""
        return self._slab.free_rows

    @property
    def free(self) -> Sequence[int]:
        """Which they are, in no order."""
        return self._slab.free

    @property
    def is_lean(self) -> bool:
        """Whether the model is run by `Lean`, and not by transformers' own code."""
        return self._lean is not None

    @property
    def recordings(self) -> int:
        """How many passes have been recorded besides, for whatever it was good; such a pass takes long."""
        return 0 if self.graphs is None else self.graphs.tried

    @property
    def busy_clock(self) -> Callable[[], float]:
        """The clock that busy time is read from, by the thread that is busy, seconds.

        On a CPU it is the thread's own processor time: what other programs take is not the engine's work.
        """
        return time.thread_time if self.device.type == "cpu" else time.perf_counter

    def allocate(self) -> int:
        """Take a free row.

        Raises:
            EngineFull: there is none.
        """
        row = self._slab.allocate()
        if row in self._written and _LAYOUTS[self.layout].reads_beyond:
            self._inherited.add(row)
        return row

    def release(self, row: int) -> None:
        """Give a row back."""
        self._slab.release(row)

    @torch.inference_mode()
    def clear(self, row: int, start: int) -> None:
        """Make zeros of all that was ever stored in a row from a position on.

        Where a mask hides a slot its key and value still take part, with weight 0, and 0 * NaN is NaN: so leftovers do
        no harm as long as they are numbers. Not for a row that a pass is at.
        """
        end = self._written.get(row, 0)
        if start < end:
            self._slab.clear(row, start, end)
            self._written[row] = start

    @torch.inference_mode()
    def copy(self, source: int, target: int, end: int) -> None:
        """Have a row hold what another has cached of its first tokens, which both texts begin with."""
        assert source != target
        assert end <= self._written.get(source, 0)
        self._slab.copy(source, target, end)
        self._written[target] = max(self._written.get(target, 0), end)

    @torch.inference_mode()
    def resize(self, rows: int, max_length: int) -> None:
        """Hold more rows, or longer ones; what is cached stays.

        Raises:
            UnsupportedModel: the model's positions do not reach so far.
        """
        self._check_larger(rows, max_length)
        self._slab.resize(rows, max_length)
        self._forget_graphs()

    def begin_anew(self, rows: int, max_length: int) -> None:
        """Hold nothing any more, in so many rows of that length.

        Raises:
            UnsupportedModel: the model's positions do not reach so far.
        """
        check_positions(self._model, max_length)
        self._slab = Slab(rows, max_length)
        self._written.clear()
        self._inherited.clear()
        self._forget_graphs()

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """Run every segment's tokens over what its row has cached, and cache them too.

        Args:
            segments: at least one, at most one a row. Neighbouring rows in ascending order are the fastest when
                padded; segments of very unequal length then run as several forwards.

        Returns:
            float32 [sum of the segments' `logits`, vocab], on the engine's device, in the order of the segments: the
            logits that follow each of the last `logits` tokens.
        """
        rows = [segment.row for segment in segments]
        assert rows
        assert len(set(rows)) == len(rows)
        for segment in segments:
            assert 0 <= segment.row < self.rows
            assert 0 <= segment.start < segment.end <= self.max_length
            assert 0 <= segment.logits <= len(segment.tokens)
            assert min(segment.tokens) >= 0
            assert max(segment.tokens) < self.vocab_size
            if segment.row in self._inherited:
                self._inherited.discard(segment.row)
                self.clear(segment.row, segment.end)
            self._written[segment.row] = max(self._written.get(segment.row, 0), segment.end)
        return self._run(segments)

    @torch.inference_mode()
    def _run(self, segments: Sequence[Segment]) -> Tensor:
        """Run the pass, as one batch or as the few that its layout cuts it into: [sum of `logits`, vocab]."""
        groups = _LAYOUTS[self.layout].groups(segments)
        if len(groups) == 1:
            return self._run_batch(segments)
        pieces: dict[int, Tensor] = {}  # by segment, each [its `logits`, vocab]
        for group in groups:
            members = [segments[index] for index in group]
            logits = torch.split(self._run_batch(members), [segment.logits for segment in members])
            pieces.update(zip(group, logits, strict=True))
        return torch.cat([pieces[index] for index in range(len(segments))])

    def _check_larger(self, rows: int, max_length: int) -> None:
        assert rows >= self.rows
        assert max_length >= self.max_length
        check_positions(self._model, max_length)

    def _forget_graphs(self) -> None:
        if self.graphs is not None:
            self.graphs.forget(self._slab)

    def _run_batch(self, segments: Sequence[Segment]) -> Tensor:
        if self.graphs is None or self.layout != "padded":
            return self._run_eagerly(segments)
        return self.graphs.run(segments, lambda: self._run_eagerly(segments))

    def _run_eagerly(self, segments: Sequence[Segment]) -> Tensor:
        batch = _LAYOUTS[self.layout](segments, self._slab, self.device)
        if self._lean is not None:
            return self._lean(batch.tokens, batch.positions, batch.wanted, batch).float()
        output = self._model(
            input_ids=batch.tokens,
            position_ids=batch.positions,
            logits_to_keep=batch.kept,
            use_cache=False,
            engine_batch=batch,
        )
        logits: Tensor = output.logits.flatten(0, 1)  # [lines * most, vocab]
        return (logits if batch.picked is None else logits[batch.picked]).float()

    def _probe(self) -> int:
        """Run one token, twice, so that every layer gets its memory and a model that does not play along is found now.

        Returns:
            The size of the vocabulary, as the output head has it.
        """
        none, one = (self._run([Segment(row=0, start=0, tokens=[0], logits=wanted)]) for wanted in (0, 1))
        layers = self._model.config.get_text_config().num_hidden_layers
        if self._slab.layers != layers or none.ndim != 2 or one.ndim != 2 or len(none) != 0 or len(one) != 1:
            raise UnsupportedModel(
                f"{type(self._model).__name__} cannot be served: the engine was asked for attention in "
                f"{self._slab.layers} of its {layers} layers, and no row of logits and one came as "
                f"{list(none.shape)} and {list(one.shape)}: choose a target like Llama, Qwen3 or Mistral"
            )
        return one.shape[1]


def _placed(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Move the model and convert its weights, and only them: rotary frequencies are buffers and stay in float32.

    What a quantiser has made of weights is neither moved nor converted: to another type it would be other numbers.
    """
    module: nn.Module = model
    module.eval()
    if not is_quantised(model):
        module.to(device)
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
    return model
