"""What the host does that would make it wait for a GPU, noted in the order in which it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Waits"]

_METHODS = ("tolist", "item", "cpu", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__")
_BY_VALUE = {"_local_scalar_dense", "nonzero", "equal", "masked_select"}
"""Operators whose result, or its shape, the host has to know."""


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes reads of tensors, and data of the host that become tensors, which are copied behind all that is queued."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noted: list[str] = []
        self._patch = pytest.MonkeyPatch()
        self._reading = False

    def __enter__(self) -> Waits:
        for name in _METHODS:
            self._patch.setattr(Tensor, name, self._noting(name, getattr(Tensor, name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._patch.undo()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name == "index" and any(one.dtype == torch.bool for one in tree_leaves(args) if torch.is_tensor(one))
        if name == "lift_fresh" or ((name in _BY_VALUE or masked) and not self._reading):
            self.noted.append(name)
        return func(*args, **(kwargs or {}))

    def _noting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self._reading:
                self.noted.append(name)
            inner, self._reading = self._reading, True
            try:
                return method(tensor, *args, **kwargs)
            finally:
                self._reading = inner

        return noted
