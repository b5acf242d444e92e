"""Decoders like Llama, run by a few functions in the place of transformers' modules.

On a CPU much of a small model's pass is steps of Python and small kernels. Here a layer has one product for queries,
keys and values and one rotation for queries and keys, and nothing is handed from module to module. Weights that are
multiplied together stand together in memory, and the model's own parameters become views of them: nothing is there
twice. Gate and up stay apart: one product of both was measured to be slower than two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from goodspeed.engine.attention import AttendingBatch

__all__ = ["Asked", "Lean", "is_known"]

_MODEL = {"model", "lm_head"}
_DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a layer asks of its attention."""

    heads: int
    kv_heads: int
    head_dim: int
    scaling: float | None
    window: int | None


def is_known(model: PreTrainedModel) -> bool:
    """Whether a model has the modules of a Llama and no others, whole, in plain numbers, and nobody has changed one.

    What those modules compute is not to be seen here. A part that ranks share has replaced methods; quantised weights
    are of another type.
    """
    network: Any = model
    if any(_is_changed(module) for module in network.modules()) or _children(network) != _MODEL:
        return False
    decoder = network.model
    return (
        _children(decoder) == _DECODER
        and isinstance(decoder.embed_tokens, nn.Embedding)
        and _is_plain(network.lm_head)
        and _is_norm(decoder.norm)
        and all(_is_known_layer(layer) for layer in decoder.layers)
    )


