"""The shapes of the bundled models."""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.recipe.tokenizer import VOCAB_SIZE

CONTEXT_LENGTH = 1024


@dataclass(frozen=True)
class Shape:
    """A Llama of `layers` layers, `width` wide, with grouped key-value heads and tied embeddings."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int


SHAPES = {
    "pico-target": Shape(width=256, layers=6, heads=4, kv_heads=2, mlp_width=768),
    "pico-draft-s": Shape(width=64, layers=1, heads=2, kv_heads=1, mlp_width=192),
    "pico-draft-m": Shape(width=128, layers=2, heads=2, kv_heads=1, mlp_width=384),
    "pico-draft-l": Shape(width=192, layers=3, heads=3, kv_heads=1, mlp_width=576),
}


def build(shape: Shape, seed: int, end_of_text: int) -> LlamaForCausalLM:
    """A freshly initialised float32 model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.mlp_width,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
        initializer_range=0.02,
    )
    return LlamaForCausalLM(config)
