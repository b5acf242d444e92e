"""Model names to loaded models: the bundled tiny ones, local folders, and anything transformers can load.

Listing what is bundled and reading tokenizer files needs neither torch nor transformers; loading does, and says which
extra brings them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import tokenizers

from goodspeed import quantisation
from goodspeed.errors import CorruptData, GoodSpeedError, ModelError, UnknownModel, UnsupportedModel
from goodspeed.extras import how_to_install
from goodspeed.reasons import reason

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "DEFAULT_DRAFT",
    "DEFAULT_TARGET",
    "BundledModel",
    "Files",
    "bundled",
    "check_sharing",
    "digest",
    "fingerprint",
    "load_model",
    "parameters_of",
    "refuse_recurrent",
    "resolve",
    "tokenizer_files",
    "weights_digest",
]

DEFAULT_TARGET = "pico-target"
DEFAULT_DRAFT = "pico-draft-l-tuned"

Files = dict[str, bytes]
"""A tokenizer as it crosses the wire: file name to contents."""

_MODELS = Path(__file__).with_name("models")
_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_HUB_TIMEOUT_S = 5.0
_WEIGHTS_SAMPLE = 64
"""How many values of a parameter go into a digest: enough to tell any two models apart, and read in no time."""
_CONFIG_HABITS = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
"""What a configuration says about where a model came from and how it was saved, not about what it computes."""
_ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


@dataclass(frozen=True, slots=True)
class BundledModel:
    """One model inside the package, as its card describes it."""

    name: str
    role: Literal["target", "draft"]
    path: Path
    parameters: int
    bytes: int
    acceptance: dict[str, float] | None
    """Against the bundled target under the ratio rule, by temperature; None for the target itself."""
    acceptance_coupled: dict[str, float] | None
    """The same under the coupled rule, by which a server verifies unless told otherwise."""
    description: str


def bundled() -> list[BundledModel]:
    """Read the cards of all bundled models: targets first, then drafts by size."""
    models = []
    for path in _MODELS.glob("*/card.json"):
        card = json.loads(path.read_bytes())
        models.append(
            BundledModel(
                name=card["name"],
                role=card["role"],
                path=path.parent,
                parameters=card["parameters"],
                bytes=card["bytes"],
                acceptance=_by_temperature(card["acceptance"]),
                acceptance_coupled=_by_temperature(card["acceptance_coupled"]),
                description=card["description"],
            )
        )
    return sorted(models, key=lambda model: (model.role != "target", model.parameters, model.name))


def _by_temperature(acceptance: dict[str, float] | None) -> dict[str, float] | None:
    return acceptance and {temperature: acceptance[temperature] for temperature in ("0", "0.7", "1")}


def resolve(name: str) -> str:
    """Turn a bundled name into its folder; leave paths and Hugging Face names as they are."""
    folder = _MODELS / name
    if "/" not in name and folder.is_dir():
        return str(folder)
    return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name


def load_model(
    name: str, *, device: str = "auto", dtype: str = "auto", ranks: int = 1, quantize: str | None = None
) -> PreTrainedModel:
    """Load a causal language model, ready to run.

    Args:
        name: bundled, a local folder, or a Hugging Face name.
        device: a torch device, or `auto`: a GPU if there is one.
        dtype: a torch floating-point type, or `auto`: bfloat16, but on a CPU float32, unless that is measured to be
            much slower and the model was stored in bfloat16; of a checkpoint that is quantised, as it says itself.
        ranks: how many processes share it, by transformers' own plan; all of them load it, each its part, once they
            have met (`torch.distributed.init_process_group`).
        quantize: how its weights are to be quantised, as `read_quantisation` reads it; None: as they are stored.

    Raises:
        UnknownModel: nothing by that name can be loaded.
        UnsupportedModel: it keeps a recurrent state, so that rejected tokens could not be rolled back, or so many
            ranks cannot share it.
        ModelError: torch or what a quantiser needs is not installed, or the device or dtype does not exist.
        InvalidRequest: transformers has no such quantisation.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils.logging import disable_default_handler, disable_progress_bar, enable_propagation
    except ImportError as error:
        raise ModelError(
            f"loading {name!r} needs torch and transformers ({error.name} is missing): {how_to_install('models')}"
        ) from None
    from goodspeed.devices import device_named, dtype_named

    where = device_named(device)
    kind = dtype_named(dtype, where)
    source = resolve(name)
    # A bar for every model that is loaded would stand between a user's prompt and the text.
    # What it has to say goes where the log of this process goes.
    for quieten in (disable_progress_bar, disable_default_handler, enable_propagation):
        cast("Any", quieten)()
    local = _local_only(source)
    with _loading(name):
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        refuse_recurrent(name, config)
        stored = quantisation.quantised_by(config)
        options = quantisation.options(name, stored, quantize, where)
        if ranks > 1:
            options |= _shared(name, config, ranks)
        elif dtype == "auto" and stored is not None:
            kind = getattr(config, "dtype", None) or kind
        elif dtype == "auto" and where.type == "cpu" and quantize is None:  # ranks could not agree on what they measure
            from goodspeed.engine.precision import precision_on_cpu

            kind = precision_on_cpu(config)
        load = cast("Any", AutoModelForCausalLM.from_pretrained)
        with quantisation.complaints(name, stored, quantize):
            model, loading = load(source, dtype=kind, local_files_only=local, output_loading_info=True, **options)
    lacking = sorted(loading["missing_keys"])
    if lacking:
        # The library would go on with random numbers in their place.
        raise UnknownModel(
            f"{name!r} is incomplete: {len(lacking)} of its weights are missing, {lacking[0]} among them; "
            "copy it again, or see whether its config.json is that of these weights"
        )
    # A quantiser has put its weights where they are to be.
    placed = model if quantisation.is_quantised(model) else model.to(where)
    return cast("PreTrainedModel", placed.eval().requires_grad_(False))


