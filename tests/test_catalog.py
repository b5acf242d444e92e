"""Names to models and tokenizers, and refusals that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, JambaConfig, MambaConfig, PreTrainedTokenizerFast, Qwen3NextConfig, RwkvConfig

from goodspeed.catalog import (
    bundled,
    digest,
    fingerprint,
    load_model,
    refuse_recurrent,
    resolve,
    tokenizer_files,
    weights_digest,
)
from goodspeed.errors import ModelError, UnknownModel, UnsupportedModel
from tests.serving import tiny_tokenizer
from tests.tiny_models import tiny_llama, tiny_qwen3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as it lies on a disk."""
    tiny_llama().save_pretrained(tmp_path)
    for name, content in tiny_tokenizer().items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_a_folder_is_loaded_as_it_is(folder: Path) -> None:
    model = load_model(str(folder), device="cpu")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(input_ids=ids).logits, tiny_llama()(input_ids=ids).logits)
    assert model.dtype == torch.float32
    assert not any(weight.requires_grad for weight in model.parameters())
    assert load_model(str(folder), device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_a_name_that_is_nothing_says_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnknownModel, match="neither bundled"):
        load_model("no-such/model")
    with pytest.raises(UnknownModel, match="neither bundled"):
        load_model(str(tmp_path))
    with pytest.raises(UnknownModel, match="tokenizer"):
        tokenizer_files(str(tmp_path))


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null"])
def test_damaged_models_are_refused_in_a_sentence(folder: Path, damaged: str, content: bytes) -> None:
    (folder / damaged).write_bytes(content)
    with pytest.raises(UnknownModel, match="cannot load a model named"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"hidden_size": 96}, "cannot load a model named"),
        ({"num_hidden_layers": 3}, "is incomplete: [0-9]+ of its"),
        # Each of these is another kind of error from deep inside the library.
        ({"num_attention_heads": "four"}, "cannot load a model named"),
        ({"num_attention_heads": 0}, "cannot load a model named"),
        ({"dtype": "float12"}, "cannot load a model named"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "cannot load a model named"),
    ],
)
def test_weights_that_are_not_those_of_the_configuration_are_refused(
    folder: Path, other: dict[str, Any], sentence: str
) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    assert not other.items() <= config.items()
    (folder / "config.json").write_text(json.dumps(config | other))
    with pytest.raises(UnknownModel, match=sentence):
        load_model(str(folder))


def test_a_template_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UnknownModel, match=r"chat_template\.jinja cannot be read"):
        tokenizer_files(str(folder))


@pytest.mark.parametrize("damaged", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_damaged_tokenizers_are_refused_by_file(folder: Path, damaged: str, content: bytes) -> None:
    (folder / damaged).write_bytes(content)
    with pytest.raises(UnknownModel, match=damaged):
        tokenizer_files(str(folder))
    (folder / "tokenizer.json").write_bytes(b"{}")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UnknownModel, match=r"tokenizer\.json is no tokenizer"):
        tokenizer_files(str(folder))


def test_a_hub_out_of_reach_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(_: object, name: str, timeout: float) -> None:
        asked.append(name)
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    for name in ("nobody/nothing-1", "pico-targett"):
        with pytest.raises(UnknownModel, match="neither bundled"):
            load_model(name)
    assert asked == ["nobody/nothing-1"]


def test_devices_and_types_that_do_not_exist_are_named() -> None:
    with pytest.raises(ModelError, match="'abacus' cannot be used here"):
        load_model("any", device="abacus")
    with pytest.raises(ModelError, match="'meta' cannot be used here"):
        load_model("any", device="meta")
    with pytest.raises(ModelError, match="choose auto, float32"):
        load_model("any", dtype="int3")


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(),
        RwkvConfig(),
        JambaConfig(),
        Qwen3NextConfig(num_hidden_layers=4),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_recurrent_state_is_refused_by_name(config: MambaConfig, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=f"{config.model_type}.*cannot be rolled back.*choose"):
        refuse_recurrent("it", config)
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="cannot be rolled back"):
        load_model(str(tmp_path))


def test_models_of_attention_alone_are_served() -> None:
    for model in (tiny_llama(), tiny_qwen3()):
        refuse_recurrent("it", model.config)


def test_a_fingerprint_is_of_the_vocabulary_and_a_digest_of_the_files() -> None:
    files = tiny_tokenizer()
    with_template = files | {"tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}"}).encode()}
    assert fingerprint(files) == fingerprint(with_template)
    assert digest(files) != digest(with_template)
    assert fingerprint(files) != fingerprint(tiny_tokenizer(vocab=50))
    # Padding is a habit of whoever encodes; it changes no id.
    tokenizer = json.loads(files["tokenizer.json"]) | {"padding": {"strategy": "BatchLongest"}}
    assert fingerprint(files) == fingerprint({"tokenizer.json": json.dumps(tokenizer).encode()})


def test_weights_are_named_by_what_they_compute(folder: Path) -> None:
    named = weights_digest(tiny_llama())
    assert len(named) == 32
    assert named == weights_digest(load_model(str(folder), device="cpu"))
    assert named != weights_digest(tiny_llama(seed=1))
    assert named != weights_digest(tiny_llama(rope_theta=500.0))
    assert named != weights_digest(load_model(str(folder), device="cpu", dtype="bfloat16"))


def test_a_tokenizer_is_the_same_whether_read_or_converted(tmp_path: Path) -> None:
    name = bundled()[0].name
    read = tokenizer_files(name)
    # Saved by transformers, under names of its own choice, without the file we read first.
    tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(tokenizer_files(str(tmp_path))) == fingerprint(read)


def test_every_bundled_draft_shares_the_targets_vocabulary() -> None:
    target, *drafts = bundled()
    assert target.role == "target"
    assert len(drafts) >= 4
    assert {fingerprint(tokenizer_files(draft.name)) for draft in drafts} == {fingerprint(tokenizer_files(target.name))}
