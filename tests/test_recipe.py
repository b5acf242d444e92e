"""The recipe: the split, the batches, the training loop, and where drafts begin."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from bench.recipe import architecture, corpus
from bench.recipe.batches import WINDOW, WindowSampler
from bench.recipe.corpus import Document, Domain
from bench.recipe.pretraining import next_token_loss
from bench.recipe.tokenizer import Tokens
from bench.recipe.training import Budget, Objective, Progress, load_weights, train
from bench.recipe.workers import Workers

TINY = architecture.Shape(width=16, layers=1, heads=2, kv_heads=1, mlp_width=32)


def tiny(seed: int = 0) -> LlamaForCausalLM:
    return architecture.build(TINY, seed, end_of_text=0)


def lines(seed: int, count: int) -> str:
    rng = np.random.default_rng(seed)
    return "\n".join(f"line {number}" for number in rng.integers(1_000_000, size=count)) + "\n"


def test_near_duplicates_and_parts_of_one_file_stay_together() -> None:
    documents = [Document(f"{i}.py", "code", f"{i}.py", lines(i, 60)) for i in range(100)]
    documents += [Document(f"copy{i}.py", "code", f"copy{i}.py", lines(i, 60) + "one more\n") for i in range(100)]
    documents += [Document(f"{i}.py#docstrings", "prose", f"{i}.py", lines(1000 + i, 60)) for i in range(100)]
    sides = corpus.split(documents)
    held_out = {document.name for document in sides["held_out"]}
    assert 0 < len(held_out) < 60
    for i in range(100):
        together = {name in held_out for name in (f"{i}.py", f"copy{i}.py", f"{i}.py#docstrings")}
        assert len(together) == 1


def test_the_digest_knows_the_side_of_a_document() -> None:
    document = Document("a.py", "code", "a.py", "text")
    assert corpus.digest({"train": [document], "held_out": []}) != corpus.digest({"train": [], "held_out": [document]})


def test_documents_survive_saving(tmp_path: Path) -> None:
    sides: dict[corpus.Split, list[Document]] = {
        "train": [Document("a.py", "code", "a.py", "é\u2028\n")],
        "held_out": [Document("b.py", "tests", "b.py", "b")],
    }
    corpus.save(sides, tmp_path)
    assert corpus.load(tmp_path) == sides


def test_an_epoch_visits_every_window_and_a_batch_depends_on_its_index_alone() -> None:
    tokens: dict[Domain, Tokens] = {
        "code": np.arange(5 * WINDOW, dtype=np.uint16),
        "tests": np.arange(20_000, 20_000 + 9 * WINDOW, dtype=np.uint16),
    }
    sampler = WindowSampler(tokens, seed=3, windows_a_batch=4)
    per_epoch = 2 * 4 + 8
    first = torch.cat([sampler.batch(i, WINDOW) for i in range(per_epoch // 4)])
    assert len({int(row[0]) for row in first}) == per_epoch
    again = WindowSampler(tokens, seed=3, windows_a_batch=4).batch(2, 256)
    assert torch.equal(again.view(-1, WINDOW), first[8:12])


def test_the_learning_rate_warms_up_stays_and_decays_to_zero() -> None:
    budget = Budget(100.0, decay_from=0.5)
    factors = [budget.lr_factor(Progress(steps, 0, at)) for steps, at in ((0, 0), (500, 20), (500, 75), (500, 100))]
    assert factors == pytest.approx([1 / 60, 1.0, 0.5, 0.0])


def test_training_learns_and_a_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, workers = tiny(), Workers(1)
    ticks = iter(range(1000))
    monkeypatch.setattr(Budget, "now_s", lambda _: float(next(ticks)))
    tokens = torch.arange(64).repeat(4, 2)
    before = next_token_loss(model, tokens).item()
    objective = Objective(
        lambda _: (workers.backward(model, partial(next_token_loss, model), [tokens]), tokens.numel()), dict
    )
    budget = Budget(30.0)
    progress = train(model, objective, tmp_path, budget, workers, log=lambda _: None)
    assert progress == Progress(steps=30, tokens=30 * tokens.numel(), train_s=30.0, clock="cpu")
    assert next_token_loss(model, tokens).item() < before
    other = tiny(seed=1)
    assert load_weights(other, tmp_path) == progress
    assert train(other, objective, tmp_path, budget, workers, log=lambda _: None) == progress
    assert torch.equal(next_token_loss(other, tokens), next_token_loss(model, tokens))


def test_a_draft_inherits_the_first_and_the_last_layer_and_the_embeddings() -> None:
    deep = architecture.build(architecture.Shape(16, 5, 2, 1, 32), 0, end_of_text=0)
    draft = architecture.build(architecture.Shape(16, 2, 2, 1, 32), 1, end_of_text=0)
    architecture.inherit(draft, deep)
    assert torch.equal(draft.model.embed_tokens.weight, deep.model.embed_tokens.weight)
    for mine, theirs in ((0, 0), (1, 4)):
        own, source = (m.model.layers[n].mlp.up_proj.weight for m, n in ((draft, mine), (deep, theirs)))
        assert torch.equal(own, source)
