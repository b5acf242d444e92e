"""Which precision a CPU is to use, by times that are made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from goodspeed.catalog import DEFAULT_TARGET, load_model
from goodspeed.engine import precision
from goodspeed.engine.precision import precision_on_cpu, quicker

LARGE: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
SMALL: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6}


def on_a_machine(float32_s: float, bfloat16_s: float) -> torch.dtype:
    """What is chosen where they take so long, each the first time much longer."""
    now_s, warm = 0.0, set[float]()

    def work(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds if seconds in warm else 100 * seconds
        warm.add(seconds)

    return quicker(lambda: work(float32_s), lambda: work(bfloat16_s), lambda: now_s)


@given(st.floats(1e-4, 1.0), st.floats(0.01, 0.69))
def test_bfloat16_where_it_is_clearly_quicker(seconds: float, share: float) -> None:
    assert on_a_machine(seconds, share * seconds) == torch.bfloat16


@given(st.floats(1e-4, 1.0), st.floats(0.72, 100.0))
def test_float32_where_it_is_not(seconds: float, share: float) -> None:
    assert on_a_machine(seconds, share * seconds) == torch.float32


@pytest.mark.parametrize(
    ("shape", "stored", "chosen"),
    [
        (LARGE, torch.bfloat16, torch.bfloat16),
        (LARGE, torch.float32, torch.float32),
        (LARGE, torch.float16, torch.float32),
        (SMALL, torch.bfloat16, torch.float32),
    ],
)
def test_only_large_models_that_were_stored_so(
    shape: dict[str, Any], stored: torch.dtype, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "quicker", lambda float32, bfloat16: torch.bfloat16)
    assert precision_on_cpu(LlamaConfig(**shape, dtype=stored)) == chosen


def test_both_ways_are_run_upon_the_same_product(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[Any] = []

    def note(float32: Any, bfloat16: Any) -> torch.dtype:
        products.extend((float32(), bfloat16()))
        return torch.float32

    monkeypatch.setattr(precision, "quicker", note)
    monkeypatch.setattr(precision, "_LARGE", 0)
    precision_on_cpu(LlamaConfig(**SMALL, dtype=torch.bfloat16))
    assert [product.dtype for product in products] == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(products[0], products[1].float(), atol=0.5, rtol=0)


def test_the_bundled_target_is_run_in_float32_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "quicker", lambda float32, bfloat16: torch.bfloat16)
    assert load_model(DEFAULT_TARGET, device="cpu").dtype == torch.float32
