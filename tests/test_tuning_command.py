"""`goodspeed tune` as a user types it, and what is refused before anything is begun."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from goodspeed.__main__ import app
from goodspeed.errors import CorruptData, InvalidRequest, TokenizerMismatch, UnknownModel
from goodspeed.tuning.clients import Client
from goodspeed.tuning.run import tune
from tests.monitor_examples import AGENT, SNAPSHOT
from tests.tiny_models import VOCAB
from tests.tuning_pair import contents, make_world, recorded, settings

world = pytest.fixture(scope="module")(make_world)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sources": []}, "nothing to learn from"),
        ({"loss": "hinge"}, "there is no loss 'hinge'"),
        ({"fairness": -1.0}, "fairness is -1"),
        ({"held_out": 1.0}, "held-out is 1.0"),
        ({"row_tokens": 4}, "row-tokens is 4"),
        ({"learning_rate": 0.0}, "learning-rate is 0.0"),
        ({"budget": 13}, "a budget is 13"),
        ({"clients": [Client("x", 500)]}, "a budget is 500"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(world: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        settings(world, world / "unused", **changes)
    assert not (world / "unused").exists()


@pytest.mark.parametrize(
    ("shape", "error", "why"),
    [
        ({"count": 1}, InvalidRequest, "has one passage only"),
        ({"count": 4, "known": 2}, InvalidRequest, "none of the passages held out is as long as its client's budget"),
        ({"count": 4, "highest": VOCAB}, CorruptData, "has tokens that .* does not know"),
    ],
)
def test_recorded_passages_that_will_not_do_are_refused(
    world: Path, tmp_path: Path, shape: dict[str, int], error: type[Exception], why: str
) -> None:
    asked = settings(world, tmp_path / "out", sources=[recorded(tmp_path / "a.safetensors", **shape)])
    with pytest.raises(error, match=why):
        tune(asked)
    # And with better ones the same folder will do.
    assert list(asked.out.iterdir()) == []


def test_models_that_do_not_go_together_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerMismatch, match="cut text into different tokens: tune a draft that was made with"):
        tune(settings(world, tmp_path / "out", draft=str(world / "foreign")))
    for name in ("draft", "target"):
        with pytest.raises(UnknownModel, match="nothing-of-the-kind"):
            tune(settings(world, tmp_path / "out", **{name: "nothing-of-the-kind"}))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def quiet() -> Iterator[None]:
    """The command sets the level of our own logger, which no other test shall see."""
    logger = logging.getLogger("goodspeed.tuning")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("quiet")
def test_the_command_tunes_for_the_clients_of_a_state(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`--state` gives budgets, weights and fairness; shares are `PATH=SHARE`; what is printed is the card alone."""
    ann = msgspec.structs.replace(AGENT, name="ann", streams=2, budget=1.6, weight=1.5, tokens_per_round=1.25)
    state = tmp_path / "state.json"
    state.write_bytes(msgspec.structs.replace(SNAPSHOT, agents=(ann,), fairness=0.5).to_json())
    shard = recorded(tmp_path / "a.safetensors", 8)
    arguments = [
        "tune", "--out", str(tmp_path / "out"), "--draft", str(world / "draft"), "--target", str(world / "target"),
        "--prompts", f"{world / 'prompts'}=3", "--data", str(shard.path), "--state", str(state), "--budget", "2",
        "--loss", "block", "--steps", "2", "--evaluate-every", "2", "--batch-rows", "4", "--row-tokens", "16",
        "--rows", "8", "--held-out", "0.25", "--device", "cpu", "--threads", "1",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "out" / "card.json").read_bytes())
    assert json.loads(result.stdout) == card
    assert "step 2 of 2: eval_goodput" in caplog.text
    assert card["fairness"] == 0.5
    clients = {client["name"]: client for client in card["clients"]}
    assert (clients["ann"]["budget"], clients["ann"]["weight"]) == (2, 3.0)
    assert (clients["bob"]["budget"], clients["bob"]["weight"]) == (2, 1.0)
    assert card["training"]["data"] == ["a.safetensors (read, share 1)", "prompts (write, share 3)"]

    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "is not empty" in again.stderr


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--data", "{world}/prompts"), 2, "where to? Give --out"),
        (("--out", "new"), 2, "there is nothing to learn from: give --data or --prompts"),
        (("--out", "new", "--data", "missing"), 2, "there is no file or folder 'missing'"),
        (("--out", "new", "--data", "{world}/prompts=x"), 2, "'x' is no share"),
        (("--out", "new", "--data", "{world}/prompts", "--loss", "hinge"), 2, "there is no loss 'hinge'"),
        (("--out", "new", "--data", "{world}/prompts", "--state", "missing"), 2, "cannot read missing"),
        (("--out", "full", "--data", "{world}/prompts"), 2, "full is not empty"),
        (("--out", "full", "--data", "{world}/prompts", "--resume"), 2, "there is no run to resume in full"),
        (("--out", "new", "--data", "{world}/prompts", "--resume"), 2, "there is no run to resume in new"),
        (("--out", "full/precious", "--data", "{world}/prompts"), 2, "full/precious is no folder"),
        (("--out", "new", "--data", "{world}/prompts", "--draft", "nothing"), 1, "nothing"),
        (("--out", "new", "--data", "{world}/prompts", "--draft", "{world}/foreign"), 1, "different tokens"),
    ],
)
def test_errors_are_sentences_and_nothing_is_destroyed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full", "precious").write_text("years of work")
    filled = [argument.format(world=world) for argument in arguments]
    models = ["--target", str(world / "target"), *([] if "--draft" in filled else ["--draft", str(world / "draft")])]
    result = CliRunner().invoke(app, ["tune", *models, *filled])
    assert (result.exit_code, result.stdout) == (code, "")
    assert sentence in result.stderr
    assert contents(tmp_path) == {"full/precious": b"years of work"}