def check_sharing(name: str, ranks: int) -> None:
    """Refuse a model that so many processes cannot share, before any of them loads it.

    Raises:
        UnknownModel: nothing by that name can be loaded.
        UnsupportedModel: transformers has no plan for it, or its heads do not come out even.
    """
    from transformers import AutoConfig

    source = resolve(name)
    with _loading(name):
        _shared(name, AutoConfig.from_pretrained(source, local_files_only=_local_only(source)), ranks)


def _shared(name: str, config: PretrainedConfig, ranks: int) -> dict[str, Any]:
    """What makes transformers load a rank's part of a model."""
    from transformers.distributed.configuration_utils import DistributedConfig

    from goodspeed.engine.support import check_ranks

    check_ranks(name, config, ranks)
    return {"distributed_config": DistributedConfig(tp_size=ranks, tp_plan="auto")}


@contextlib.contextmanager
def _loading(name: str) -> Iterator[None]:
    """Whatever stands in a configuration goes through code that did not expect it: any error may come of it."""
    try:
        yield
    except GoodSpeedError:
        raise
    except Exception as error:
        known = ", ".join(model.name for model in bundled())
        raise UnknownModel(
            f"cannot load a model named {name!r}: it is neither bundled ({known}), nor a folder with a causal language "
            f"model, nor a Hugging Face name that can be reached from here ({reason(error)})"
        ) from None


def _local_only(source: str) -> bool:
    """Whether a model is to be sought on this machine alone.

    A name without an owner is nearly always a mistyped one, and so it is where the hub does not answer: its client
    would try again for the better part of a minute, for every file.
    """
    return Path(source).is_dir() or "/" not in source or not _hub_answers(source)


@functools.cache
def _hub_answers(name: str) -> bool:
    """Ask the hub about a model, once and for seconds only."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
    except HfHubHTTPError:
        return True
    # Whatever a transport raises that the client chose for itself.
    except Exception:
        return False
    return True


def refuse_recurrent(name: str, config: PretrainedConfig) -> None:
    """Refuse a model whose past is a state, not slots: a rejected token could not be taken back out of it.

    Raises:
        UnsupportedModel: naming the layers.
    """
    text_config = config.get_text_config()
    layers: list[str] = list(getattr(text_config, "layer_types", None) or getattr(text_config, "layers_block_type", []))
    recurrent = sorted({layer for layer in layers if layer not in _ATTENTION_KINDS and layer != "attention"})
    kind = text_config.model_type
    if not recurrent and any(hint in kind for hint in ("mamba", "rwkv", "recurrent_gemma", "xlstm")):
        recurrent = [kind]
    if recurrent:
        raise UnsupportedModel(
            f"{name!r} ({kind}) has recurrent layers ({', '.join(recurrent)}): rejected tokens cannot be rolled back "
            "out of a recurrent state; choose a model whose layers are all attention, such as Qwen3 or Llama"
        )


def parameters_of(weights: Path) -> int:
    """How many parameters a safetensors file holds; nothing of them is read.

    Raises:
        CorruptData: it is cut off, or no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.offset_keys())
    except (OSError, SafetensorError) as error:
        raise CorruptData(f"{weights} cannot be read ({error}): copy it again") from None


