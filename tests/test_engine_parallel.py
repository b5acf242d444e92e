"""A model that two ranks share gives the logits of one that is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import GPT2Config, PretrainedConfig, PreTrainedModel

from goodspeed.catalog import weights_digest
from goodspeed.engine import Engine, Segment, parallel
from goodspeed.engine.group import Group, Place
from goodspeed.engine.parallel import LeadingEngine
from goodspeed.engine.support import check_ranks
from goodspeed.errors import RankLost, UnsupportedModel
from goodspeed_server.fitting import is_out_of_memory
from goodspeed_server.memory import kv_bytes_per_token
from tests.shared_engine import LAYOUTS, ROWS, Outcome, passes
from tests.system.forked import Forked
from tests.system.processes import ENVIRONMENT, reaped
from tests.tiny_models import CONTEXT, tiny_llama, tiny_mistral, tiny_qwen3

BUILDERS: tuple[Callable[[], PreTrainedModel], ...] = (tiny_llama, tiny_qwen3, tiny_mistral)
TOLERANCE = 1e-4


async def shared(models: list[PreTrainedModel], folder: Path) -> list[Outcome]:
    """What came of each on two ranks."""
    folders = [str(folder / str(number)) for number in range(len(models))]
    for model, path in zip(models, folders, strict=True):
        model.save_pretrained(path)
    arguments = ("2", (folder / "ranks").as_uri(), str(folder / "out"), *folders)
    environment = ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo"}
    start = [Forked.start("tests.shared_engine", str(rank), *arguments, environment=environment) for rank in range(2)]
    async with reaped(await start[0]) as first, reaped(await start[1]) as second:
        for (_, complaints), process in zip(
            await asyncio.gather(first.communicate(), second.communicate()), (first, second), strict=True
        ):
            assert process.returncode == 0, complaints.decode()
    outcomes: list[Outcome] = torch.load(folder / "out")
    return outcomes


async def test_two_ranks_compute_what_one_does(tmp_path: Path) -> None:
    outcomes = await shared([build() for build in BUILDERS], tmp_path)
    for build, outcome in zip(BUILDERS, outcomes, strict=True):
        whole = build()
        assert outcome["weights"] == weights_digest(whole)
        assert outcome["kv_bytes_per_token"] == kv_bytes_per_token(whole) // 2
        for layout in LAYOUTS:
            engine = Engine(build(), rows=ROWS, max_length=CONTEXT, layout=layout, device="cpu", dtype=torch.float32)
            expected, logits = passes(engine), outcome[layout]
            assert isinstance(logits, torch.Tensor)
            apart = float((logits - expected).abs().max())
            assert apart < TOLERANCE, f"{type(whole).__name__}, {layout}: logits are apart by {apart:.2g}"
            assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_heads_that_do_not_come_out_even_are_refused_with_what_would() -> None:
    config = tiny_llama(num_attention_heads=12, num_key_value_heads=4, head_dim=4).config
    check_ranks("tiny", config, 2)
    check_ranks("tiny", config, 4)
    for ranks in (3, 8):
        with pytest.raises(
            UnsupportedModel, match=r"12 heads and 4 of keys and values.*choose --tensor-parallel 1 or 2 or 4"
        ):
            check_ranks("tiny", config, ranks)


def test_a_model_that_transformers_has_no_plan_for_is_refused() -> None:
    config: PretrainedConfig = GPT2Config()
    with pytest.raises(UnsupportedModel, match=r"no plan by which 'old' \(gpt2\) could be shared"):
        check_ranks("old", config, 2)


class Alone(Group):
    """Rank 0's end of a group that nobody else is in."""

    def __init__(self) -> None:
        self.place = Place(0, 2, 0, 2, "")
        self.said: list[list[Any]] = []

    def tell(self, message: bytes) -> None:
        self.said.append(msgspec.msgpack.decode(message))


@pytest.fixture
def leading(monkeypatch: pytest.MonkeyPatch) -> tuple[LeadingEngine, list[list[Any]]]:
    """An engine that leads nobody, with the whole model, and what it says."""
    monkeypatch.setattr(parallel, "_limit_waiting", lambda _model: None)
    group = Alone()
    engine = LeadingEngine(
        tiny_llama(), group=group, rows=ROWS, max_length=CONTEXT, layout="padded", device="cpu", dtype=torch.float32
    )
    return engine, group.said


def test_whatever_touches_the_slab_is_said_before_it_is_done(
    leading: tuple[LeadingEngine, list[list[Any]]],
) -> None:
    engine, said = leading
    row = engine.allocate()
    engine.forward([Segment(row, 0, [1, 2, 3], 1)])
    engine.release(row)
    engine.forward([Segment(engine.allocate(), 0, (4,), 1)])  # what its last owner left behind goes first
    engine.resize(ROWS + 1, CONTEXT)
    engine.begin_anew(ROWS, CONTEXT)
    assert engine.end()
    assert said == [
        ["_Make", ROWS, CONTEXT, "padded", "float32"],
        ["_Run", [[row, 0, [1, 2, 3], 1]]],
        ["_Clear", row, 1],
        ["_Run", [[row, 0, [4], 1]]],
        ["_Resize", ROWS + 1, CONTEXT],
        ["_BeginAnew", ROWS, CONTEXT],
        ["_End"],
    ]


@pytest.mark.parametrize("change", [LeadingEngine.resize, LeadingEngine.begin_anew])
def test_what_cannot_be_done_is_not_said(
    leading: tuple[LeadingEngine, list[list[Any]]], change: Callable[[LeadingEngine, int, int], None]
) -> None:
    """The others would fail at it, and be gone."""
    engine, said = leading
    with pytest.raises(UnsupportedModel, match=f"holds {CONTEXT} positions"):
        change(engine, ROWS, CONTEXT + 1)
    with pytest.raises(AssertionError):
        engine.resize(ROWS - 1, CONTEXT)
    assert [call[0] for call in said] == ["_Make"]
    engine.forward([Segment(0, 0, [1], 1)])


def test_a_pass_that_fails_on_one_rank_is_the_end_of_all(
    leading: tuple[LeadingEngine, list[list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of memory too: the others are in the middle of that pass, and would take another for its rest."""
    engine, said = leading

    def fail(_segments: object) -> None:
        raise torch.OutOfMemoryError("no room\nfor 8 GiB")

    monkeypatch.setattr(engine, "_run_batch", fail)
    for _ in range(2):
        with pytest.raises(RankLost, match=r"2 ranks are out of step.*\(no room for 8 GiB\)") as lost:
            engine.forward([Segment(0, 0, [1], 1)])
        assert not is_out_of_memory(lost.value)
    assert not engine.end()
    assert [call[0] for call in said] == ["_Make", "_Run"]


def test_a_rank_at_work_is_not_told_to_end(
    leading: tuple[LeadingEngine, list[list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = leading
    run_batch = engine._run_batch

    def end_meanwhile(segments: Sequence[Segment]) -> torch.Tensor:
        assert not engine.end()
        return run_batch(segments)

    monkeypatch.setattr(engine, "_run_batch", end_meanwhile)
    engine.forward([Segment(0, 0, [1], 1)])
    assert engine.end()
