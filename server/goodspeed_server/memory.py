"""Whether the KV slab fits, found out before it is made: how many streams a server can admit."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from transformers import PretrainedConfig

from goodspeed.engine.support import kv_heads_per_rank
from goodspeed.errors import InvalidRequest

__all__ = ["free_bytes", "kv_bytes_per_token", "rows_that_fit"]

_USABLE = 0.8
"""The share of the free memory that the slab may take; activations and logits live in the rest."""


def kv_bytes_per_token(config: PretrainedConfig, dtype: torch.dtype, ranks: int = 1) -> int:
    """The keys and values of one token in all layers, on each of so many ranks, bytes."""
    text: Any = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * kv_heads_per_rank(config, ranks) * head_dim * dtype.itemsize)


def free_bytes(device: torch.device) -> int:
    """Memory that is free where the slab would be."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def rows_that_fit(wanted: int | None, max_length: int, token_bytes: int, free: int, *, at_most: int = 64) -> int:
    """Settle the number of streams.

    Args:
        wanted: streams the operator asked for; None: as many as fit, up to `at_most`.
        max_length: tokens each may hold.
        token_bytes: from `kv_bytes_per_token`.
        free: bytes, from `free_bytes`.
        at_most: streams that are enough where nobody asked for a number.

    Raises:
        InvalidRequest: so many do not fit, or not even one; it names the largest configurations that do.
    """
    usable = int(_USABLE * free)
    row_bytes = max_length * token_bytes
    if wanted is None:
        wanted = max(1, min(at_most, usable // row_bytes))
    if wanted * row_bytes <= usable:
        return wanted
    streams, length = usable // row_bytes, usable // (wanted * token_bytes)
    ways = [f"--max-streams {streams}"] * (streams > 0) + [f"--max-length {length}"] * (length > 1)
    raise InvalidRequest(
        f"{wanted} streams of {max_length} tokens need {wanted * row_bytes / 2**30:.2f} GiB for keys and values, and "
        f"{usable / 2**30:.2f} GiB can be used: choose {' or '.join(ways) or 'a smaller target'}",
        code="kv_memory",
    )
