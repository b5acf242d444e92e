"""The ranks of a tensor-parallel model: how they meet, and how rank 0 is heard by the others.

Two kinds of traffic, kept apart. What the model's layers exchange goes over transformers' own device mesh: by gloo on
CPUs, by NCCL on GPUs. What rank 0 says goes over a gloo group of its own, upon which the others wait for as long as
there is nothing to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["PASS_TIMEOUT_S", "Group", "Place"]

PASS_TIMEOUT_S = 120.0
"""How long a rank waits in a pass for what another is to send; they are as fast as each other."""
_LOADING = timedelta(hours=2)
"""Likewise while weights are loaded, which takes one rank longer than another."""
_IDLE = timedelta(days=3650)
_FRAME_BYTES = 8192
"""What is said fits into as much, nearly always, and is then one broadcast."""
_HEAD_BYTES = 4


@dataclass(frozen=True, slots=True)
class Place:
    """Which of the ranks a process is, and where all of them meet."""

    rank: int
    size: int
    """How many there are."""
    local_rank: int
    """Among those of this machine: the number of its GPU."""
    local_size: int
    """How many of them are on this machine."""
    meeting: str
    """A URL, as `torch.distributed.init_process_group` takes it: `file://...`, `env://`."""


class Group:
    """This process among the ranks.

    Args:
        place: which one it is; blocks until all are there.
        device_type: `cpu` or `cuda`.

    Raises:
        RuntimeError: they do not come.
    """

    def __init__(self, place: Place, device_type: str) -> None:
        self.place = place
        device = None
        if device_type == "cuda":
            torch.cuda.set_device(place.local_rank)
            device = torch.device("cuda", place.local_rank)
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            init_method=place.meeting,
            rank=place.rank,
            world_size=place.size,
            timeout=_LOADING,
            device_id=device,
        )
        self._control = dist.new_group(backend="gloo", timeout=_IDLE)

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.place.size

    def tell(self, message: bytes) -> None:
        """Have every other rank `hear` a message; rank 0 alone does.

        Raises:
            RuntimeError: one of them is gone.
        """
        frame = torch.zeros(max(_FRAME_BYTES, _HEAD_BYTES + len(message)), dtype=torch.uint8)
        whole = len(message).to_bytes(_HEAD_BYTES, "big") + message
        frame[: len(whole)] = torch.frombuffer(bytearray(whole), dtype=torch.uint8)
        self._broadcast(frame[:_FRAME_BYTES])
        if len(frame) > _FRAME_BYTES:
            self._broadcast(frame[_FRAME_BYTES:])

    def hear(self) -> bytes:
        """Wait for what rank 0 says next.

        Raises:
            RuntimeError: it is gone.
        """
        frame = torch.empty(_FRAME_BYTES, dtype=torch.uint8)
        self._broadcast(frame)
        end = _HEAD_BYTES + int.from_bytes(bytes(frame[:_HEAD_BYTES].tolist()), "big")
        if end > _FRAME_BYTES:
            rest = torch.empty(end - _FRAME_BYTES, dtype=torch.uint8)
            self._broadcast(rest)
            frame = torch.cat([frame, rest])
        return frame[_HEAD_BYTES:end].numpy().tobytes()

    def least(self, number: int) -> int:
        """The smallest of the numbers that the ranks bring; every rank has to come.

        Raises:
            RuntimeError: one of them is gone.
        """
        numbers = torch.tensor([number])
        dist.all_reduce(numbers, dist.ReduceOp.MIN, group=self._control)
        return int(numbers)

    def leave(self) -> None:
        """Be no rank any more."""
        dist.destroy_process_group()

    def _broadcast(self, frame: Tensor) -> None:
        dist.broadcast(frame, src=0, group=self._control)
