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
    "pico-draft-m": Shape(width=256, layers=1, heads=4, kv_heads=2, mlp_width=768),
    "pico-draft-l": Shape(width=256, layers=2, heads=4, kv_heads=2, mlp_width=768),
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


def inherit(draft: LlamaForCausalLM, target: LlamaForCausalLM) -> None:
    """Starts a draft of the target's width from its embeddings and final norm, and from evenly spread layers of it."""
    draft.model.embed_tokens.load_state_dict(target.model.embed_tokens.state_dict())
    draft.model.norm.load_state_dict(target.model.norm.state_dict())
    last = len(target.model.layers) - 1
    for number, layer in enumerate(draft.model.layers):
        source = round(number * last / max(len(draft.model.layers) - 1, 1))
        layer.load_state_dict(target.model.layers[source].state_dict())
