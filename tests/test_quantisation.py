"""Targets whose weights transformers' own quantiser made: loaded, run and named as what they are, or refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, TorchAoConfig
from transformers.quantizers import quantizer_bnb_4bit
from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

from goodspeed.catalog import load_model, weights_digest
from goodspeed.engine import Engine, Layout, Segment
from goodspeed.engine.support import check_ranks
from goodspeed.errors import InvalidRequest, ModelError, UnsupportedModel
from goodspeed.quantisation import is_quantised, largest_weight, plain_tensors, read_quantisation
from goodspeed_server.memory import Footprint, kv_bytes_per_token
from goodspeed_server.parts import PartSettings
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import RoundSettings, ServerSettings
from tests.measured import measured_once
from tests.serving import linked, tiny_settings, tiny_tokenizer
from tests.test_engine_graphs import Recorder
from tests.test_server_memory import PeakMemory, of_type
from tests.tiny_models import CONTEXT, VOCAB, tiny_llama, tiny_qwen3

PROMPT = [3, 14, 15, 92, 65, 35, 8, 9]
LAYOUTS: tuple[Layout, ...] = ("packed", "padded")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of plain numbers, as it lies on a disk."""
    return saved(tiny_llama(), tmp_path / "plain")


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def transformers_own(folder: Path, **how: Any) -> PreTrainedModel:
    """What transformers itself makes of a folder."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)


def quantised(folder: Path) -> PreTrainedModel:
    how = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    return transformers_own(folder, quantization_config=how)


def new_engine(model: PreTrainedModel, layout: Layout = "packed", **how: Any) -> Engine:
    usual: dict[str, Any] = {"rows": 4, "max_length": CONTEXT, "device": "cpu", "dtype": model.dtype}
    return Engine(model, layout=layout, **usual | how)


def logits_of(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
    return logits.float()


def projections(model: Any) -> list[Tensor]:
    return [layer.mlp.down_proj.weight for layer in model.model.layers]


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("fp8", {"quant_method": "fp8"}),
        ("compressed-tensors", {"quant_method": "compressed-tensors"}),
        ("bitsandbytes_4bit", {"load_in_4bit": True}),
        ('{"quant_method": "quanto", "weights": "int4"}', {"quant_method": "quanto", "weights": "int4"}),
        ('{"load_in_8bit": true}', {"load_in_8bit": True}),
    ],
)
def test_a_quantisation_is_a_name_or_all_of_it(text: str, config: dict[str, Any]) -> None:
    assert read_quantisation(text) == config
    assert ServerSettings(quantize=text).quantize == text


@pytest.mark.parametrize("text", ["", "{", "int 8", "[1]", "3.5", "{}", '{"bits": 4}', '{"quant_method": 3}'])
def test_what_is_neither_is_refused_with_both(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^quantize is .*: give int8, .* or all of it as JSON: \{"):
        ServerSettings(quantize=text)


@pytest.mark.parametrize(
    ("quantize", "error", "sentence"),
    [
        ("int3", InvalidRequest, "^quantize: there is no method 'int3': choose int8, aqlm,"),
        ("torchao", InvalidRequest, "^quantize: torchao does not take 'torchao' .KeyError: 'quant_type'"),
        ('{"quant_method": "quanto", "weights": "int5"}', InvalidRequest, "^quantize: quanto does not take .*int5"),
        # Wants a checkpoint that is quantised already, or a device that is not here.
        ('{"quant_method": "gguf"}', ModelError, "cannot be loaded with weights quantised by gguf .ValueError: "),
        ('{"quant_method": "awq", "bits": 4}', ModelError, "cannot be loaded with weights quantised by .*awq"),
    ],
)
def test_what_transformers_does_not_take_is_told_in_its_words(
    folder: Path, quantize: str, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        load_model(str(folder), device="cpu", quantize=quantize)


@pytest.mark.parametrize(("quantize", "package"), [("int8", "torchao"), ("bitsandbytes_4bit", "bitsandbytes")])
def test_a_package_that_is_missing_is_named(
    folder: Path, quantize: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torchao", "torchao.core.config"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ModelError, match=f"quantised by .*{package}.*pip install .*{package}"):
        load_model(str(folder), device="cpu", quantize=quantize)


def test_a_model_quantised_on_loading_is_transformers_own(folder: Path) -> None:
    model, theirs = load_model(str(folder), device="cpu", quantize="int8"), quantised(folder)
    assert is_quantised(model)
    assert model.dtype == torch.float32
    assert all(isinstance(weight, Int8Tensor) for weight in projections(model))
    assert not any(weight.requires_grad for weight in model.parameters())
    assert torch.equal(logits_of(model, PROMPT), logits_of(theirs, PROMPT))
    assert not torch.equal(logits_of(model, PROMPT), logits_of(tiny_llama(), PROMPT))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_checkpoint_is_loaded_as_it_says(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    plain = saved(of_type(tiny_llama, dtype), tmp_path / "other")
    stored = saved(load_model(str(plain), device="cpu", dtype=str(dtype)[6:], quantize="int8"), tmp_path / "quantised")
    model = load_model(str(stored), device="cpu")
    assert is_quantised(model)
    assert model.dtype == dtype
    assert all(isinstance(weight, Int8Tensor) for weight in projections(model))
    theirs = AutoModelForCausalLM.from_pretrained(stored, dtype="auto")
    assert torch.equal(logits_of(model, PROMPT), logits_of(theirs, PROMPT))


def test_a_checkpoint_that_is_made_plain_while_it_is_loaded_is_run_like_any_other(folder: Path) -> None:
    """FP8 where there are no kernels for it, or where the operator says so."""
    config, weights = json.loads((folder / "config.json").read_bytes()), load_file(folder / "model.safetensors")
    stored, plain = dict(weights), dict(weights)
    for name in [name for name in weights if "proj" in name]:
        scale = weights[name].abs().max() / 448
        stored[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale.reshape(1, 1)
        plain[name] = stored[name].float() * scale
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    model = load_model(str(folder), device="cpu", quantize='{"quant_method": "fp8", "dequantize": true}')
    assert not is_quantised(model)
    wanted: Any = tiny_llama()
    wanted.load_state_dict(plain)
    engine = new_engine(model)
    assert engine.is_lean
    logits = engine.forward([Segment(0, 0, PROMPT, logits=len(PROMPT))])
    assert (logits - logits_of(wanted, PROMPT)).abs().max() < 1e-4


def test_a_checkpoint_that_transformers_has_no_quantiser_for_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "of-our-own"}}))
    with pytest.raises(UnsupportedModel, match="quantised by 'of-our-own', and transformers knows aqlm,"):
        load_model(str(folder), device="cpu")


def test_one_that_is_quantised_otherwise_is_not_quantised_again(folder: Path, tmp_path: Path) -> None:
    stored = saved(quantised(folder), tmp_path / "quantised")
    with pytest.raises(ModelError, match=r"quantised by torchao .*TorchAoConfig but you are passing a FineGrainedFP8"):
        load_model(str(stored), device="cpu", quantize="fp8")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen3])
def test_an_engine_changes_no_quantised_weight(build: Any, layout: Layout, tmp_path: Path) -> None:
    folder = saved(build(), tmp_path)
    model = load_model(str(folder), device="cpu", quantize="int8")
    before = {name: tensor.clone() for name, tensor in plain_tensors(model)}
    types = [type(weight.data) for weight in model.parameters()]
    engine = new_engine(model, layout, dtype=torch.bfloat16)
    assert not engine.is_lean
    engine.forward([Segment(1, 0, PROMPT[:5], logits=0)])
    work = [Segment(0, 0, PROMPT[::-1], logits=8), Segment(1, 5, PROMPT[5:], logits=3)]
    theirs = quantised(folder)
    wanted = torch.cat([logits_of(theirs, PROMPT[::-1]), logits_of(theirs, PROMPT)[-3:]])
    assert (engine.forward(work) - wanted).abs().max() < 1e-4
    after = dict(plain_tensors(model))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert types == [type(weight.data) for weight in model.parameters()]


async def test_the_server_writes_what_transformers_writes_with_the_same_weights(folder: Path) -> None:
    theirs: Any = quantised(folder)
    output = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False, eos_token_id=None)
    text = output[0, len(PROMPT) :].tolist()
    wrong = [token if index % 3 else (token + 1) % VOCAB for index, token in enumerate(text)]
    with measured_once():
        model = load_model(str(folder), device="cpu", quantize="int8")
        server = VerificationServer(tiny_settings(quantize="int8"), model, tiny_tokenizer())
    async with server.listen() as address, linked(address) as peer:
        for stream, guess in enumerate((text, wrong, [])):
            assert await peer.generate(stream, PROMPT, guess, max_new_tokens=24) == text


def test_a_quantised_model_is_named_by_what_it_computes(folder: Path, tmp_path: Path) -> None:
    model = load_model(str(folder), device="cpu", quantize="int8")
    named = weights_digest(model)
    new_engine(model)
    assert named == weights_digest(model) == weights_digest(load_model(str(folder), device="cpu", quantize="int8"))
    assert named != weights_digest(load_model(str(folder), device="cpu"))
    other = saved(tiny_llama(seed=1), tmp_path / "other")
    assert named != weights_digest(load_model(str(other), device="cpu", quantize="int8"))
    scales = next(tensor for name, tensor in plain_tensors(model) if name.endswith("down_proj.weight.scale"))
    scales *= 2
    assert named != weights_digest(model), "scales are part of it"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pass_over_quantised_weights_takes_no_more_than_was_computed(folder: Path, layout: Layout) -> None:
    """The largest weight counts, for it is written out: here it is larger than all else of so small a pass."""
    model = load_model(str(folder), device="cpu", quantize="int8")
    footprint = Footprint.of(model, kv_bytes_per_token(model), RoundSettings(capacity=0, prefill_chunk=1))
    assert footprint.expanded_bytes == largest_weight(model) * 4 == 48 * 64 * 4
    assert largest_weight(tiny_llama()) == 0
    engine = new_engine(model, layout, rows=1)
    with PeakMemory() as memory_:
        engine.forward([Segment(0, 0, [1], logits=1)])
    assert memory_.peak <= footprint.bytes(1, CONTEXT) - footprint.slab_bytes(1, CONTEXT)


@pytest.mark.parametrize("compileable", [True, False])
def test_passes_are_recorded_where_the_quantiser_can_be_compiled(
    folder: Path, compileable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchAoHfQuantizer, "is_compileable", compileable)
    model, recorder = load_model(str(folder), device="cpu", quantize="int8"), Recorder()
    engine = new_engine(model, "padded", recorder=recorder)
    passes = [engine.forward([Segment(0, 0, PROMPT, logits=1)]) for _ in range(4)]
    assert all((logits - passes[0]).abs().max() < 1e-4 for logits in passes)
    assert recorder.recorded == int(compileable)


def test_ranks_share_no_quantised_weights() -> None:
    config: Any = LlamaConfig()
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(UnsupportedModel, match=r"'it' are quantised by gptq.*--tensor-parallel 1"):
        check_ranks("it", config, 2)
    with pytest.raises(InvalidRequest, match="leave out --quantize, or --tensor-parallel"):
        PartSettings.of(ServerSettings(quantize="int8", tensor_parallel=2))
