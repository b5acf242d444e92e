"""A home's mark, wherever a path is given that no shell has looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from goodspeed.__main__ import app
from goodspeed.errors import InvalidRequest
from goodspeed.paths import expanded
from goodspeed_agent.inputs import read_prompt
from goodspeed_agent.results import results_in
from tests.fake_server import FakeServer


def test_a_home_stands_in_for_its_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded(Path("~/x/y")) == tmp_path / "x" / "y"
    assert expanded(Path("x/~")) == Path("x/~")
    with results_in(Path("~/results"), [], FakeServer().welcome()):
        pass
    assert (tmp_path / "results").read_text() == ""
    (tmp_path / "prompt").write_text("once")
    assert read_prompt(None, Path("~/prompt")) == "once"


def test_the_home_of_nobody_is_a_sentence() -> None:
    with pytest.raises(InvalidRequest, match="there is no user ~nobody-at-all, or it has no home"):
        expanded(Path("~nobody-at-all/x"))


@pytest.mark.parametrize("words", [["~/a.toml"], ["--trace", "~/a.toml"]])
def test_simulate_looks_there(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    refused = CliRunner().invoke(app, ["simulate", *words])
    assert refused.exit_code == 2
    assert f"{tmp_path / 'a.toml'} cannot be read" in refused.stderr


@pytest.mark.parametrize("words", [["--out", "~nobody-at-all/new"], ["--state", "~nobody-at-all/state.json"]])
def test_tune_looks_there(words: list[str]) -> None:
    pytest.importorskip("torch", reason="pip install '.[models]'")
    refused = CliRunner().invoke(app, ["tune", "--data", __file__, *words])
    assert refused.exit_code == 2
    assert "there is no user ~nobody-at-all" in refused.stderr
