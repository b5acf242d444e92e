"""The KV slab: a row a stream, a slot a position."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from goodspeed.errors import EngineFull

__all__ = ["Slab"]


class Slab:
    """Keys and values of every layer, row and position.

    A token's keys and values stand at its own position in its stream's row. Nothing here knows how much of a row is
    in use: slots beyond the length that the caller counts hold leftovers, which are never attended to and are
    overwritten when their positions come. So rolling back costs nothing, and a released row needs no cleaning.

    Args:
        rows: how many streams it holds.
        max_length: tokens a row holds.
    """

    def __init__(self, rows: int, max_length: int) -> None:
        self.rows = rows
        self.max_length = max_length
        self._free = list(range(rows))  # a heap: the lowest rows go first, so that a full batch is one block
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # each [rows, kv_heads, max_length, head_dim]

    @property
    def free_rows(self) -> int:
        """How many rows are free."""
        return len(self._free)

    @property
    def free(self) -> Sequence[int]:
        """Which they are, in no order."""
        return tuple(self._free)

    @property
    def layers(self) -> int:
        """How many layers have stored something, and so have their memory."""
        return len(self._layers)

    @property
    def kv_bytes(self) -> int:
        """The memory of the whole slab."""
        return sum(keys.nbytes + values.nbytes for keys, values in self._layers.values())

    @property
    def kv_bytes_per_token(self) -> int:
        """The memory of one slot in all layers."""
        return self.kv_bytes // (self.rows * self.max_length)

    def allocate(self) -> int:
        """Take the lowest free row.

        Raises:
            EngineFull: there is none.
        """
        if not self._free:
            raise EngineFull(
                f"all {self.rows} rows of the KV slab are taken: wait for a stream to end, or serve with more rows"
            )
        return heapq.heappop(self._free)

    def release(self, row: int) -> None:
        """Give a row back."""
        assert 0 <= row < self.rows
        assert row not in self._free
        heapq.heappush(self._free, row)

    def clear(self, row: int, start: int, end: int) -> None:
        """Make zeros of what is stored in some slots of a row."""
        for keys, values in self._layers.values():
            keys[row, :, start:end] = 0
            values[row, :, start:end] = 0

    def copy(self, source: int, target: int, end: int) -> None:
        """Store in the first slots of a row what another has there."""
        for keys, values in self._layers.values():
            keys[target, :, :end] = keys[source, :, :end]
            values[target, :, :end] = values[source, :, :end]

    def resize(self, rows: int, max_length: int) -> None:
        """Hold more rows, or longer ones; what is stored stays where it is."""
        assert rows >= self.rows
        assert max_length >= self.max_length
        # Whoever has no memory for it has lost nothing.
        larger = {
            layer: (self._grown(k, rows, max_length), self._grown(v, rows, max_length))
            for layer, (k, v) in self._layers.items()
        }
        for row in range(self.rows, rows):
            heapq.heappush(self._free, row)
        self.rows, self.max_length, self._layers = rows, max_length, larger

    def store(self, layer: int, rows: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values of new tokens, each at its own row and slot.

        A layer's memory is made when it first stores something, in the shape and type of what it stores: so the
        slab fits any model, and the local heads of a tensor-parallel one.

        Args:
            layer: index of the layer.
            rows: int64 [batch * new].
            slots: int64 [batch * new].
            keys: [batch, kv_heads, new, head_dim].
            values: [batch, kv_heads, new, value_head_dim].

        Returns:
            All the layer's keys and all its values, each [rows, kv_heads, max_length, head_dim].
        """
        if layer not in self._layers:
            size = (self.rows, self.max_length)
            self._layers[layer] = (_zeros(keys, *size), _zeros(values, *size))
        all_keys, all_values = self._layers[layer]
        all_keys[rows, :, slots] = keys.transpose(1, 2).flatten(0, 1)
        all_values[rows, :, slots] = values.transpose(1, 2).flatten(0, 1)
        return all_keys, all_values

    def _grown(self, slots: Tensor, rows: int, max_length: int) -> Tensor:
        grown = _zeros(slots, rows, max_length)
        grown[: self.rows, :, : self.max_length] = slots
        return grown


def _zeros(like: Tensor, rows: int, max_length: int) -> Tensor:
    # Zeros and not whatever was there: a masked slot still takes part with weight 0, and 0 * NaN is NaN.
    _, kv_heads, _, head_dim = like.shape
    return torch.zeros(rows, kv_heads, max_length, head_dim, dtype=like.dtype, device=like.device)
