"""Tiny random models of the architectures that are served, and of some that are refused.

The weights are drawn wide, so that the logits are not flat and attention is not uniform.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

__all__ = ["CONTEXT", "VOCAB", "WINDOW", "tiny_llama", "tiny_mistral", "tiny_qwen3"]

VOCAB = 97
CONTEXT = 96
WINDOW = 7

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def tiny_llama(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Full attention, six query heads on two key-value heads."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**_SHAPE | changes))


def tiny_qwen3(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A layer of full attention below one with a sliding window, normalised queries and keys."""
    torch.manual_seed(seed)
    sliding = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    return Qwen3ForCausalLM(Qwen3Config(**_SHAPE | sliding | changes))


def tiny_mistral(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A sliding window in every layer."""
    torch.manual_seed(seed)
    return MistralForCausalLM(MistralConfig(**_SHAPE | {"sliding_window": WINDOW} | changes))
