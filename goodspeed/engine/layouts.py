"""How the rows' new tokens become one batch: packed end to end, or padded to a rectangle.

Both write the same slots of the same slab and give the same logits. *Packed* costs what the new tokens cost,
`sum(new)`, and runs attention row by row: the choice where launching a kernel is cheap, on a CPU. *Padded* costs
`rows * max(new)` and is a fixed number of kernels whatever the rows: the choice on a GPU. Where segments are so unequal
that padding would cost more than another forward, a padded pass is cut into several batches; see `grouping`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from goodspeed.engine.attention import causal_mask, fold_groups, unfold_groups
from goodspeed.engine.grouping import groups_by_length
from goodspeed.engine.slab import Slab

__all__ = ["Batch", "Packed", "Padded", "Segment"]


@dataclass(frozen=True, slots=True)
class Segment:
    """One row's share of a forward pass: run `tokens` at positions `start..` over what the row has cached."""

    row: int
    """The slab row."""
    start: int
    """Tokens cached in this row, which is the position of `tokens[0]`; rolling back is passing a smaller one."""
    tokens: Sequence[int]
    """At least one."""
    logits: int
    """How many of the last tokens' logits are wanted: draft length + 1, or 0 for a chunk of a prompt."""

    @property
    def new(self) -> int:
        """How many tokens it runs."""
        return len(self.tokens)

    @property
    def end(self) -> int:
        """One past the last token's position: what the row has cached afterwards."""
        return self.start + len(self.tokens)


@dataclass(slots=True)
class _Fields:
    """A batch, line after line, before it becomes tensors."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    """Which of the cells, end to end, have logits that are wanted."""

    def add(self, segment: Segment, padding: int = 0) -> None:
        end = len(self.tokens) + segment.new
        self.wanted += range(end - segment.logits, end)
        # Padding is the last token over again: it stores the same keys and values in the same slot.
        self.tokens += [*segment.tokens, *[segment.tokens[-1]] * padding]
        self.positions += [*range(segment.start, segment.end), *[segment.end - 1] * padding]
        self.rows += [segment.row] * (segment.new + padding)

    def selection(self, width: int) -> tuple[list[list[int]], list[int]]:
        """As `Batch.kept` and `Batch.picked`: lines that want fewer logits than others are filled up in front."""
        places: list[list[int]] = [[] for _ in range(len(self.tokens) // width)]
        for cell in self.wanted:
            places[cell // width].append(cell % width)
        most = max(map(len, places))
        kept, picked = list[list[int]](), list[int]()
        for own in places:
            kept.append([0] * (most - len(own)) + own)
            picked += range(len(kept) * most - len(own), len(kept) * most)
        return kept, picked


@dataclass(frozen=True, slots=True)
class _Part:
    """Segments that attend together, as one rectangle: `columns` of the batch's lines over `rows` of the slab."""

    segments: Sequence[Segment]
    columns: slice
    rows: slice | Tensor


@dataclass(frozen=True, slots=True)
class _View:
    """What a part's folded queries attend to in a layer."""

    queries: slice
    rows: slice | Tensor
    slots: slice
    mask: Tensor | None


