"""The recipe's steps on one work folder: each leaves its result there, and finds the earlier ones'.

What is trained on next tokens is exported to a folder of models, and drafts are tuned and everything is measured from
there: on the weights that are shipped.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedModel

from bench.recipe import architecture, cards, corpus, lessons, pretraining, repetition, tokenizer, training, tuning
from bench.recipe.architecture import CONTEXT_LENGTH
from bench.recipe.batches import evaluation_windows
from bench.recipe.cards import TARGET
from bench.recipe.tuning import TUNED
from bench.recipe.workers import Workers
from goodspeed.catalog import load_model
from goodspeed.tuning.cards import BUDGET
from goodspeed.tuning.measuring import TEMPERATURES, Sample, measure
from goodspeed.tuning.sources import PROMPT_TOKENS
from goodspeed.tuning.teaching import write_texts

PROMPTS_A_DOMAIN = 32
WRITTEN_TOKENS = 192

INHERITING = {
    "pico-draft-m": f"embeddings and first layer of {TARGET}",
    "pico-draft-l": f"embeddings, first and last layer of {TARGET}",
}
"""Drafts of the target's width, and what of it they start from."""

DRAFTS = ("pico-draft-s", "pico-draft-l")
"""Drafts trained on next tokens."""
PRETRAINED = (TARGET, *DRAFTS)

DESCRIPTIONS = {
    TARGET: "The bundled target: a tiny Llama trained on the Python standard library.",
    "pico-draft-s": "The weakest bundled draft: one layer, 64 wide, next-token training only.",
    "pico-draft-m": "The middle bundled draft: the target's first layer, tuned to it by forward KL.",
    "pico-draft-l": "The large bundled draft before tuning: the target's first and last layer, briefly trained.",
    "pico-draft-l-tuned": "The large bundled draft, tuned to pico-target by forward KL.",
}


