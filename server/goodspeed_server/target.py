"""The engine that a server's settings ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from goodspeed.engine import Engine, Layout
from goodspeed.errors import InvalidRequest
from goodspeed.timing import PassSample
from goodspeed_server.calibration import measure_passes
from goodspeed_server.free_memory import free_bytes
from goodspeed_server.memory import Footprint, kv_bytes_per_token, rows_that_fit
from goodspeed_server.settings import AUTO_MAX_LENGTH, ServerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from goodspeed_server.ranks import Ranks

__all__ = ["engine_of"]


def engine_of(
    settings: ServerSettings, model: PreTrainedModel, ranks: Ranks | None, make_engine: Callable[..., Engine]
) -> tuple[Engine, list[PassSample], int]:
    """Make the engine, and warm it up: its layout, and as many rows of such a length as were asked for, or as fit.

    Args:
        settings: the operator's choices.
        model: the target, or this rank's part of it.
        ranks: that share it; None where it is here as a whole.
        make_engine: as `Engine`, where it is here as a whole.

    Returns:
        It, how long its passes take, and how many tokens there is memory for in one.

    Raises:
        InvalidRequest: the model is not made for such a length, or the memory not for so many rows.
        UnsupportedModel: the engine cannot serve this architecture.
        RankLost: a rank is gone.
    """
    # Packed is the faster on a CPU; a GPU wants the padded layout's fixed shapes.
    fastest: Layout = "packed" if model.device.type == "cpu" else "padded"
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or AUTO_MAX_LENGTH
    if settings.max_length is not None and settings.max_length > limit:
        raise InvalidRequest(f"max-length is {settings.max_length} and {settings.model} was made for {limit}")
    max_length = settings.max_length or min(limit, AUTO_MAX_LENGTH)
    if ranks is None:
        token_bytes = kv_bytes_per_token(model)
        free = free_bytes(model.device)
    else:
        token_bytes, free, make_engine = ranks.token_bytes, ranks.free_bytes, ranks.make_engine
    footprint = Footprint.of(model, token_bytes, settings.rounds)
    rows = rows_that_fit(settings.max_streams, max_length, footprint, free)
    engine = make_engine(
        model,
        rows=rows,
        max_length=max_length,
        layout=fastest if settings.layout == "auto" else settings.layout,
        device=model.device,
        dtype=model.dtype,
    )
    measured, graph_bytes = _warmed_up(engine)
    footprint = replace(footprint, graph_bytes=graph_bytes)
    fitting = rows_that_fit(settings.max_streams, max_length, footprint, free)
    if fitting < rows:
        rows = fitting
        engine.begin_anew(rows, max_length)
        measured, _ = _warmed_up(engine)
    return engine, measured, footprint.pass_tokens(rows, max_length, free)


def _warmed_up(engine: Engine) -> tuple[list[PassSample], int]:
    """How long its passes take, and the memory that is gone with what was recorded of them meanwhile."""
    if engine.graphs is None:
        return measure_passes(engine), 0
    before = free_bytes(engine.device)
    measured = measure_passes(engine)
    return measured, max(0, before - free_bytes(engine.device))
