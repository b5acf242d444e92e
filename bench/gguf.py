"""GGUF files, written here: models of transformers as llama.cpp wants them, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

__all__ = ["write_gguf"]

Array = NDArray[np.float32]

_RECURRENT_CONTEXT = 96
"""Of a model that has no limit; the format wants a number."""


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokens: Sequence[str] | None,
    describe: Callable[[Any], None] = lambda writer: None,
) -> Path:
    """Write a Llama, a Cohere2 or a Mamba.

    Args:
        path: where to.
        model: which.
        tokens: its vocabulary; None for a file without one.
        describe: is given the `gguf.GGUFWriter`, for more to say of the model.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    _DESCRIPTIONS[config.model_type](writer, config)
    describe(writer)
    if tokens is None:
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(config.vocab_size)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
        writer.add_token_merges(["w 0"])  # Of no use here, but llama.cpp wants some.
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            writer.add_tensor(_their_name(name), _arranged(name, weight.float().numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe_attention(writer: Any, config: Any) -> None:
    head_dim = config.head_dim
    writer.add_context_length(config.max_position_embeddings)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _describe_llama(writer: Any, config: Any) -> None:
    _describe_attention(writer, config)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _describe_cohere2(writer: Any, config: Any) -> None:
    _describe_attention(writer, config)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_logit_scale(config.logit_scale)
    writer.add_sliding_window(config.sliding_window)


def _describe_mamba(writer: Any, config: Any) -> None:
    writer.add_context_length(_RECURRENT_CONTEXT)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.intermediate_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.time_step_rank)


_DESCRIPTIONS = {"llama": _describe_llama, "cohere2": _describe_cohere2, "mamba": _describe_mamba}

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "backbone.embeddings": "token_embd",
    "backbone.norm_f": "output_norm",
    "backbone.layers": "blk",
    "mixer.in_proj": "ssm_in",
    "mixer.conv1d": "ssm_conv1d",
    "mixer.x_proj": "ssm_x",
    "mixer.dt_proj": "ssm_dt",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.out_proj": "ssm_out",
    ".norm.": ".attn_norm.",
}


def _their_name(name: str) -> str:
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _arranged(name: str, weight: Array, config: Any) -> Array:
    """A weight as llama.cpp wants it."""
    if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
        # It rotates neighbouring pairs of a head's dimensions, where transformers rotates halves.
        halves = weight.reshape(-1, 2, config.head_dim // 2, weight.shape[-1])
        return halves.swapaxes(1, 2).reshape(weight.shape)
    if name.endswith("A_log"):
        return -np.exp(weight)
    if name.endswith("conv1d.weight"):
        return weight.squeeze(1)
    return weight
