"""Which ranks a server is told to have, what it refuses of that, and whom it names when one is gone."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch

from goodspeed.engine.group import Place
from goodspeed.errors import InvalidRequest, ModelError, RankLost
from goodspeed_server.memory import Footprint, kv_bytes_per_token
from goodspeed_server.parts import Part, PartSettings, check_device, place_by_torchrun
from goodspeed_server.rank_process import RankProcess
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


Gather = Callable[..., Ranks]
LIVING = "echo ready; read told"


@pytest.fixture
def ranks() -> Iterator[Gather]:
    """Makes ranks whose others are shells that do as they are told, and ends them."""
    with contextlib.ExitStack() as stack:

        def gather(*scripts: str) -> Ranks:
            size, others = 1 + len(scripts), []
            for rank, script in enumerate(scripts, start=1):
                shell = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                other = RankProcess(stack.enter_context(shell), rank, size)
                stack.callback(other.kill)
                others.append(other)
            return Ranks(PartSettings.of(ServerSettings(threads=1)), Place(0, size, 0, size, ""), others)

        yield gather


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is given time to say why it ended."""
    monkeypatch.setattr("goodspeed_server.ranks._NAMING_S", 0.0)


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


@pytest.mark.usefixtures("at_once")
def test_who_was_killed_is_named_rather_than_who_ended_because_of_that(ranks: Gather) -> None:
    def once_ended(gathered: Ranks) -> str:
        for other in gathered._others[:2]:
            other.lost.result()
        return str(gathered.cause())

    three = ranks("exit 1", "kill -9 $$", LIVING)
    assert once_ended(three).startswith("rank 2 of the target's 4 was killed by SIGKILL, and no other can go on")
    assert three.cause() is None, "it has been said"
    assert once_ended(ranks("exit 4", "exit 3")).startswith("rank 2 of the target's 3 ended with status 3, and no")
    assert ranks(LIVING, LIVING).cause() is None


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        pytest.param("exit 3", "ended with status 3, and no other can go on", id="ends"),
        pytest.param("printf rea; exit 3", "ended with status 3, and no other can go on", id="ends in the middle"),
        pytest.param("kill -9 $$", "was killed by SIGKILL", id="is killed"),
        pytest.param("echo hello; read told", r"said 'hello\\n' where it should have said that it is", id="talks"),
        pytest.param("printf hello; read told", "said 'hello' where it should have", id="talks, and no line"),
        pytest.param("printf hello", "said 'hello' where it should have", id="talks, and ends"),
    ],
)
@pytest.mark.parametrize("silent", ["read told", LIVING])
@pytest.mark.usefixtures("at_once")
def test_a_rank_that_never_was_one_is_named_while_the_others_are_waited_for(
    ranks: Gather, script: str, complaint: str, silent: str
) -> None:
    gathered = ranks(silent, script)
    with pytest.raises(RankLost, match=f"rank 2 of the target's 3 {complaint}"):
        gathered.load()


@pytest.mark.usefixtures("at_once")
def test_a_rank_that_ends_while_all_load_is_named_though_they_wait_for_it(
    ranks: Gather, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do over NCCL, for as long as loading may take."""
    over = threading.Event()
    monkeypatch.setattr(Part, "load", lambda *_: over.wait())
    try:
        with pytest.raises(RankLost, match="rank 1 of the target's 3 ended with status 4"):
            ranks("echo ready; exit 4", LIVING).load()
    finally:
        over.set()


def test_what_rank_0_finds_itself_is_said_rather_than_that_another_ended_for_it(
    ranks: Gather, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = ranks("echo ready; exit 1")

    def fail(*_: object) -> None:
        gathered._others[0].lost.result()
        raise ModelError("no such target")

    monkeypatch.setattr("goodspeed_server.ranks._NAMING_S", 3600.0)
    monkeypatch.setattr(Part, "load", fail)
    with pytest.raises(ModelError, match="no such target"):
        gathered.load()


async def test_ranks_may_say_what_they_like_once_they_are_ready_and_are_watched_all_along(
    ranks: Gather, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Part, "load", lambda *_: Part(cast(Any, None), tiny_llama(), "digest", 1, 1))
    gathered = ranks("echo ready; echo NCCL version; read told; exit 5")
    gathered.load()
    shell = gathered._others[0]._process
    assert shell.stdin is not None
    shell.stdin.close()

    async def rounds() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RankLost, match="rank 1 of the target's 2 ended with status 5"):
        await gathered.while_whole(rounds())


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
