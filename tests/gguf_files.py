"""What GGUF files are made of in tests: tiny models, their vocabulary, and the bundled models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Cohere2Config, Cohere2ForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from bench.gguf import write_gguf
from goodspeed import catalog
from goodspeed_agent.tokenizer import TargetTokenizer
from tests.tiny_models import CONTEXT, VOCAB, WINDOW

__all__ = ["require_llama_cpp", "tiny_cohere2", "tiny_mamba", "word_tokens", "write_bundled"]


def tiny_cohere2(context: int = CONTEXT) -> PreTrainedModel:
    """Three layers with a sliding window, and one that sees everything."""
    torch.manual_seed(0)
    config = Cohere2Config(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=context, sliding_window=WINDOW, initializer_range=0.3,
        logit_scale=0.5, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return Cohere2ForCausalLM(config)


def tiny_mamba() -> PreTrainedModel:
    """A recurrent state, and no keys or values."""
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, state_size=8, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return MambaForCausalLM(config)


def word_tokens(count: int = VOCAB) -> list[str]:
    """The vocabulary of `serving.tiny_tokenizer`."""
    return [f"w{token}" for token in range(count)]


def require_llama_cpp() -> None:
    """Skip the test, and say why, where llama.cpp or what writes its files is not installed."""
    for module, package in (("llama_cpp", ".[gguf]"), ("gguf", "gguf")):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install '{package}' to test GGUF drafts")


def write_bundled(path: Path, name: str) -> Path:
    """Write a bundled model with the vocabulary that it has."""
    tokenizer = TargetTokenizer(catalog.tokenizer_files(name))
    return write_gguf(path, catalog.load_model(name, device="cpu"), [token or "" for token in tokenizer.tokens])
