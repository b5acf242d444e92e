"""The draft model's KV cache: slots that are overwritten, so that rolling back is one integer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

__all__ = ["SlotCache"]

_FIRST_SLOTS = 256


class SlotCache(Cache):
    """Keys and values of one sequence; layers of a sliding window keep everything and rely on the mask.

    Args:
        config: of the draft model.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self._slots = [_SlotLayer() for _ in range(config.get_text_config().num_hidden_layers)]
        super().__init__(layers=[*self._slots])

    def roll_back(self, length: int) -> None:
        """Forget everything behind the first `length` tokens."""
        for slots in self._slots:
            slots.length = min(slots.length, length)


class _SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # their __init_subclass__
    """One layer's slab, `[1, kv_heads, slots, head_dim]`, which doubles when it is full."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = _slab(key_states, _FIRST_SLOTS)
        self.values = _slab(value_states, _FIRST_SLOTS)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write `[1, kv_heads, new, head_dim]` behind what is there; return all of it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.keys, self.values = self._grown(self.keys, end), self._grown(self.values, end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grown(self, slab: Tensor, slots: int) -> Tensor:
        larger = _slab(slab, max(slots, 2 * slab.shape[-2]))
        larger[:, :, : self.length] = slab[:, :, : self.length]
        return larger

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1


def _slab(like: Tensor, slots: int) -> Tensor:
    return torch.empty(*like.shape[:-2], slots, like.shape[-1], dtype=like.dtype, device=like.device)
