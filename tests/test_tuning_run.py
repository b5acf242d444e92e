"""Whole runs of a tiny pair: what they leave, and what a resumed one ends with."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from goodspeed.catalog import fingerprint, load_model, tokenizer_files
from goodspeed.errors import InvalidRequest
from goodspeed.tuning import run
from goodspeed.tuning.cards import Card
from goodspeed.tuning.clients import Client
from goodspeed.tuning.measuring import Figures, Sample
from goodspeed.tuning.passages import Passage
from goodspeed.tuning.run import tune
from goodspeed.tuning.trainer import GoodputKeeper, TuningTrainer
from goodspeed.utility import AlphaFair
from tests.tuning_pair import CLIENTS, MODEL_FILES, contents, make_world, settings, weights

world = pytest.fixture(scope="module")(make_world)


@dataclass
class Finished:
    """One run, and what passed by while it was at work."""

    out: Path
    card: dict[str, Any]
    samples: dict[str, list[Sample]]
    trainer: dict[str, Any]


@pytest.fixture(scope="module")
def finished(world: Path) -> Finished:
    samples: dict[str, list[Sample]] = {}
    trainer: dict[str, Any] = {}
    make, begin = run._samples, TuningTrainer.__init__

    def noted_samples(*arguments: Any) -> dict[str, list[Sample]]:
        samples.update(make(*arguments))
        return samples

    def noted_trainer(self: TuningTrainer, *arguments: Any, **named: Any) -> None:
        trainer.update(named)
        begin(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "_samples", noted_samples)
        patched.setattr(TuningTrainer, "__init__", noted_trainer)
        tune(settings(world, world / "tuned"))
    card = json.loads((world / "tuned" / "card.json").read_bytes())
    return Finished(world / "tuned", card, samples, trainer)


def test_a_run_leaves_a_model_folder(world: Path, finished: Finished) -> None:
    """Which is loaded like any other, has the target's tokenizer and the draft's precision."""
    assert {file.name for file in finished.out.iterdir()} == MODEL_FILES | {"card.json", "README.md"}
    assert load_model(str(finished.out), device="cpu").num_parameters() == finished.card["parameters"]
    assert finished.card["bytes"] == (finished.out / "model.safetensors").stat().st_size
    assert fingerprint(tokenizer_files(str(finished.out))) == fingerprint(tokenizer_files(str(world / "target")))
    before, after = weights(world / "draft"), weights(finished.out)
    assert {name: (one.shape, one.dtype) for name, one in before.items()} == {
        name: (one.shape, one.dtype) for name, one in after.items()
    }
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_nothing_that_is_held_out_is_trained_on(finished: Finished) -> None:
    trained, held_out = ([row.passage for row in finished.trainer[name]] for name in ("rows", "held_out"))
    assert (len(trained), len(held_out)) == (18, 6)
    assert not {id(passage) for passage in trained} & {id(passage) for passage in held_out}
    shares, _ = zip(*finished.trainer["groups"], strict=True)
    assert shares == (0.5, 0.5)


def test_the_card_tells_what_the_tuning_has_brought_to_each_client(world: Path, finished: Finished) -> None:
    """Acceptance as it comes out of plain arithmetic on the same texts, before and after."""
    card = finished.card
    assert (card["role"], card["training"]["method"], card["training"]["steps"]) == ("draft", "full", 20)
    assert card["clients"][0] == {"name": "ann", "budget": 3, "weight": 2.0, "goodput": 1.5, "rounds_per_s": 4.0}
    target, draft, tuned = (
        load_model(str(folder), device="cpu") for folder in (world / "target", world / "draft", finished.out)
    )
    for when, model in (("before", draft), ("after", tuned)):
        assert set(card[when]) == {"ann", "bob"}
        for name, samples in finished.samples.items():
            assert set(card[when][name]) == {"0", "0.7", "1"}
            for sample in samples:
                told = card[when][name][f"{sample.temperature:g}"]
                assert set(told["length"]) == ({"3", "4"} if name == "ann" else {"1", "4"})
                assert told["acceptance"] == pytest.approx(acceptance(target, model, sample), abs=1e-4)
    for temperature in ("0.7", "1"):
        after = [card["after"][name][temperature]["acceptance"] for name in ("ann", "bob")]
        assert card["acceptance"][temperature] == pytest.approx(np.mean(after), abs=1e-4)
        assert np.mean(after) > np.mean([card["before"][name][temperature]["acceptance"] for name in ("ann", "bob")])


def acceptance(target: Any, draft: Any, sample: Sample) -> float:
    with torch.no_grad():
        p, q = (model(input_ids=sample.texts).logits[:, sample.prompt_tokens - 1 : -1] for model in (target, draft))
    if sample.temperature == 0:
        return float((p.argmax(-1) == q.argmax(-1)).float().mean())
    p, q = ((x / sample.temperature).softmax(-1) for x in (p, q))
    return 1 - float((p - q).abs().sum(-1).mean()) / 2


def test_the_cards_utility_is_that_of_tokens_per_second_at_the_budgets(finished: Finished) -> None:
    for when in ("before", "after"):
        for temperature in ("0", "0.7", "1"):
            lengths = [finished.card[when][c.name][temperature]["length"][str(c.budget)] for c in CLIENTS]
            expected = -2.0 / (4.0 * lengths[0]) - 1.0 / lengths[1]
            assert finished.card["utility"][when][temperature] == pytest.approx(expected, abs=2e-4)
    readme = (finished.out / "README.md").read_text()
    for name, budget in (("ann", 3), ("bob", 1)):
        for temperature in ("0", "0.7", "1"):
            assert f"| {name} | {budget} | {temperature} |" in readme


def test_an_accumulated_batch_has_the_gradient_of_a_whole_one(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every row knows as many positions as every other: the mean of two batches' means is that of all.

    The log tells of it, and standard output, which a script may read, does not.
    """
    told = []
    for name, shape in (("one", {"batch_rows": 4}), ("two", {"batch_rows": 2, "accumulate": 2})):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            tune(settings(world, tmp_path / name, steps=1, evaluate_every=1, progress_bar=name == "two", **shape))
        (found,) = re.findall(r"step 1 of 1: loss (\S+), grad_norm (\S+),", caplog.text)
        told.append([float(figure) for figure in found])
    assert told[1] == pytest.approx(told[0], rel=1e-3)
    assert capsys.readouterr().out == ""


