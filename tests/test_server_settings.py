"""What an operator may choose, and what the server chooses where nobody did."""

from __future__ import annotations

import math
from typing import Any

import pytest

from goodspeed.engine import Layout
from goodspeed.errors import InvalidRequest
from goodspeed.scheduling import SCHEDULERS
from goodspeed_server import target
from goodspeed_server.memory import Footprint, kv_bytes_per_token
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import AUTO_MAX_LENGTH, AUTO_MAX_STREAMS, DoorSettings, RoundSettings, ServerSettings
from tests.planted import PlantedEngine
from tests.serving import tiny_tokenizer
from tests.tiny_models import CONTEXT, tiny_llama


@pytest.mark.parametrize(
    ("option", "edges", "beyond"),
    [
        ("capacity", [0, 10**9], [-1]),
        ("round_timeout_s", [0.0, 3600.0], [-1e-9, math.inf, math.nan]),
        ("prefill_chunk", [1], [0, -5]),
        ("max_waiting", [0], [-1]),
        ("beta", [1e-9, 1.0], [0.0, 1.0 + 1e-9, -0.5, math.nan]),
    ],
)
def test_a_number_out_of_range_is_refused_by_the_name_of_its_option(
    option: str, edges: list[float], beyond: list[float]
) -> None:
    for value in edges:
        assert getattr(RoundSettings(**{option: value}), option) == value  # type: ignore[arg-type]
    for value in beyond:
        with pytest.raises(InvalidRequest, match=f"^{option} must be .*above"):
            RoundSettings(**{option: value})  # type: ignore[arg-type]


def test_rounds_that_do_not_exist_are_named_with_those_that_do() -> None:
    with pytest.raises(InvalidRequest, match="rounds 'square' does not exist: choose auto, barrier, rolling"):
        RoundSettings(rounds="square")  # type: ignore[arg-type]


@pytest.mark.parametrize("scheduler", ["auto", *SCHEDULERS])
def test_every_scheduler_on_offer_may_be_chosen(scheduler: str) -> None:
    assert ServerSettings(scheduler=scheduler).scheduler == scheduler


def start(settings: ServerSettings, **model: Any) -> VerificationServer:
    """A server whose engine is made as the settings say, but runs no model."""

    def make_engine(
        _model: object, *, rows: int, max_length: int, layout: Layout, device: object, dtype: object
    ) -> PlantedEngine:
        engine = PlantedEngine(rows, max_length)
        engine.layout = layout
        return engine

    return VerificationServer(settings, tiny_llama(**model), tiny_tokenizer(), make_engine=make_engine)


@pytest.mark.parametrize(("made_for", "max_length"), [(CONTEXT, CONTEXT), (10**6, AUTO_MAX_LENGTH)])
def test_what_auto_stands_for(monkeypatch: pytest.MonkeyPatch, made_for: int, max_length: int) -> None:
    """The scheduler's and the rounds' are in the tests of rolling rounds."""
    monkeypatch.setattr(target, "free_bytes", lambda _device: 10**12)
    seen = start(ServerSettings(), max_position_embeddings=made_for).snapshot()
    assert (seen.rule, seen.layout) == ("coupled", "packed")  # packed, since this is a CPU
    assert (seen.rows, seen.kv_tokens) == (AUTO_MAX_STREAMS, AUTO_MAX_STREAMS * max_length)


def test_what_was_chosen_is_what_runs() -> None:
    chosen = ServerSettings(
        rule="ratio",
        layout="padded",
        max_streams=3,
        max_length=50,
        scheduler="fixed",
        rounds=RoundSettings(capacity=7),
    )
    seen = start(chosen).snapshot()
    assert (seen.rule, seen.layout, seen.rows, seen.kv_tokens) == ("ratio", "padded", 3, 150)
    assert (seen.scheduler, seen.capacity) == ("fixed", 7)


def test_without_a_number_of_streams_memory_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = RoundSettings(prefill_chunk=1)
    model = tiny_llama()
    footprint = Footprint.of(model, kv_bytes_per_token(model), rounds)
    monkeypatch.setattr(target, "free_bytes", lambda _device: footprint.bytes(10, CONTEXT))
    rows = start(ServerSettings(rounds=rounds)).snapshot().rows
    assert rows in range(7, 10), "most of what is free, and not all of it"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("port", -1),
        ("port", 65_536),
        ("max_streams", 0),
        ("max_length", 1),
        ("max_length", 0),
        ("threads", 0),
        ("tensor_parallel", 0),
        ("drain_s", -1e-9),
        ("drain_s", 86_401),
        ("drain_s", math.nan),
    ],
)
def test_a_number_out_of_range_is_named(option: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=f"^{option} must be "):
        ServerSettings(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_links", 0), ("max_links_per_address", 0), ("handshakes_per_minute", 0), ("failed_tokens_per_minute", -1),
        ("idle_s", -1.0), ("idle_s", math.inf), ("messages_per_s", 0.5), ("messages_per_s", math.nan),
        ("messages_per_s", math.inf),
    ],
)  # fmt: skip
def test_a_limit_that_lets_nobody_in_is_named(option: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=f"^{option} must be "):
        DoorSettings(**{option: value})  # type: ignore[arg-type]
