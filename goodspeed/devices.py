"""Where a model runs, and in which precision, by name."""

from __future__ import annotations

import torch

from goodspeed.errors import ModelError
from goodspeed.reasons import reason

__all__ = ["device_named", "dtype_named"]


def device_named(device: str) -> torch.device:
    """A device.

    Args:
        device: as torch names it, or `auto`: a GPU if there is one.

    Raises:
        ModelError: it cannot be used here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        # There and back: a device such as `meta` takes a tensor, and keeps nothing of it.
        torch.zeros(1, device=where).cpu()
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used here: {reason(error)}") from None
    return where


def dtype_named(dtype: str, device: torch.device) -> torch.dtype:
    """A precision.

    Args:
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: the first on a CPU, else the second.
        device: where it is to be.

    Raises:
        ModelError: there is no such precision.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise ModelError(f"dtype {dtype!r} does not exist: choose auto, {', '.join(kinds)}")
    return kinds[dtype]
