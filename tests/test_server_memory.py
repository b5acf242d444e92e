"""The slab's size, computed before it is made, is what the engine then takes."""

from __future__ import annotations

import pytest
import torch

from goodspeed.engine import Engine
from goodspeed.errors import InvalidRequest
from goodspeed_server.memory import kv_bytes_per_token, rows_that_fit
from goodspeed_server.server import VerificationServer
from tests.serving import tiny_settings, tiny_tokenizer
from tests.tiny_models import tiny_llama, tiny_mistral, tiny_qwen3


@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen3, tiny_mistral])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computed_and_allocated_agree(build: object, dtype: torch.dtype) -> None:
    assert callable(build)
    model = build()
    engine = Engine(model, rows=3, max_length=20, layout="packed", device="cpu", dtype=dtype)
    assert engine.kv_bytes_per_token == kv_bytes_per_token(model.config, dtype)
    assert engine.kv_bytes == 3 * 20 * kv_bytes_per_token(model.config, dtype)


def test_what_does_not_fit_is_refused_with_what_does() -> None:
    assert rows_that_fit(8, 100, 10, 10_000) == 8
    with pytest.raises(InvalidRequest, match="--max-streams 8 or --max-length 80") as refused:
        rows_that_fit(10, 100, 10, 10_000)
    assert refused.value.code == "kv_memory"
    assert rows_that_fit(10, 80, 10, 10_000) == 10
    with pytest.raises(InvalidRequest, match="a smaller target"):
        rows_that_fit(1, 99, 10, 10)


def test_a_server_refuses_to_start_with_more_than_there_is() -> None:
    with pytest.raises(InvalidRequest, match="GiB for keys and values"):
        VerificationServer(tiny_settings(max_streams=10**9), tiny_llama(), tiny_tokenizer())
