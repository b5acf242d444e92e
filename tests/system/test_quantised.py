"""A target that is quantised while it is loaded: `goodspeed-server run --quantize`, and who drafts for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, TorchAoConfig

from goodspeed.catalog import DEFAULT_DRAFT, DEFAULT_TARGET, load_model, resolve
from goodspeed.traces import read_trace
from tests.system.processes import server
from tests.system.test_lossless import TEXTS, agent, drafted, write_at_once, written_by


def transformers_own() -> Any:
    """What transformers makes of the bundled target, by itself."""
    how = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    return AutoModelForCausalLM.from_pretrained(resolve(DEFAULT_TARGET), dtype=torch.float32, quantization_config=how)


async def test_every_drafter_writes_what_transformers_writes_with_quantised_weights(tmp_path: Path) -> None:
    theirs = transformers_own()
    expected = [written_by(theirs, str(text.prompt), text.params) for text in TEXTS]
    plain = load_model(DEFAULT_TARGET, device="cpu", dtype="float32")
    assert expected != [written_by(plain, str(text.prompt), text.params) for text in TEXTS], "which are other texts"
    trace = tmp_path / "trace.jsonl"
    options = ("--quantize", "int8", "--scheduler", "goodspeed", "--max-streams", "12", "--trace", str(trace))
    async with server(*options) as address:
        company = await asyncio.gather(
            *(write_at_once(agent(address, drafter, tmp_path)) for drafter in ("none", "suffix", DEFAULT_DRAFT))
        )
    for texts in company:
        assert [text.tokens for text in texts] == expected
    assert sum(map(drafted, company)) > 0
    assert read_trace(trace).header.quantize == "int8"
