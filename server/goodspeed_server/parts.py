"""A rank's part of a target: where the rank stands among the others, and how it loads what is its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import torch
from transformers import PreTrainedModel

from goodspeed.catalog import load_model, weights_digest
from goodspeed.engine.group import Group, Place
from goodspeed.errors import InvalidRequest, ModelError
from goodspeed_server.free_memory import free_bytes
from goodspeed_server.memory import kv_bytes_per_token
from goodspeed_server.settings import ServerSettings

__all__ = ["Part", "PartSettings", "check_device", "place_by_torchrun", "share_cores"]

_OF_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""What it puts into the environment of every process."""


class PartSettings(msgspec.Struct, frozen=True):
    """What every rank has to know of the operator's choices; as in `ServerSettings`."""

    model: str
    device: str
    dtype: str
    threads: int | None

    @classmethod
    def of(cls, settings: ServerSettings) -> PartSettings:
        """Those of a server.

        Raises:
            InvalidRequest: the target was to be quantised.
        """
        if settings.quantize is not None:
            raise InvalidRequest(
                "a target that ranks share cannot be quantised: leave out --quantize, or --tensor-parallel and torchrun"
            )
        return cls(settings.model, settings.device, settings.dtype, settings.threads)


@dataclass(frozen=True, slots=True)
class Part:
    """A rank that has met the others, and its part of the target."""

    group: Group
    model: PreTrainedModel
    weights: str
    """The digest of the whole target, as every rank has it."""
    token_bytes: int
    """The keys and values of one token in all layers, of this rank's heads."""
    free_bytes: int
    """Memory for each rank's share of the slab: that of the rank which has the least."""

    @classmethod
    def load(cls, settings: PartSettings, place: Place) -> Part:
        """Meet the others, and load this rank's part; blocks until all of them have.

        Raises:
            ModelError: it cannot be loaded or served, or cannot be shared by so many.
            RuntimeError: another rank is gone.
        """
        device_type = check_device(settings.device, place.local_size)
        group = Group(place, device_type)
        model = load_model(settings.model, device=device_type, dtype=settings.dtype, ranks=place.size)
        weights = weights_digest(model)
        token_bytes = kv_bytes_per_token(model)
        free = free_bytes(model.device)
        # Ranks upon CPUs take from one memory.
        least = group.least(free // place.local_size if device_type == "cpu" else free)
        return cls(group, model, weights, token_bytes, least)


def share_cores(settings: PartSettings, place: Place) -> None:
    """Have this process compute on its share of the cores, which are the ranks' together: torch would take them all.

    In force on the thread that calls it, and on those that are started behind it.
    """
    torch.set_num_threads(settings.threads or max(1, torch.get_num_threads() // place.local_size))


def check_device(device: str, local_size: int) -> str:
    """The kind of device that the ranks of this machine run on: `cpu` or `cuda`.

    Raises:
        InvalidRequest: ranks cannot be told to run there.
        ModelError: there are too few GPUs.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidRequest(
            f"device is {device!r}, and the ranks of a target have one each: choose auto, cpu or cuda, and say with "
            "CUDA_VISIBLE_DEVICES which GPUs they may have"
        )
    if device == "cuda" and not gpus:
        raise ModelError("device 'cuda' cannot be used here: torch finds no GPU")
    if device == "cpu" and gpus:
        raise InvalidRequest(
            "device is 'cpu', and transformers shares a target among GPUs where torch finds any: set "
            "CUDA_VISIBLE_DEVICES to nothing as well"
        )
    if gpus and gpus < local_size:
        raise ModelError(
            f"{local_size} ranks need a GPU each, and torch finds {gpus} here: choose --tensor-parallel {gpus} or less"
        )
    return "cuda" if gpus else "cpu"


def place_by_torchrun(asked: int, environment: Mapping[str, str] = os.environ) -> Place | None:
    """Where torchrun has put this process; None if it was not torchrun that started it.

    Args:
        asked: `--tensor-parallel`, which 1 leaves to torchrun.
        environment: what torchrun says is there.

    Raises:
        InvalidRequest: it started another number of ranks than was asked for.
    """
    if _OF_TORCHRUN not in environment:
        return None
    size = int(environment["WORLD_SIZE"])
    if asked not in (1, size):
        raise InvalidRequest(
            f"torchrun has started {size} ranks, and tensor_parallel is {asked}: leave that to torchrun, or start "
            "goodspeed-server without it"
        )
    if size == 1:
        return None
    rank, local_rank, local_size = (int(environment[name]) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    return Place(rank, size, local_rank, local_size, "env://")
