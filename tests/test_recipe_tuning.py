"""The recipe's tuned drafts: the command that makes them, and the cards that tell of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.recipe import architecture, cards, corpus, lessons, tuning
from goodspeed.__main__ import app
from goodspeed.errors import InvalidRequest
from goodspeed.tuning.measuring import Figures
from goodspeed.tuning.passages import Passage, read_shards, write_shard
from tests.tiny_models import VOCAB
from tests.tuning_pair import contents, make_world, recorded

world = pytest.fixture(scope="module")(make_world)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """What was run; it ran in this process, which has loaded everything already."""
    seen: list[Sequence[str]] = []

    def run(command: Sequence[str], *, check: bool) -> None:
        assert check
        seen.append(command)
        result = CliRunner().invoke(app, command[3:])
        if result.exit_code:
            raise subprocess.CalledProcessError(result.exit_code, command, result.output)

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_a_draft_is_tuned_by_the_command_and_once(world: Path, tmp_path: Path, commands: list[Sequence[str]]) -> None:
    recorded(tmp_path / "lessons.safetensors", 60)
    out = tmp_path / "tuned"
    card = tuning.tune(
        world / "draft", world / "target", tmp_path / "lessons.safetensors", out, steps=4, seed=3, threads=1
    )
    assert commands[0][1:4] == ["-m", "goodspeed", "tune"]
    assert card["training"] | {"loss": "forward-kl", "steps": 4, "seed": 3} == card["training"]
    assert set(card["after"]) == {"ann"}
    before = contents(out)
    again = tuning.tune(world / "draft", world / "target", tmp_path, out, steps=4, seed=3, threads=1)
    assert (again, contents(out), len(commands)) == (card, before, 1)


def test_a_tuning_that_fails_is_not_taken_for_done(world: Path, tmp_path: Path, commands: list[Sequence[str]]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        tuning.tune(world / "foreign", world / "target", tmp_path, tmp_path / "out", steps=1, seed=0, threads=1)
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    with pytest.raises(subprocess.CalledProcessError):
        tuning.tune(world / "draft", world / "target", tmp_path, tmp_path / "out", steps=1, seed=0, threads=1)
    assert [command[-1] == "--resume" for command in commands] == [False, True]


def test_a_card_is_begun_at_the_export_and_completed_by_what_is_measured(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    cards.copy_weights(world / "draft", folder, like=world / "target")
    assert (folder / "model.safetensors").read_bytes() == (world / "draft" / "model.safetensors").read_bytes()
    assert (folder / "config.json").read_bytes() == (world / "target" / "config.json").read_bytes()
    brought = {
        when: {"code": {"1": {"acceptance": acceptance, "length": {"4": 2.5}}}}
        for when, acceptance in (("before", 0.25), ("after", 0.5))
    }
    origin = cards.Origin(
        name="draft",
        description="A draft.",
        python_version="3.11",
        corpus_sha256="abc",
        tokens_seen=1234,
        training={"loss": "forward-kl"},
        tuning=brought,
    )
    cards.begin(origin, folder)
    begun = json.loads((folder / "card.json").read_bytes())
    assert begun["acceptance"] is None
    figures = {t: Figures(0.1 + t / 2, 0.1 + t / 4, {4: 1.0 + t}) for t in (0.0, 0.7, 1.0)}
    losses = {"code": {"nats_per_token": 2.0, "nats_per_byte": 0.5}}
    cards.complete(cards.Measured(losses, figures, None), folder)
    card = json.loads((folder / "card.json").read_bytes())
    assert card["acceptance"] == {"target": cards.TARGET, "0": 0.1, "0.7": 0.45, "1": 0.6}
    assert card["acceptance_coupled"] == {"target": cards.TARGET, "0": 0.1, "0.7": 0.275, "1": 0.35}
    assert card["acceptance_length"] == {"target": cards.TARGET, "budget": 4, "0": 1.0, "0.7": 1.7, "1": 2.0}
    assert {key: card[key] for key in ("training", "tuning", "data", "parameters")} == {
        key: begun[key] for key in ("training", "tuning", "data", "parameters")
    }
    page = (folder / "README.md").read_text()
    for line in (
        "| 0.7 | 0.450 | 0.275 | 1.70 |",
        "| code | 1 | 0.250 -> 0.500 | 2.50 -> 2.50 |",
        "- loss: forward-kl",
    ):
        assert line in page


def test_lessons_are_made_once_and_whole(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [" ".join(f"w{(7 * place + place * number) % VOCAB}" for place in range(600)) for number in range(1, 5)]
    documents = [corpus.Document(f"{n}", "code" if n % 2 else "prose", f"{n}", text) for n, text in enumerate(words)]
    monkeypatch.setattr(corpus, "read_standard_library", lambda: documents)
    monkeypatch.setattr(corpus, "split", lambda found: {"train": found, "held_out": []})
    monkeypatch.setattr(lessons, "ROW_TOKENS", 16)
    monkeypatch.setattr(lessons, "SHARD_ROWS", 3)
    target = str(world / "target")
    written: list[Path] = []

    def interrupted(path: Path, passages: Sequence[Passage]) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)
        write_shard(path, passages)

    monkeypatch.setattr(lessons, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lessons.make_lessons(tmp_path, 4, target=target)
    monkeypatch.setattr(lessons, "write_shard", write_shard)
    made = lessons.make_lessons(tmp_path, 4, target=target)
    passages = read_shards(made)
    assert (len(passages), {passage.client for passage in passages}) == (8, {"code", "prose"})
    before = contents(made)
    assert (lessons.make_lessons(tmp_path, 4, target=target), contents(made)) == (made, before)
    with pytest.raises(InvalidRequest, match="are others"):
        lessons.make_lessons(tmp_path, 5, target=target)


def test_every_tuned_draft_has_a_shape_and_a_start() -> None:
    assert {plan.start or name for name, plan in tuning.TUNED.items()} <= set(architecture.SHAPES)
