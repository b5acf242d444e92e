"""Models run leanly: the logits are those of transformers' own code, or it is its own code that runs."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from goodspeed.catalog import weights_digest
from goodspeed.engine import Engine, Layout, Segment, lean
from tests.tiny_models import CONTEXT, VOCAB, tiny_llama, tiny_mistral, tiny_qwen3

ROWS = 3
TOLERANCE = 1e-4
LAYOUTS: tuple[Layout, ...] = ("packed", "padded")
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
Build = Callable[[], PreTrainedModel]


def drawn(model: PreTrainedModel) -> PreTrainedModel:
    """With norms and biases that are drawn too: ones and zeros would hide that they are left out."""
    generator = torch.Generator().manual_seed(1)
    for parameter in cast(nn.Module, model).parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def seeded(model_class: Any, config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return cast(PreTrainedModel, model_class(config))


def llama() -> PreTrainedModel:
    return drawn(tiny_llama())


def llama_with_biases() -> PreTrainedModel:
    return drawn(tiny_llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True))


def llama_3() -> PreTrainedModel:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": CONTEXT // 2,
    }
    return drawn(tiny_llama(rope_parameters=rope))


def mistral() -> PreTrainedModel:
    return drawn(tiny_mistral())


def qwen2() -> PreTrainedModel:
    sliding = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    return drawn(seeded(Qwen2ForCausalLM, Qwen2Config(**SHAPE | sliding)))


def qwen3() -> PreTrainedModel:
    return drawn(tiny_qwen3())


def phi3() -> PreTrainedModel:
    return seeded(Phi3ForCausalLM, Phi3Config(**SHAPE))


def gemma() -> PreTrainedModel:
    return seeded(GemmaForCausalLM, GemmaConfig(**SHAPE, head_dim=8))


def granite() -> PreTrainedModel:
    return seeded(GraniteForCausalLM, GraniteConfig(**SHAPE, residual_multiplier=0.5))


def smollm3() -> PreTrainedModel:
    return seeded(SmolLM3ForCausalLM, SmolLM3Config(**SHAPE, no_rope_layers=[1, 0, 1]))


def ministral3() -> PreTrainedModel:
    """Scales its queries, but only those far into a text."""
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "llama_4_scaling_beta": 0.5,
        "original_max_position_embeddings": CONTEXT // 3,
    }
    return seeded(Ministral3ForCausalLM, Ministral3Config(**SHAPE, head_dim=8, rope_parameters=rope))


LEAN: tuple[Build, ...] = (llama, llama_with_biases, llama_3, mistral, qwen2, qwen3)
OTHERS: tuple[Build, ...] = (phi3, gemma, granite, smollm3, ministral3)


def new_engine(model: PreTrainedModel, layout: Layout = "packed", dtype: torch.dtype = torch.float32) -> Engine:
    return Engine(model, rows=ROWS, max_length=CONTEXT, layout=layout, device="cpu", dtype=dtype)


@torch.inference_mode()
def differences(model: PreTrainedModel, engine: Engine) -> Tensor:
    """By how much the engine's logits differ from those of full forwards, in ragged rounds over three rows."""
    rng = random.Random(0)
    rows = [[rng.randrange(VOCAB) for _ in range(count)] for count in (1, 30, CONTEXT - 12)]
    for row, tokens in enumerate(rows):
        engine.forward([Segment(row, 0, tokens, logits=0)])
    found = []
    for counts in ((1, 1, 1), (4, 1, 6), (2, 5, 3)):
        news = [[rng.randrange(VOCAB) for _ in range(count)] for count in counts]
        segments = [Segment(row, len(rows[row]), new, logits=len(new)) for row, new in enumerate(news)]
        rows = [tokens + new for tokens, new in zip(rows, news, strict=True)]
        expected = [model(torch.tensor([rows[row]])).logits[0, -len(new) :] for row, new in enumerate(news)]
        found.append(engine.forward(segments) - torch.cat(expected).float())
    return torch.cat(found)


