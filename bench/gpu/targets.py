"""Targets of real shapes with random weights, made where they run: no file, no network, no copy on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen3Config
from transformers.initialization import no_init_weights

__all__ = ["SHAPES", "Weights", "build"]

_SPREAD = 0.02


def _qwen3_14b() -> PretrainedConfig:
    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=5120,
        intermediate_size=17_408,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )


def _llama_3_1_8b() -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )


def _tiny() -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )


SHAPES: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen3-14b": _qwen3_14b,
    "llama-3.1-8b": _llama_3_1_8b,
    "tiny": _tiny,
}


@dataclass(frozen=True, slots=True)
class Weights:
    """What a forward pass reads, whatever its batch: everything but the embeddings, of which it takes a few rows."""

    body: int
    """Parameters that every token is multiplied with."""
    head: int
    """Parameters that every wanted position is multiplied with."""
    itemsize: int
    attention_operations: int
    """For one query and one slot, in all layers."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Weights:
        """Count a model's."""
        config: Any = model.config
        module: Any = model
        head: Tensor = module.get_output_embeddings().weight
        apart = {id(head), id(module.get_input_embeddings().weight)}
        body = sum(weight.numel() for weight in module.parameters() if id(weight) not in apart)
        attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
        return cls(body, head.numel(), model.dtype.itemsize, attention)

    @property
    def bytes(self) -> int:
        """Their memory."""
        return (self.body + self.head) * self.itemsize

    @staticmethod
    def bytes_of(config: PretrainedConfig, dtype: torch.dtype) -> int:
        """The memory that a model takes, embeddings too, before it is made."""
        made = build(config, torch.device("meta"), dtype)
        module: nn.Module = made
        return sum(weight.nbytes for weight in module.parameters())


def build(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Make a model with random weights on the device."""
    torch.manual_seed(0)
    models: Any = AutoModelForCausalLM
    with torch.device(device), no_init_weights():
        model: PreTrainedModel = models.from_config(config, dtype=dtype)
    module: nn.Module = model
    with torch.no_grad():
        for parameter in module.parameters():
            # Vectors are the scales of norms.
            parameter.fill_(1.0) if parameter.ndim == 1 else parameter.normal_(std=_SPREAD)
    return model
