"""Attention over the slab, in the place of the model's own: transformers' `AttentionInterface` takes it by name.

The model's code stays as it is. It hands every layer's new queries, keys and values to `attention_forward`, which
stores the keys and values and lets the batch attend in its layout. Since the name has no mask function beside it,
transformers makes no mask; since the slab is not transformers' `Cache`, the model runs as if it had none.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from goodspeed.errors import UnsupportedModel

__all__ = ["ATTENTION", "AttendingBatch", "attention_forward", "causal_mask", "fold_groups", "unfold_groups"]

ATTENTION = "goodspeed"
"""The name under which `attention_forward` is registered."""

_BEYOND_US = {
    "block_indices": "sparse attention",
    "indices": "sparse attention",
    "position_bias": "a position bias",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "softcap": "soft-capped scores",
}
"""What some models hand to their attention that would change its result, and is not done here."""


class AttendingBatch(Protocol):
    """One forward pass, as its attention layers see it."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None
    ) -> Tensor:
        """Store a layer's new keys and values and attend to all that its rows have.

        Args:
            layer: index of the layer.
            query: [batch, heads, new, head_dim].
            key: [batch, kv_heads, new, head_dim].
            value: [batch, kv_heads, new, head_dim].
            scaling: of the scores; None for `head_dim ** -0.5`.
            window: how many positions a query sees, its own among them; None for all.

        Returns:
            [batch, new, heads, head_dim].
        """
        ...


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    engine_batch: AttendingBatch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, as `AttentionInterface` calls it.

    Args:
        module: the model's attention layer, which knows its `layer_idx`.
        query: [batch, heads, new, head_dim].
        key: [batch, kv_heads, new, head_dim].
        value: [batch, kv_heads, new, head_dim].
        attention_mask: none is made.
        engine_batch: handed through the model from `Engine.forward`.
        scaling: of the scores.
        sliding_window: how many positions a query sees in this layer.
        others: what else models hand over; most of it concerns other implementations.

    Raises:
        UnsupportedModel: the model asks for something that would be left out.
    """
    for name, meaning in _BEYOND_US.items():
        if others.get(name) is not None:
            raise UnsupportedModel(
                f"{type(module).__name__} uses {meaning}, which the engine does not compute: choose another target"
            )
    layer: Any = module.layer_idx
    return engine_batch.attend(layer, query, key, value, scaling=scaling, window=sliding_window), None


def fold_groups(query: Tensor, kv_heads: int) -> Tensor:
    """Fold the query heads that share a key-value head into the query axis.

    Each key-value head is then read once for its whole group, with no repeated copy of it, and no kernel needs to know
    of groups: SDPA's own `enable_gqa` costs a fifth more on the CPU, and beside a mask CUDA has only its slowest kernel
    for it.

    Args:
        query: [batch, heads, new, head_dim].
        kv_heads: how many key-value heads there are.

    Returns:
        [batch, kv_heads, new * groups, head_dim]; a token's queries are neighbours.
    """
    batch, _, new, head_dim = query.shape
    return query.reshape(batch, kv_heads, -1, new, head_dim).transpose(2, 3).flatten(2, 3)


def unfold_groups(attended: Tensor, groups: int) -> Tensor:
    """Undo `fold_groups`, for what attention made of it.

    Args:
        attended: [batch, kv_heads, new * groups, head_dim].
        groups: query heads to each key-value head.

    Returns:
        [batch, new, heads, head_dim].
    """
    batch, kv_heads, _, head_dim = attended.shape
    return attended.reshape(batch, kv_heads, -1, groups, head_dim).transpose(1, 2).flatten(2, 3)


def causal_mask(positions: Tensor, first: int, end: int, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
    """What each query may see of the slots `first..end-1`, to be added to the scores of folded queries.

    Args:
        positions: int64 [batch, new], the queries' own positions.
        first: the first slot.
        end: one past the last slot.
        window: how many positions a query sees, its own among them; None for all.
        groups: query heads to each key-value head.
        dtype: of the queries.

    Returns:
        [batch, 1, new * groups, end - first] of 0 and -inf.
    """
    slots = torch.arange(first, end, device=positions.device)
    seeing = positions.repeat_interleave(groups, dim=1)[:, None, :, None]
    hidden = slots > seeing  # [batch, 1, new * groups, slots]: of bytes, where their distances would be 8 each
    if window is not None:
        hidden |= slots <= seeing - window
    return torch.zeros(hidden.shape, dtype=dtype, device=positions.device).masked_fill_(hidden, float("-inf"))


AttentionInterface.register(ATTENTION, attention_forward)
