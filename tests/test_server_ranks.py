"""Which ranks a server is told to have, what it refuses of that, and whom it names when one is gone."""

from __future__ import annotations

import subprocess
from typing import Any, cast

import pytest
import torch

from goodspeed.engine.group import Place
from goodspeed.errors import InvalidRequest, ModelError, RankLost
from goodspeed_server.memory import Footprint, kv_bytes_per_token
from goodspeed_server.parts import PartSettings, check_device, place_by_torchrun
from goodspeed_server.ranks import Ranks, gathered
from goodspeed_server.settings import RoundSettings, ServerSettings
from goodspeed_server.target import engine_of
from tests.planted import PlantedEngine
from tests.tiny_models import CONTEXT, tiny_llama

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
}  # fmt: skip


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are two."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


class Child:
    """A rank's process, which has ended with some status, or has not."""

    def __init__(self, returncode: int | None) -> None:
        self.returncode = returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            raise subprocess.TimeoutExpired("rank", timeout or 0.0)
        return self.returncode


def ranks(*endings: int | None) -> Ranks:
    settings = PartSettings.of(ServerSettings())
    children = cast("list[subprocess.Popen[bytes]]", [Child(ending) for ending in endings])
    return Ranks(settings, Place(0, 1 + len(endings), 0, 1 + len(endings), ""), children)


def test_torchrun_says_where_a_process_stands() -> None:
    place = Place(rank=3, size=4, local_rank=1, local_size=2, meeting="env://")
    assert place_by_torchrun(1, TORCHRUN) == place_by_torchrun(4, TORCHRUN) == place
    assert place_by_torchrun(1, TORCHRUN | {"WORLD_SIZE": "1"}) is None
    assert place_by_torchrun(2, {"RANK": "3", "WORLD_SIZE": "4"}) is None, "some other launcher's"
    with pytest.raises(InvalidRequest, match="torchrun has started 4 ranks, and tensor_parallel is 2"):
        place_by_torchrun(2, TORCHRUN)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_every_rank_has_a_gpu_of_its_own(gpus: None, device: str) -> None:
    assert check_device(device, 2) == "cuda"
    with pytest.raises(ModelError, match="3 ranks need a GPU each, and torch finds 2 here: choose --tensor-parallel 2"):
        check_device(device, 3)


def test_where_there_are_gpus_ranks_do_not_run_beside_them(gpus: None) -> None:
    with pytest.raises(InvalidRequest, match="set CUDA_VISIBLE_DEVICES to nothing as well"):
        check_device("cpu", 2)
    with pytest.raises(InvalidRequest, match="say with CUDA_VISIBLE_DEVICES which GPUs they may have"):
        check_device("cuda:1", 2)


def test_without_gpus_ranks_run_on_the_cpu() -> None:
    assert check_device("auto", 8) == check_device("cpu", 8) == "cpu"
    with pytest.raises(ModelError, match="torch finds no GPU"):
        check_device("cuda", 2)


def test_who_was_killed_is_named_rather_than_who_ended_because_of_that() -> None:
    three = ranks(1, -9, None)
    assert str(three.cause()).startswith("rank 2 of the target's 4 was killed by SIGKILL, and no other can go on")
    assert three.cause() is None, "it has been said"
    assert str(ranks(None, 3).cause()).startswith("rank 2 of the target's 3 ended with status 3, and no other")
    assert ranks(None, None).cause() is None


def test_one_rank_is_no_company() -> None:
    with gathered(ServerSettings(), None) as alone:
        assert alone is None


@pytest.mark.parametrize("error", [RankLost("a pass"), RuntimeError("of NCCL's")])
def test_what_fails_where_no_rank_has_ended_is_told_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, gathered(ServerSettings(), Place(0, 2, 0, 2, "env://")):
        raise error
    assert raised.value is error


def test_a_rank_has_the_memory_for_its_own_heads_alone() -> None:
    model = tiny_llama()
    half = kv_bytes_per_token(model) // 2
    rounds = RoundSettings(prefill_chunk=1)

    class Two:
        token_bytes = half
        free_bytes = Footprint.of(model, half, rounds).bytes(10, CONTEXT)

        def make_engine(self, _model: object, *, rows: int, max_length: int, **_how: Any) -> PlantedEngine:
            return PlantedEngine(rows, max_length)

    engine, _, _ = engine_of(ServerSettings(rounds=rounds), model, cast(Ranks, Two()), PlantedEngine)
    assert engine.rows in range(7, 10), "most of what is free, in rows of half the size"
