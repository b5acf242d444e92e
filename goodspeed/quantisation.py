"""Quantised weights, which transformers' own quantisers make and run: nothing of ours converts or moves them.

```
config.json with a quantization_config --+
                                         +-> a quantiser -> weights of its own types, on their device
--quantize, where config.json has none --+
```
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from goodspeed.errors import GoodSpeedError, InvalidRequest, ModelError, UnsupportedModel
from goodspeed.reasons import reason

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "can_be_recorded",
    "complaints",
    "is_quantised",
    "largest_weight",
    "options",
    "plain_tensors",
    "quantised_by",
    "read_quantisation",
]

_INT8 = {
    "_type": "Int8WeightOnlyConfig",
    "_version": 2,
    # Nothing is compiled here, and with it torch would multiply float32 less exactly everywhere.
    "_data": {"set_inductor_config": False},
}
_NAMED: dict[str, dict[str, Any]] = {
    "int8": {"quant_method": "torchao", "quant_type": {"default": _INT8}},
    "bitsandbytes_4bit": {"load_in_4bit": True},
    "bitsandbytes_8bit": {"load_in_8bit": True},
}
"""Names for what would have to be spelled out; any other name is that of a method with its own defaults."""
_HOW = 'give int8, a method\'s name such as fp8, or all of it as JSON: {"quant_method": "quanto", "weights": "int4"}'


def read_quantisation(text: str) -> dict[str, Any]:
    """What an operator says of quantisation, as transformers' `quantization_config` has it.

    Args:
        text: `int8`, the name of a method, or a JSON object.

    Raises:
        InvalidRequest: it is none of these, or names no method.
    """
    if re.fullmatch(r"[\w-]+", text):
        return copy.deepcopy(_NAMED.get(text, {"quant_method": text}))
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"quantize is {text!r}, which is no JSON ({error}): {_HOW}") from None
    if not isinstance(config, dict) or not isinstance(_method(config), str):
        raise InvalidRequest(f"quantize is {text!r}, and names no quant_method: {_HOW}")
    return config


def _method(config: Mapping[str, Any]) -> Any:
    """By the name that transformers has its quantiser under; bitsandbytes has two."""
    for bits in ("4bit", "8bit"):
        if config.get(f"load_in_{bits}"):
            return f"bitsandbytes_{bits}"
    return config.get("quant_method")


def quantised_by(config: PretrainedConfig) -> str | None:
    """The method that a checkpoint's weights are stored by; None if they are plain numbers."""
    parts = (config, config.get_text_config())
    stored = next((found for part in parts if (found := getattr(part, "quantization_config", None))), None)
    return None if stored is None else str(_method(stored))


def options(name: str, stored: str | None, asked: str | None, device: torch.device) -> dict[str, Any]:
    """What makes transformers load a model with a quantiser; nothing for a model that is to have none.

    Args:
        name: of the model.
        stored: what it is quantised by already.
        asked: as for `read_quantisation`. A checkpoint that is quantised takes from it how it is to be loaded, such as
            a backend, if the method is the same.
        device: where the quantiser is to put every weight.

    Raises:
        UnsupportedModel: the checkpoint is quantised in a way that transformers does not know.
        InvalidRequest: transformers cannot read what was asked for.
        ModelError: a package is missing.
    """
    if stored is None and asked is None:
        return {}
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoQuantizationConfig

    known = ", ".join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))
    if stored is not None and stored not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        # The library would go on without a quantiser, and find no weights of the shapes that it expects.
        raise UnsupportedModel(
            f"the weights of {name!r} are quantised by {stored!r}, and transformers knows {known}: choose a "
            "checkpoint of one of these, or install a transformers that knows it"
        )
    found: dict[str, Any] = {"device_map": {"": str(device)}}
    if asked is not None:
        config = read_quantisation(asked)
        method = _method(config)
        if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
            raise InvalidRequest(f"quantize: there is no method {method!r}: choose int8, {known}")
        with complaints(name, None, asked):
            try:
                found["quantization_config"] = AutoQuantizationConfig.from_dict(config)
            except (KeyError, TypeError, ValueError, AssertionError) as error:
                raise InvalidRequest(f"quantize: {method} does not take {asked!r} ({_said(error)})") from None
    return found


@contextlib.contextmanager
def complaints(name: str, stored: str | None, asked: str | None) -> Iterator[None]:
    """Say what stands in a quantiser's way: a package that is missing, a device that it has no kernels for.

    Args:
        name: of the model.
        stored: what it is quantised by already.
        asked: as for `read_quantisation`.

    Raises:
        ModelError: instead of whatever is raised in the block.
    """
    try:
        yield
    except GoodSpeedError:
        raise
    except Exception as error:
        method = stored or (asked and _method(read_quantisation(asked)))
        if method is None:
            raise
        package = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
        lacking = f": pip install {package}" if package else ""
        raise ModelError(
            f"{name!r} cannot be loaded with weights quantised by {method} ({_said(error)}){lacking}"
        ) from None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {reason(error)}"


def is_quantised(model: PreTrainedModel) -> bool:
    """Whether a quantiser runs its weights; one that has made plain numbers of them while loading does not."""
    return bool(getattr(model, "is_quantized", False))


def can_be_recorded(model: PreTrainedModel) -> bool:
    """Whether passes may be recorded and replayed.

    Kernels of other packages may read values on the host, or run on streams that a recording does not see: quantisers
    say of themselves whether theirs can be compiled, for which the same holds.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    return quantiser is None or bool(quantiser.is_compileable)


def plain_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What a quantised model has stored, by name; scales are buffers in some, and parts of weights in others."""
    import torch

    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            yield from _inner(name, value)


def _inner(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that one of another type is made of; those of a byte as bytes, since not all of them are numbers."""
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if is_traceable_wrapper_subclass(value):
        for part in value.__tensor_flatten__()[0]:
            yield from _inner(f"{name}.{part}", getattr(value, part))
    else:
        value = value.detach()
        yield name, value.contiguous().view(torch.uint8) if value.dtype.itemsize == 1 else value


def largest_weight(model: PreTrainedModel) -> int:
    """How many numbers the largest quantised matrix has, which may be written out to be multiplied; 0 without any."""
    from torch import Tensor

    def is_plain(weight: object) -> bool:
        return isinstance(weight, Tensor) and type(weight.data) is Tensor and weight.dtype == model.dtype

    modules: Any = model.modules() if is_quantised(model) else ()
    return max(
        (
            module.in_features * module.out_features
            for module in modules
            if hasattr(module, "in_features") and not is_plain(getattr(module, "weight", None))
        ),
        default=0,
    )
