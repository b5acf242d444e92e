"""A tiny pair to tune with: a random Llama and another; the words of their tokenizer are w0, w1, ..."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from goodspeed.tuning import run
from goodspeed.tuning.clients import Client
from goodspeed.tuning.passages import Passage, write_shard
from goodspeed.tuning.run import Tuning
from goodspeed.tuning.sources import DataSpec
from tests.serving import tiny_tokenizer
from tests.tiny_models import VOCAB, tiny_llama

__all__ = ["CLIENTS", "MODEL_FILES", "contents", "make_world", "recorded", "settings", "weights"]

CLIENTS = (Client("ann", 3, weight=2.0, goodput=1.5, rounds_per_s=4.0), Client("bob", 1))
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def save_model(folder: Path, seed: int, *, vocab: int = VOCAB, dtype: torch.dtype = torch.float32, layers: int) -> None:
    model = tiny_llama(seed, num_hidden_layers=layers)
    module: nn.Module = model
    module.to(dtype)
    model.save_pretrained(folder)
    for name, content in tiny_tokenizer(vocab).items():
        (folder / name).write_bytes(content)


def make_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with both models and prompts of two clients; whatever is measured is short."""
    folder = tmp_path_factory.mktemp("world")
    save_model(folder / "target", 0, layers=2)
    save_model(folder / "draft", 1, layers=1, dtype=torch.bfloat16)
    save_model(folder / "foreign", 1, layers=1, vocab=50)
    for place, client in enumerate(("ann", "bob")):
        prompts = [" ".join(f"w{(29 * place + 7 * i + 3 * j) % VOCAB}" for j in range(6)) for i in range(12)]
        (folder / "prompts" / client).mkdir(parents=True)
        text = "\n".join(json.dumps({"prompt": prompt}) for prompt in prompts)
        (folder / "prompts" / client / "prompts.jsonl").write_text(text)
    # A trainer collects garbage when it begins: most of a tiny run's time, with all that a test run has loaded.
    gc.freeze()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "_MEASURED_TOKENS", 12)
        yield folder
    gc.unfreeze()


def settings(world: Path, out: Path, **changes: Any) -> Tuning:
    shape: dict[str, Any] = {
        "draft": str(world / "draft"),
        "target": str(world / "target"),
        "out": out,
        "sources": [DataSpec(world / "prompts", kind="write")],
        "clients": CLIENTS,
        "fairness": 2.0,
        "rows": 24,
        "row_tokens": 16,
        "steps": 20,
        "evaluate_every": 10,
        "batch_rows": 4,
        "held_out": 0.25,
        "learning_rate": 1e-2,
        "device": "cpu",
        "progress_bar": False,
        "measured_rows": 2,
    }
    return Tuning(**shape | changes)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def recorded(path: Path, count: int, *, known: int = 8, highest: int = VOCAB - 1) -> DataSpec:
    """A shard of random passages."""
    rng = np.random.default_rng(0)
    passages = []
    for _ in range(count):
        tokens, support = rng.integers(VOCAB, size=12), rng.integers(VOCAB, size=(known, 4))
        tokens[0] = highest
        log_p = np.full((known, 4), -1.5, np.float16)
        passages.append(Passage(tokens.astype(np.int32), 4, support.astype(np.int32), log_p, client="ann"))
    write_shard(path, passages)
    return DataSpec(path)
