"""The models inside the package: they load, their cards say what the files say, and they are worth trying."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from goodspeed.catalog import DEFAULT_DRAFT, DEFAULT_TARGET, bundled, fingerprint, load_model, tokenizer_files
from goodspeed.scenarios.prompts import bundled_prompts

MODELS = bundled()
DRAFTS = [model for model in MODELS if model.role == "draft"]


def card_of(path: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((path / "card.json").read_bytes())
    return card


def test_the_defaults_are_bundled_and_all_fits_in_thirty_megabytes() -> None:
    assert {DEFAULT_TARGET, DEFAULT_DRAFT} <= {model.name for model in MODELS}
    assert len(DRAFTS) >= 3
    files = [file for model in MODELS for file in model.path.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 30_000_000


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_card_says_what_the_files_say(model: Any) -> None:
    card = card_of(model.path)
    loaded = load_model(model.name, device="cpu")
    assert loaded.num_parameters() == card["parameters"]
    assert (model.path / "model.safetensors").stat().st_size == card["bytes"]
    assert loaded.config.vocab_size == card["vocab_size"]
    assert loaded.config.max_position_embeddings == card["context_length"]
    assert set(card["held_out_loss"]) == {"code", "prose", "tests"}
    assert (card["acceptance"] is None) == (card["role"] == "target")
    assert card["name"] in (model.path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_weights_are_shipped_in_bfloat16(model: Any) -> None:
    config = json.loads((model.path / "config.json").read_bytes())
    assert config["dtype"] == "bfloat16"
    assert card_of(model.path)["bytes"] < 2.1 * card_of(model.path)["parameters"] + 20_000


def test_all_share_one_vocabulary_and_one_corpus() -> None:
    assert len({fingerprint(tokenizer_files(model.name)) for model in MODELS}) == 1
    assert len({card_of(model.path)["data"]["corpus_sha256"] for model in MODELS}) == 1


@pytest.mark.parametrize("text", ["def f(x):\n\treturn x  # é, 漢字, \U0001f600\n", " leading", "trailing  "])
def test_the_tokenizer_gives_back_every_text(text: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS[0].path)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_chat_template_marks_turns_with_single_tokens() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS[0].path)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>"
    assert len(tokenizer(text)["input_ids"]) == 10


def test_the_target_meets_its_loss_and_stronger_drafts_are_accepted_more() -> None:
    assert card_of(MODELS[0].path)["held_out_loss"]["code"]["nats_per_token"] <= 2.9
    acceptance = {model.name: model.acceptance["1"] for model in DRAFTS if model.acceptance}
    assert acceptance["pico-draft-l-tuned"] >= 0.70
    assert acceptance["pico-draft-l-tuned"] >= acceptance["pico-draft-l"] + 0.15
    strengths = [acceptance[f"pico-draft-{name}"] for name in ("s", "m", "l-tuned")]
    assert min(np.diff(strengths)) >= 0.08


def test_greedy_text_does_not_loop_at_once() -> None:
    """Of code it writes on; tests and prose repeat themselves sooner, but few of them from their beginning."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS[0].path, padding_side="left")
    target: Any = load_model(DEFAULT_TARGET, device="cpu")
    at_once = []
    for domain, count in (("code", 64), ("prose", 32), ("tests", 32)):
        prompts = [prompt for prompt in bundled_prompts() if prompt.domain == domain]
        ids = tokenizer([prompt.text for prompt in prompts], return_tensors="pt", padding=True)
        texts = target.generate(**ids, max_new_tokens=count, do_sample=False)[:, ids["input_ids"].shape[1] :].tolist()
        for prompt, text in zip(prompts, texts, strict=True):
            end = text.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in text else count
            written = text[:end]  # behind its end there is padding
            assert domain != "code" or _repeated(written) < 0.25, prompt.id
            at_once.append(_repeated(written[:32]) > 0.2)
    assert len(at_once) == len(bundled_prompts())
    assert sum(at_once) <= len(at_once) / 3
    assert card_of(MODELS[0].path)["repetition"]["greedy"] < 0.4


def _repeated(tokens: list[int]) -> float:
    """The share of its runs of six tokens that were there before."""
    runs = [tuple(tokens[start : start + 6]) for start in range(len(tokens) - 5)]
    return 1 - len(set(runs)) / max(len(runs), 1)
