from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from goodspeed import catalog
from goodspeed.errors import ModelError
from goodspeed.sampling import SamplingParams
from goodspeed_agent.drafters import NoDrafter, SuffixDrafter, default_draft, load_drafter


def without_torch(name: str, package: str | None = None) -> object:
    return None if name == "torch" else object()


def test_drafters_without_a_model() -> None:
    assert isinstance(load_drafter("none"), NoDrafter)
    assert isinstance(load_drafter("suffix"), SuffixDrafter)


def test_no_drafter_never_drafts() -> None:
    drafter = NoDrafter()
    assert drafter.max_draft == 0
    assert list(drafter.open(SamplingParams(), rule="coupled", vocab_size=9).guesses([1, 2])) == []


def test_a_model_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", without_torch)
    with pytest.raises(ModelError, match=r"pip install '\.\[models\]' in .*, or draft without: --draft suffix"):
        load_drafter("some/model")


def test_the_default_is_the_bundled_draft_where_it_can_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    model = catalog.BundledModel(catalog.DEFAULT_DRAFT, "draft", tmp_path, 1, 1, None, None, "")  # type: ignore[arg-type]
    monkeypatch.setattr(catalog, "bundled", lambda: [model])
    assert default_draft() == catalog.DEFAULT_DRAFT
    monkeypatch.setattr(importlib.util, "find_spec", without_torch)
    assert default_draft() == "suffix"


def test_without_the_bundled_draft_the_default_is_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "bundled", list)
    assert default_draft() == "suffix"


def test_an_agent_without_a_model_never_imports_torch() -> None:
    code = (
        "import sys; import goodspeed_agent.__main__, goodspeed_agent.drafters as d; d.load_drafter('suffix');"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