def _is_known_layer(layer: nn.Module) -> bool:
    parts: Any = layer
    if _children(layer) != _LAYER or _children(parts.mlp) != _MLP:
        return False
    attention, mlp = parts.self_attn, parts.mlp
    inside = _children(attention)
    if inside not in (_ATTENTION, _ATTENTION | _HEAD_NORMS):
        return False
    norms = [parts.input_layernorm, parts.post_attention_layernorm]
    if inside > _ATTENTION:
        norms += [attention.q_norm, attention.k_norm]
    inputs = [attention.q_proj, attention.k_proj, attention.v_proj]
    linears = [*inputs, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return (
        all(map(_is_norm, norms))
        and all(map(_is_plain, linears))
        and len({linear.bias is None for linear in inputs}) == 1
    )


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _is_changed(module: nn.Module) -> bool:
    return bool("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


def _is_plain(linear: nn.Module) -> bool:
    if type(linear) is not nn.Linear:
        return False
    weight = linear.weight
    return type(weight) is nn.Parameter and type(weight.data) is Tensor and weight.is_floating_point()


def _is_norm(norm: nn.Module) -> bool:
    weight, epsilon = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 1 and isinstance(epsilon, float)


@dataclass(frozen=True, slots=True)
class _Linear:
    """A product, and what is added to it."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]

    @classmethod
    def of(cls, *linears: nn.Linear) -> _Linear:
        """Several as one, whose outputs stand side by side."""
        biases = [bias for linear in linears if (bias := linear.bias) is not None]
        return cls(_together([linear.weight for linear in linears]), _together(biases) if biases else None)

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _Norm:
    """Divides by the root mean square of the last dimension, and scales."""

    weight: Tensor
    epsilon: float

    @classmethod
    def of(cls, norm: Any) -> _Norm:
        return cls(norm.weight.data, norm.variance_epsilon)

    def __call__(self, hidden: Tensor) -> Tensor:
        return _normed(hidden, self.epsilon).mul_(self.weight)


def _normed(hidden: Tensor, epsilon: float) -> Tensor:
    """Divided by the root mean square of the last dimension; torch's own does the same in more steps."""
    norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
    scale: Tensor = norm.square_().div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
    return (hidden * scale).to(hidden.dtype)


def _together(parameters: Sequence[Tensor]) -> Tensor:
    """Several parameters as one tensor, one behind the other, of which they become views unless they are already."""
    first = parameters[0].data
    expected = first.storage_offset()
    for parameter in parameters:
        data = parameter.data
        beside = data.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (beside and data.is_contiguous() and data.storage_offset() == expected):
            break
        expected += data.numel()
    else:
        rows = sum(len(parameter) for parameter in parameters)
        return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, piece in zip(parameters, torch.split(whole, [len(one) for one in parameters]), strict=True):
        parameter.data = piece
    return whole


@dataclass(frozen=True, slots=True)
class _HeadNorm:
    """The norms of queries and of keys, a head at a time."""

    weight: Tensor  # [heads + kv_heads, head_dim]
    epsilon: float

    @classmethod
    def of(cls, attention: Any, asked: Asked) -> _HeadNorm | None:
        if not hasattr(attention, "q_norm"):
            return None
        query, key = attention.q_norm, attention.k_norm
        weights = [query.weight.data.expand(asked.heads, -1), key.weight.data.expand(asked.kv_heads, -1)]
        return cls(torch.cat(weights), query.variance_epsilon)

    def __call__(self, heads: Tensor) -> Tensor:
        return _normed(heads, self.epsilon).mul_(self.weight)


@dataclass(frozen=True, slots=True)
class _Layer:
    index: int
    asked: Asked
    before_attention: _Norm
    inputs: _Linear
    """Of queries, keys and values."""
    head_norm: _HeadNorm | None
    output: _Linear
    before_mlp: _Norm
    gate: _Linear
    up: _Linear
    activation: Callable[[Tensor], Tensor]
    down: _Linear

    @classmethod
    def of(cls, layer: Any, asked: Asked) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            index=attention.layer_idx,
            asked=asked,
            before_attention=_Norm.of(layer.input_layernorm),
            inputs=_Linear.of(attention.q_proj, attention.k_proj, attention.v_proj),
            head_norm=_HeadNorm.of(attention, asked),
            output=_Linear.of(attention.o_proj),
            before_mlp=_Norm.of(layer.post_attention_layernorm),
            gate=_Linear.of(mlp.gate_proj),
            up=_Linear.of(mlp.up_proj),
            activation=mlp.act_fn,
            down=_Linear.of(mlp.down_proj),
        )

    def run(self, hidden: Tensor, turn: _Turn, batch: AttendingBatch, lines: int) -> Tensor:
        """From [cells, hidden] to the next layer's; a cell is a token of the batch, padding included."""
        attended = self._attend(self.inputs(self.before_attention(hidden)), turn, batch, lines)
        hidden = self.output(attended).add_(hidden)
        normed = self.before_mlp(hidden)
        return self.down(self.activation(self.gate(normed)).mul_(self.up(normed))).add_(hidden)

    def _attend(self, inputs: Tensor, turn: _Turn, batch: AttendingBatch, lines: int) -> Tensor:
        """From [cells, (heads + 2 * kv_heads) * head_dim] to [cells, heads * head_dim]."""
        heads, kv_heads, head_dim = self.asked.heads, self.asked.kv_heads, self.asked.head_dim
        split = inputs.view(-1, heads + 2 * kv_heads, head_dim)
        turning = split[:, : heads + kv_heads]
        if self.head_norm is not None:
            turning = self.head_norm(turning)
        turned = turn(turning).view(lines, -1, heads + kv_heads, head_dim).transpose(1, 2)
        value = split[:, heads + kv_heads :].view(lines, -1, kv_heads, head_dim).transpose(1, 2)
        attended = batch.attend(
            self.index,
            turned[:, :heads],
            turned[:, heads:],
            value,
            scaling=self.asked.scaling,
            window=self.asked.window,
        )
        return attended.reshape(len(inputs), heads * head_dim)


class _Turn:
    """Rotary embedding of a batch: turns each head by its token's position.

    Args:
        cos: [lines, width, head_dim].
        sin: likewise; its first half is what the second half of a head is multiplied by, with the sign changed.
    """

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        head_dim = cos.shape[-1]
        self._half = head_dim // 2
        self._cos = cos.reshape(-1, 1, head_dim)
        self._sin = sin.reshape(-1, 1, head_dim).clone()
        self._sin[..., : self._half].neg_()

    def __call__(self, heads: Tensor) -> Tensor:
        """[cells, heads, head_dim], of any strides."""
        return torch.addcmul(heads * self._cos, heads.roll(self._half, -1), self._sin)


class Lean:
    """A decoder's forward pass.

    Args:
        model: one that `is_known`; its weights are moved.
        asked: by its layers of their attention.
    """

    def __init__(self, model: PreTrainedModel, asked: Mapping[int, Asked]) -> None:
        network: Any = model
        decoder = network.model
        self._embed: Callable[[Tensor], Tensor] = decoder.embed_tokens
        self._rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = decoder.rotary_emb
        self._layers = [_Layer.of(layer, asked[layer.self_attn.layer_idx]) for layer in decoder.layers]
        self._norm = _Norm.of(decoder.norm)
        self._head = _Linear.of(network.lm_head)

    def __call__(self, tokens: Tensor, positions: Tensor, wanted: Tensor, batch: AttendingBatch) -> Tensor:
        """Run a batch.

        Args:
            tokens: int64 [lines, width].
            positions: int64 [lines, width].
            wanted: int64 [wanted], of the lines' cells end to end.
            batch: attends.

        Returns:
            [wanted, vocab], the logits behind each wanted token.
        """
        embedded = self._embed(tokens)
        turn = _Turn(*self._rotary(embedded, positions))
        hidden = embedded.flatten(0, 1)  # [cells, hidden]
        for layer in self._layers:
            hidden = layer.run(hidden, turn, batch, len(tokens))
        return self._head(self._norm(hidden[wanted]))