@pytest.mark.parametrize("build", LEAN)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_run_leanly_the_logits_are_the_models_own(build: Build, layout: Layout) -> None:
    engine = new_engine(build(), layout)
    assert engine.is_lean
    assert differences(build(), engine).abs().max() < TOLERANCE


@pytest.mark.parametrize("build", LEAN)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_bfloat16_they_are_as_near_as_transformers_are(build: Build, layout: Layout) -> None:
    exact = build()
    leanly = new_engine(build(), layout, torch.bfloat16)
    plainly = Engine(
        build(), rows=ROWS, max_length=CONTEXT, layout=layout, device="cpu", dtype=torch.bfloat16, lean=False
    )
    assert leanly.is_lean
    assert not plainly.is_lean
    off, usual = (differences(exact, engine).square().mean().sqrt() for engine in (leanly, plainly))
    assert off < 1.25 * usual


@pytest.mark.parametrize("build", OTHERS)
def test_what_computes_something_else_runs_as_it_is(build: Build) -> None:
    engine = new_engine(build())
    assert not engine.is_lean
    assert differences(build(), engine).abs().max() < TOLERANCE


def memory(model: PreTrainedModel) -> int:
    """What all parameters take, bytes, each storage once."""
    storages = (parameter.untyped_storage() for parameter in cast(nn.Module, model).parameters())
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("build", LEAN)
def test_weights_are_moved_and_stay_what_they_are(build: Build) -> None:
    model, before = build(), build()
    assert new_engine(model).is_lean
    assert memory(model) == memory(before)
    assert weights_digest(model) == weights_digest(before)
    moved = {name: weight.data_ptr() for name, weight in model.state_dict().items()}
    for name, weight in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    assert new_engine(model).is_lean
    assert {name: weight.data_ptr() for name, weight in model.state_dict().items()} == moved


def test_weights_that_are_loaded_afterwards_are_those_that_run() -> None:
    model = llama()
    engine = new_engine(model)
    other = drawn(tiny_llama(seed=5))
    model.load_state_dict(other.state_dict())
    assert differences(other, engine).abs().max() < TOLERANCE


def swaps_halves(self: Any, heads: Tensor) -> Tensor:
    return heads


def forgets_the_gate(self: Any, hidden: Tensor) -> Tensor:
    return hidden


FAULTS = [(lean._Turn, swaps_halves), (lean._Norm, forgets_the_gate)]


@pytest.mark.parametrize(("part", "fault"), FAULTS)
def test_a_fault_is_found_at_the_start_and_transformers_serves(
    part: Any, fault: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(part, "__call__", fault)
    with caplog.at_level(logging.WARNING):
        engine = new_engine(llama())
    assert not engine.is_lean
    assert "LlamaForCausalLM runs as transformers has it" in caplog.text
    assert differences(llama(), engine).abs().max() < TOLERANCE


def test_an_error_is_a_fault_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(lean._Turn, "__call__", lambda self, heads: heads[..., 1:])
    engine = new_engine(llama())
    assert not engine.is_lean
    assert "run leanly it fails" in caplog.text
    assert differences(llama(), engine).abs().max() < TOLERANCE


def test_a_model_that_somebody_has_changed_is_left_alone() -> None:
    model: Any = llama()
    projection = model.model.layers[1].mlp.down_proj
    forward = projection.forward
    projection.forward = lambda hidden: forward(hidden)
    assert not new_engine(model).is_lean


@pytest.mark.filterwarnings("ignore")  # torch's own quantisation is to go; the types of its modules stand for others
def test_quantised_weights_are_left_alone() -> None:
    quantise: Any = torch.ao.quantization.quantize_dynamic
    quantised = quantise(llama(), {nn.Linear}, dtype=torch.qint8)
    assert not new_engine(quantised).is_lean