def tokenizer_files(name: str) -> Files:
    """The tokenizer of a model: `tokenizer.json`, and a `tokenizer_config.json` with the chat template.

    Raises:
        UnknownModel: it has none that can be loaded.
        ModelError: the name is not a local folder and transformers is not installed.
    """
    folder = Path(resolve(name))
    if (folder / _TOKENIZER).is_file():
        files = {_TOKENIZER: (folder / _TOKENIZER).read_bytes()}
        config = _read_config(folder / _TOKENIZER_CONFIG)
        template = folder / "chat_template.jinja"
        if template.is_file():
            try:
                config["chat_template"] = template.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UnknownModel(f"{template} cannot be read: {reason(error)}") from None
    else:
        files, config = _converted_tokenizer(name)
    try:
        tokenizers.Tokenizer.from_buffer(files[_TOKENIZER])
    # The library raises a bare Exception for whatever it cannot read.
    except Exception as error:
        raise UnknownModel(f"{folder / _TOKENIZER} is no tokenizer: {reason(error)}") from None
    kept = {key: config[key] for key in ("chat_template", "bos_token", "eos_token") if config.get(key) is not None}
    files[_TOKENIZER_CONFIG] = json.dumps(kept, sort_keys=True).encode()
    return files


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise UnknownModel(f"{file} is not JSON: {reason(error)}") from None
    if not isinstance(config, dict):
        raise UnknownModel(f"{file} is no JSON object")
    return config


def _converted_tokenizer(name: str) -> tuple[Files, dict[str, Any]]:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ModelError(f"loading the tokenizer of {name!r} needs transformers: {how_to_install('models')}") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), local_files_only=_local_only(resolve(name)))
        backend = tokenizer.backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        raise UnknownModel(f"cannot load the tokenizer of {name!r}: {reason(error)}") from None
    config = {
        "chat_template": tokenizer.chat_template,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
    }
    return {_TOKENIZER: backend.to_str().encode()}, config


def digest(files: Files) -> str:
    """Name tokenizer files by their contents: what an agent's cache is keyed by."""
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
    return whole.hexdigest()[:32]


def fingerprint(files: Files) -> str:
    """Name a vocabulary: what a draft has to share with its target.

    Two tokenizers have the same fingerprint if they cut every text into the same ids. Chat template, padding and
    truncation are left out: they do not change what an id means.
    """
    tokenizer = json.loads(files[_TOKENIZER])
    core = {key: tokenizer.get(key) for key in ("model", "normalizer", "pre_tokenizer")}
    core["added_tokens"] = sorted((token["id"], token["content"]) for token in tokenizer.get("added_tokens", []))
    return hashlib.sha256(json.dumps(core, sort_keys=True).encode()).hexdigest()[:32]


def weights_digest(model: PreTrainedModel) -> str:
    """Name a model by what it computes: its configuration, and a sample of every parameter.

    Independent of device, process and path; another precision is another model. Of one that ranks share it is that of
    the whole, and all of them have to ask for it at once.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _CONFIG_HABITS}
    whole = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    quantised = quantisation.is_quantised(model)
    for name, weight in quantisation.plain_tensors(model) if quantised else model.named_parameters():
        stride = -(-weight.numel() // _WEIGHTS_SAMPLE) or 1
        values: Any = weight.detach()
        if hasattr(values, "full_tensor"):  # a rank's part of it
            values = values.full_tensor()
        sample = values.flatten()[::stride].float().cpu().numpy()
        whole.update(f"{name}\0{tuple(weight.shape)}\0{weight.dtype}\0".encode() + sample.tobytes())
    return whole.hexdigest()[:32]
