"""Whole runs of a tiny pair: what they leave, what a resumed one ends with, and what is refused beforehand.

The target is a random Llama and the draft another; the words of their tokenizer are w0, w1, ...
"""

from __future__ import annotations

import gc
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from goodspeed.__main__ import app
from goodspeed.catalog import fingerprint, load_model, tokenizer_files
from goodspeed.errors import CorruptData, InvalidRequest, TokenizerMismatch, UnknownModel
from goodspeed.tuning import run
from goodspeed.tuning.cards import Card
from goodspeed.tuning.clients import Client
from goodspeed.tuning.measuring import Figures, Sample
from goodspeed.tuning.passages import Passage, write_shard
from goodspeed.tuning.run import Tuning, tune
from goodspeed.tuning.sources import DataSpec
from goodspeed.tuning.trainer import GoodputKeeper, TuningTrainer
from goodspeed.utility import AlphaFair
from tests.monitor_examples import AGENT, SNAPSHOT
from tests.serving import tiny_tokenizer
from tests.tiny_models import VOCAB, tiny_llama

CLIENTS = (Client("ann", 3, weight=2.0, goodput=1.5, rounds_per_s=4.0), Client("bob", 1))
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def save_model(folder: Path, seed: int, *, vocab: int = VOCAB, dtype: torch.dtype = torch.float32, layers: int) -> None:
    model = tiny_llama(seed, num_hidden_layers=layers)
    module: nn.Module = model
    module.to(dtype)
    model.save_pretrained(folder)
    for name, content in tiny_tokenizer(vocab).items():
        (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
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


# Interrupted and resumed


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


# What is refused


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


# The command


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
