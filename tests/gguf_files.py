"""GGUF files, written here: tiny models of transformers as llama.cpp wants them, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Cohere2Config, Cohere2ForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from goodspeed import catalog
from goodspeed_agent.tokenizer import TargetTokenizer
from tests.tiny_models import CONTEXT, VOCAB, WINDOW

__all__ = ["require_llama_cpp", "tiny_cohere2", "tiny_mamba", "word_tokens", "write_bundled", "write_gguf"]

Array = NDArray[np.float32]


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
    for module, package in (("llama_cpp", "goodspeed[gguf]"), ("gguf", "gguf")):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install '{package}' to test GGUF drafts")


def write_bundled(path: Path, name: str) -> Path:
    """Write a bundled model with the vocabulary that it has."""
    tokenizer = TargetTokenizer(catalog.tokenizer_files(name))
    return write_gguf(path, catalog.load_model(name, device="cpu"), [token or "" for token in tokenizer.tokens])


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
    writer.add_context_length(CONTEXT)
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
