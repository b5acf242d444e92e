"""Which models the engine runs: those whose every layer keeps keys and values, a slot a token."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.distributed.tensor_parallel import get_kv_heads_per_rank

from goodspeed.errors import UnsupportedModel
from goodspeed.quantisation import quantised_by

__all__ = ["check_layers", "check_positions", "check_ranks", "reach"]

_SERVED = {"full_attention", "sliding_attention"}


def check_layers(model: PreTrainedModel) -> None:
    """Refuse a model with a layer that slots cannot hold.

    Raises:
        UnsupportedModel: it keeps a recurrent state, attends in a way that is not done here, or has attention that
            cannot be replaced.
    """
    name = type(model).__name__
    config: Any = model.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _SERVED)
    if model._is_stateful or others:
        kinds = ", ".join(others) or "recurrent state"
        raise UnsupportedModel(
            f"{name} has layers of the kind {kinds}, and only full and sliding-window attention can be served: "
            "nothing else can be rolled back when drafted tokens are rejected; choose a target like Llama or Qwen3"
        )
    if model.config.is_encoder_decoder or not model._supports_attention_backend:
        raise UnsupportedModel(
            f"{name} is not a decoder whose attention transformers can replace (AttentionInterface): "
            "choose a target like Llama, Qwen3 or Mistral"
        )


def check_positions(model: PreTrainedModel, max_length: int) -> None:
    """Refuse rows longer than the model's positions reach.

    Raises:
        UnsupportedModel: `max_length` is too much for it.
    """
    limit = reach(model)
    if limit is not None and max_length > limit:
        raise UnsupportedModel(
            f"{type(model).__name__} holds {limit} positions and streams of up to {max_length} tokens are asked for: "
            f"serve it with a maximum length of {limit} or less"
        )


def reach(model: PreTrainedModel) -> int | None:
    """How many positions a row may have; None if the model sets no limit.

    Rotary embeddings of the kinds `dynamic` and `longrope` change for *every* row once one row of the batch passes a
    length; up to that length they are like any other.
    """
    config: Any = model.config.get_text_config()
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        limit = rope.get("original_max_position_embeddings", limit)
    return limit


def check_ranks(name: str, config: PretrainedConfig, ranks: int) -> None:
    """Refuse a model that so many ranks cannot share.

    Raises:
        UnsupportedModel: transformers has no plan for it, it is quantised, or its heads do not come out even.
    """
    text: Any = config.get_text_config()
    if (method := quantised_by(config)) is not None:
        raise UnsupportedModel(
            f"the weights of {name!r} are quantised by {method}, and how ranks share such weights has not been tried: "
            "serve it on one device, with --tensor-parallel 1, or choose a checkpoint that is not quantised"
        )
    if not text.base_model_tp_plan:
        raise UnsupportedModel(
            f"transformers has no plan by which {name!r} ({text.model_type}) could be shared: serve it on one device, "
            "with --tensor-parallel 1, or choose a target like Llama, Qwen3 or Mistral"
        )
    heads, kv_heads = text.num_attention_heads, _kv_heads(text)
    if heads % ranks or get_kv_heads_per_rank(text.base_model_tp_plan, kv_heads, ranks) is None:
        ways = [str(n) for n in range(2, kv_heads + 1) if heads % n == kv_heads % n == 0]
        raise UnsupportedModel(
            f"{name!r} has {heads} heads and {kv_heads} of keys and values, and {ranks} ranks cannot have as many each:"
            f" choose --tensor-parallel {' or '.join(['1', *ways])}"
        )


def _kv_heads(text: Any) -> int:
    heads: int = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return heads