class Interrupted(GoodputKeeper):
    """Stands in for a user's Ctrl-C."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the utility: the clients' smoothed goodputs go on from where they were, too."""
    plain = settings(world, tmp_path / "plain", loss="utility", steps=8, evaluate_every=2)
    broken = replace(plain, out=tmp_path / "broken")
    tune(plain)
    with monkeypatch.context() as patched:
        patched.setattr(run, "GoodputKeeper", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(broken)
    kept = contents(broken.out)
    assert "model.safetensors" not in kept
    for changes, why in (
        ({}, "a run was begun in .*: --resume it"),
        ({"resume": True, "loss": "tv"}, "the run begun in .* was another .*: choose another --out"),
        ({"resume": True, "seed": 1}, "was another"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            tune(replace(broken, **changes))
    assert contents(broken.out) == kept

    # A process that dies while it saves leaves a folder with less than a checkpoint.
    (broken.out / "checkpoints" / "checkpoint-6").mkdir()
    (broken.out / "checkpoints" / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    tune(replace(broken, resume=True))
    assert {file.name for file in broken.out.iterdir()} == {file.name for file in plain.out.iterdir()}
    expected = weights(plain.out)
    for name, weight in weights(broken.out).items():
        assert torch.equal(weight, expected[name]), name
    one, other = (json.loads((folder / "card.json").read_bytes()) for folder in (plain.out, broken.out))
    assert one["after"] == other["after"]
    assert one["training"] == other["training"]


# Adapters


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks transformers
def test_adapters_are_merged_into_a_normal_folder(world: Path, tmp_path: Path) -> None:
    tune(settings(world, tmp_path, method="lora", lora_rank=2, steps=4, evaluate_every=2))
    assert {file.name for file in tmp_path.iterdir()} == MODEL_FILES | {"card.json", "README.md"}
    before, after = weights(world / "draft"), weights(tmp_path)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    assert json.loads((tmp_path / "card.json").read_bytes())["training"]["method"] == "lora"
    load_model(str(tmp_path), device="cpu")


def test_what_is_evaluated_comes_from_every_source(world: Path) -> None:
    none = np.zeros((4, 2))
    held_out = [
        Passage(np.zeros(5, np.int32), 1, none.astype(np.int32), none.astype(np.float16), client=client)
        for client in ("a", "b")
        for _ in range(600)
    ]
    rows = run._evaluated(settings(world, world / "unused"), held_out)
    assert len(rows) == 256
    assert {row.client for row in rows} == {"a", "b"}
    assert not (world / "unused").exists()


def test_figures_of_a_card_are_those_it_is_given() -> None:
    """The mean over clients, and the utility of those that were measured alone."""
    figures = {
        name: {t: Figures(a, a, {2: 2.0, 4: 3.0}) for t in (0.0, 0.7, 1.0)} for name, a in (("a", 0.25), ("b", 0.75))
    }
    clients = [Client("a", 2, rounds_per_s=2.0), Client("b", 4, weight=3.0), Client("absent", 9)]
    card = Card(
        name="n", draft="d", target="t", loss="tv", method="full", steps=1, seed=0, fairness=1.0, sources=[],
        parameters=1, bytes=1, clients=clients, before=figures, after=figures,
    )  # fmt: skip
    assert card.acceptance(figures, 0.7) == 0.5
    expected = AlphaFair(1.0).value(np.array([4.0, 3.0]), np.array([1.0, 3.0])).sum()
    assert card.utility(figures, 0.7) == pytest.approx(expected)