class Workshop:
    """One run of the recipe, in `folder`."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self._threads = threads
        self._workers = Workers(threads)

    def make_corpus(self) -> None:
        """Reads and splits the corpus."""
        sides = corpus.split(corpus.read_standard_library())
        corpus.save(sides, self.folder / "corpus")
        facts = {
            "sha256": corpus.digest(sides),
            "python_version": platform.python_version(),
            "held_out_bytes": {
                domain: sum(len(d.text.encode()) for d in sides["held_out"] if d.domain == domain)
                for domain in corpus.DOMAINS
            },
        }
        (self.folder / "corpus" / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    def make_tokenizer(self) -> None:
        """Trains the tokenizer on the training side and encodes both sides."""
        sides = corpus.load(self.folder / "corpus")
        trained = tokenizer.train(sides["train"])
        trained.save(str(self.folder / "tokenizer.json"))
        tokenizer.encode_corpus(trained, sides, self.folder / "corpus")

    def pretrain(self, name: str, budget: training.Budget, *, start: str | None = None) -> None:
        """Trains the target or a draft on next tokens until `budget` is spent, resuming.

        Without a checkpoint it starts from the model that `start` names, if any; a draft that inherits, from the
        target.
        """
        model = self._untrained(name)
        if not self._has(name) and start is not None:
            model.load_state_dict(load_model(start, device="cpu", dtype="float32").state_dict())
        objective = pretraining.objective(
            model,
            tokenizer.load_tokens(self.folder / "corpus", "train"),
            tokenizer.load_tokens(self.folder / "corpus", "held_out"),
            budget,
            seed=_seed(name),
            windows_a_batch=8 if name == TARGET else 4,
            workers=self._workers,
            unlearn_loops=name == TARGET,
        )
        training.train(model, objective, self.folder / name, budget, self._workers)

    def progress(self, name: str) -> training.Progress:
        """How far the training of a model is."""
        if not self._has(name):
            return training.Progress()
        return training.load_weights(self._fresh(name), self.folder / name)

    def export(self, models: Path) -> None:
        """Writes every model that is trained on next tokens to a folder of its name in `models`."""
        for name in PRETRAINED:
            if self._has(name):
                cards.export(self._trained(name), self._tokenizer(), models / name)
                cards.begin(self._origin(name, self._pretraining(name), self.progress(name).tokens), models / name)

    def tune(self, name: str, models: Path) -> None:
        """Tunes a draft to the target in `models`, and writes it there."""
        torch.set_num_threads(self._threads)
        plan = TUNED[name]
        taught = lessons.make_lessons(self.folder, tuning.LESSON_ROWS, target=str(models / TARGET))
        start = self._beginning(name, models / TARGET) if plan.start is None else models / plan.start
        out = self.folder / "tuned" / name
        card = tuning.tune(
            start, models / TARGET, taught, out, steps=plan.steps, seed=_seed(name), threads=self._threads
        )
        recipe = {"command": "goodspeed tune"} | card["training"] | {"started_from": plan.start or INHERITING[name]}
        seen = card["training"]["steps"] * tuning.BATCH_TOKENS
        brought = {key: card[key] for key in ("clients", "utility", "before", "after")}
        cards.copy_weights(out, models / name, like=start)
        cards.begin(self._origin(name, recipe, seen, brought), models / name)

    def _beginning(self, name: str, target: Path) -> Path:
        """An untrained draft that has layers of the target, as a model folder."""
        folder = self.folder / f"{name}-untrained"
        model, source = self._fresh(name), load_model(str(target), device="cpu", dtype="float32")
        assert isinstance(source, LlamaForCausalLM)
        architecture.inherit(model, source)
        cards.export(model, self._tokenizer(), folder)
        return folder

    def measure(self, models: Path) -> None:
        """Completes the card of every model in `models`."""
        torch.set_num_threads(self._threads)
        target = load_model(str(models / TARGET), device="cpu", dtype="float32")
        samples = self._written_by(target)
        for folder in sorted(card.parent for card in models.glob("*/card.json")):
            model = load_model(str(folder), device="cpu", dtype="float32")
            drafts = folder.name != TARGET
            measured = cards.Measured(
                held_out_loss=self._held_out_loss(model),
                acceptance={s.temperature: measure(target, model, s, [BUDGET]) for s in samples} if drafts else None,
                repetition=None if drafts else self._repetition(target),
            )
            cards.complete(measured, folder)

    def _pretraining(self, name: str) -> dict[str, Any]:
        progress = self.progress(name)
        recipe: dict[str, Any] = {
            "loss": _loss(name),
            "optimizer": "Muon for matrices, AdamW for embeddings and norms",
            "steps": progress.steps,
            f"{progress.clock}_seconds": round(progress.train_s),
        }
        return recipe | ({"started_from": INHERITING[name]} if name in INHERITING else {})

    def _origin(
        self, name: str, recipe: Mapping[str, Any], tokens_seen: int, brought: Mapping[str, Any] | None = None
    ) -> cards.Origin:
        known = self._corpus_facts()
        return cards.Origin(
            name=name,
            description=DESCRIPTIONS[name],
            python_version=known["python_version"],
            corpus_sha256=known["sha256"],
            tokens_seen=tokens_seen,
            training=recipe,
            tuning=brought,
        )

    def _corpus_facts(self) -> dict[str, Any]:
        known: dict[str, Any] = json.loads((self.folder / "corpus" / "facts.json").read_bytes())
        return known

    def _held_out_loss(self, model: PreTrainedModel) -> dict[str, dict[str, float]]:
        held_out_bytes = self._corpus_facts()["held_out_bytes"]
        tokens = tokenizer.load_tokens(self.folder / "corpus", "held_out")
        losses = pretraining.held_out_losses(model, tokens, length=CONTEXT_LENGTH, at_most=128)
        return {
            domain: {
                "nats_per_token": losses[domain],
                "nats_per_byte": losses[domain] * len(tokens[domain]) / held_out_bytes[domain],
            }
            for domain in corpus.DOMAINS
        }

    def _repetition(self, target: PreTrainedModel) -> cards.Repetition:
        held_out = tokenizer.load_tokens(self.folder / "corpus", "held_out")
        prompts = pretraining.held_out_prompts(held_out, PROMPTS_A_DOMAIN)
        length = PROMPT_TOKENS + repetition.WRITTEN_TOKENS
        texts = torch.cat([evaluation_windows(tokens, length, 4 * PROMPTS_A_DOMAIN) for tokens in held_out.values()])
        return cards.Repetition(
            greedy=repetition.repeated_share(repetition.continue_greedily(target, prompts, self._workers)),
            held_out=repetition.repeated_share(texts),
        )

    def _written_by(self, target: PreTrainedModel) -> list[Sample]:
        """What the target writes after held-out prompts at each temperature."""
        domains = tokenizer.load_tokens(self.folder / "corpus", "held_out")
        prompts = torch.cat([evaluation_windows(t, PROMPT_TOKENS, PROMPTS_A_DOMAIN) for t in domains.values()])
        return [
            Sample(
                write_texts(target, prompts, WRITTEN_TOKENS, temperature, torch.Generator().manual_seed(0)),
                PROMPT_TOKENS,
                temperature,
            )
            for temperature in TEMPERATURES
        ]

    def _has(self, name: str) -> bool:
        return (self.folder / name / training.CHECKPOINT).exists()

    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def _untrained(self, name: str) -> LlamaForCausalLM:
        """A fresh model; a draft that inherits has what it takes from the target already."""
        model = self._fresh(name)
        if name in INHERITING:
            architecture.inherit(model, self._trained(TARGET))
        return model

    def _fresh(self, name: str) -> LlamaForCausalLM:
        shape = architecture.SHAPES[name]
        end_of_text = self._tokenizer().token_to_id(tokenizer.END_OF_TEXT)
        assert end_of_text is not None
        return architecture.build(shape, _seed(name), end_of_text)

    def _trained(self, name: str) -> LlamaForCausalLM:
        """The model of the latest checkpoint, its weights rounded to bfloat16 as they will be shipped."""
        model = self._fresh(name)
        training.load_weights(model, self.folder / name)
        model.bfloat16().float().eval()  # type: ignore[no-untyped-call]
        return model


def _loss(name: str) -> str:
    if name == TARGET:
        start = pretraining.UNLIKELIHOOD_FROM
        return (
            f"next-token cross-entropy; from {start:.0%} of the time on also the unlikelihood of its own greedy loops"
        )
    return "next-token cross-entropy"


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