class Batch(ABC):
    """The tensors of one forward pass, and its attention.

    Args:
        segments: at least one, of different rows.
        slab: where their rows are.
        device: where the model is.
    """

    reads_beyond: ClassVar[bool]
    """Whether slots behind a row's end are read, masked."""
    wanted: Tensor
    """int64 [wanted]: the cells, line after line, whose logits are wanted; a mask is something to wait for on a GPU."""
    kept: Tensor
    """int64 [lines, most]: the same by their place in each line, and others where a line has fewer."""
    picked: Tensor | None
    """int64 [wanted]: which of those, line after line, they are; None for all."""

    def __init__(self, segments: Sequence[Segment], slab: Slab, device: torch.device) -> None:
        self._segments = segments
        self._slab = slab
        self._views: dict[int | None, list[_View]] = {}  # by window, the same in every layer that has it
        self.width, fields = self._arrange()
        lines, chosen = fields.selection(self.width)
        parts = [fields.tokens, fields.positions, fields.rows, fields.wanted, list(chain(*lines)), chosen]
        numbers = torch.tensor(list(chain(*parts)), device=device)  # one copy
        tokens, self._slots, self._rows, self.wanted, kept, picked = torch.split(numbers, [len(part) for part in parts])
        self.tokens: Tensor = tokens.view(-1, self.width)  # [lines, width]
        self.positions: Tensor = self._slots.view(-1, self.width)  # [lines, width]
        self.kept = kept.view(len(lines), len(lines[0]))
        self.picked = None if len(picked) == len(kept) else picked

    @staticmethod
    def groups(segments: Sequence[Segment]) -> list[list[int]]:
        """The indices of the segments that share a batch, ascending in each group: here all of them."""
        return [list(range(len(segments)))]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None
    ) -> Tensor:
        """Store a layer's new keys and values and attend to all that its rows have; see `AttendingBatch`."""
        keys, values = self._slab.store(layer, self._rows, self._slots, key, value)
        kv_heads = keys.shape[1]
        groups = query.shape[1] // kv_heads
        if window not in self._views:
            self._views[window] = [self._view(part, window, groups, query.dtype) for part in self._parts()]
        folded = fold_groups(query, kv_heads)
        attended = [
            F.scaled_dot_product_attention(
                folded[:, :, view.queries],
                keys[view.rows, :, view.slots],
                values[view.rows, :, view.slots],
                attn_mask=view.mask,
                scale=scaling,
            )
            for view in self._views[window]
        ]
        return unfold_groups(torch.cat(attended, dim=2), groups)

    @abstractmethod
    def _arrange(self) -> tuple[int, _Fields]:
        """The width of the batch, and its lines end to end."""

    @abstractmethod
    def _parts(self) -> Sequence[_Part]:
        """The batch cut into what attends together, from left to right."""

    def _view(self, part: _Part, window: int | None, groups: int, dtype: torch.dtype) -> _View:
        start = min(segment.start for segment in part.segments)
        end = max(segment.end for segment in part.segments)
        first = 0 if window is None else max(0, start - window + 1)
        positions = self.positions[:, part.columns]
        # A single query sees every slot in view.
        mask = causal_mask(positions, first, end, window, groups, dtype) if positions.numel() > 1 else None
        queries = slice(part.columns.start * groups, part.columns.stop * groups)
        return _View(queries, part.rows, slice(first, end), mask)


class Packed(Batch):
    """All new tokens in one line, `[1, sum(new)]`; each row's attend to its own slots, and no others are read."""

    reads_beyond = False

    def _arrange(self) -> tuple[int, _Fields]:
        fields = _Fields()
        for segment in self._segments:
            fields.add(segment)
        return len(fields.tokens), fields

    def _parts(self) -> Sequence[_Part]:
        parts: list[_Part] = []
        begin = 0
        for segment in self._segments:
            columns = slice(begin, begin + segment.new)
            parts.append(_Part([segment], columns, slice(segment.row, segment.row + 1)))
            begin = columns.stop
        return parts


class Padded(Batch):
    """A line for each row, `[rows, max(new)]`; all attend to the slots up to the longest row's end.

    Padding stands behind the new tokens and repeats the last of them.
    """

    reads_beyond = True

    @staticmethod
    def groups(segments: Sequence[Segment]) -> list[list[int]]:
        """The indices of the segments that share a batch: a chunk of a prompt would pad every draft to its width."""
        return groups_by_length([segment.new for segment in segments])

    def _arrange(self) -> tuple[int, _Fields]:
        width = max(segment.new for segment in self._segments)
        fields = _Fields()
        for segment in self._segments:
            fields.add(segment, padding=width - segment.new)
        return width, fields

    def _parts(self) -> Sequence[_Part]:
        return [_Part(self._segments, slice(0, self.width), self._block())]

    def _block(self) -> slice | Tensor:
        """The rows: a slice where they are neighbours in order, since an index copies all that they have cached."""
        first = self._segments[0].row
        if all(segment.row == first + line for line, segment in enumerate(self._segments)):
            return slice(first, first + len(self._segments))
        rows: Tensor = self._rows[:: self.width]
        return rows
