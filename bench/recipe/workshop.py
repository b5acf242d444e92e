"""The recipe's steps on one work folder: each leaves its result there, and finds the earlier ones'."""

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from bench.recipe import acceptance, architecture, cards, corpus, pretraining, repetition, tokenizer, training, tuning
from bench.recipe.acceptance import PROMPT_TOKENS, TEMPERATURES, WRITTEN_TOKENS, Acceptance
from bench.recipe.architecture import CONTEXT_LENGTH
from bench.recipe.batches import WindowSampler, evaluation_windows
from bench.recipe.cards import TARGET
from bench.recipe.workers import Workers
from goodspeed.catalog import load_model

PROMPTS_A_DOMAIN = 32
CORPUS_ROWS = 6144
WRITTEN_ROWS = 6144
"""A lesson of 3.1M tokens: a draft of 2M parameters learns one of 0.5M by heart within minutes."""

INHERITING = {
    "pico-draft-m": f"embeddings and first layer of {TARGET}",
    "pico-draft-l": f"embeddings, first and last layer of {TARGET}",
}
"""Drafts of the target's width, and what of it they start from."""

DRAFTS = ("pico-draft-s", "pico-draft-l")
"""Drafts trained on next tokens."""
TUNED = {"pico-draft-m": None, "pico-draft-l-tuned": "pico-draft-l"}
"""Drafts tuned to the target, and the drafts that they start from, if any."""
MODELS = (TARGET, "pico-draft-s", "pico-draft-m", "pico-draft-l", "pico-draft-l-tuned")

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

    def prepare_lessons(self, corpus_rows: int = CORPUS_ROWS, written_rows: int = WRITTEN_ROWS) -> None:
        """Writes what the target thinks of training text and of held-out text, for tuning."""
        target = self._trained(TARGET)
        for side, rows, written, seed in (
            ("train", corpus_rows, written_rows, 10_000),
            ("held_out", 32, 192, 20_000),
        ):
            sampler = WindowSampler(tokenizer.load_tokens(self.folder / "corpus", _side(side)), seed, windows_a_batch=4)
            tuning.save(tuning.prepare(target, sampler, rows, written, seed, self._workers), self._lesson(side))

    def has_lessons(self) -> bool:
        """Whether lessons from the target's latest checkpoint are there."""
        checkpoint = self.folder / TARGET / training.CHECKPOINT
        lessons = [self._lesson(side) for side in ("train", "held_out")]
        return all(lesson.exists() and lesson.stat().st_mtime > checkpoint.stat().st_mtime for lesson in lessons)

    def tune(self, name: str, budget: training.Budget) -> None:
        """Tunes a draft to the target until `budget` is spent, resuming."""
        lesson, held_out = tuning.load(self._lesson("train")), tuning.load(self._lesson("held_out"))
        before = TUNED[name]
        draft = (self._untrained(name) if before is None else self._trained(before)).train()
        objective = tuning.objective(draft, lesson, held_out, _seed(name), self._workers)
        training.train(draft, objective, self.folder / name, budget, self._workers)

    def export(self, models: Path) -> None:
        """Measures every model that is trained and writes it, with its card, to a folder of its name in `models`."""
        torch.set_num_threads(self._threads)
        target = self._trained(TARGET)
        texts = self._written_by(target)
        for name in MODELS:
            if not self._has(name):
                continue
            model = self._trained(name)
            if name == TARGET:
                facts = self._facts(name, model, repeated=self._repetition(target))
            else:
                facts = self._facts(name, model, accepted=self._acceptance(target, model, texts))
            cards.export(model, self._tokenizer(), models / name)
            cards.write(facts, models / name)

    def _facts(
        self,
        name: str,
        model: LlamaForCausalLM,
        accepted: Mapping[str, Acceptance] | None = None,
        repeated: cards.Repetition | None = None,
    ) -> cards.Facts:
        known = json.loads((self.folder / "corpus" / "facts.json").read_bytes())
        progress = self.progress(name)
        recipe: dict[str, object] = {
            "loss": _loss(name),
            "optimizer": "Muon for matrices, AdamW for embeddings and norms",
            "steps": progress.steps,
            f"{progress.clock}_seconds": round(progress.train_s),
        }
        if name in INHERITING:
            recipe["started_from"] = INHERITING[name]
        seen = progress.tokens
        before = TUNED.get(name)
        if before is not None:
            earlier = self.progress(before)
            recipe |= {"started_from": before, f"{earlier.clock}_seconds_before": round(earlier.train_s)}
            seen += earlier.tokens
        return cards.Facts(
            name=name,
            description=DESCRIPTIONS[name],
            python_version=known["python_version"],
            corpus_sha256=known["sha256"],
            tokens_seen=seen,
            held_out_loss=self._held_out_loss(model, known["held_out_bytes"]),
            acceptance=accepted,
            repetition=repeated,
            training=recipe,
        )

    def _held_out_loss(self, model: LlamaForCausalLM, held_out_bytes: Mapping[str, int]) -> dict[str, dict[str, float]]:
        tokens = tokenizer.load_tokens(self.folder / "corpus", "held_out")
        losses = pretraining.held_out_losses(model, tokens, length=CONTEXT_LENGTH, at_most=128)
        return {
            domain: {
                "nats_per_token": losses[domain],
                "nats_per_byte": losses[domain] * len(tokens[domain]) / held_out_bytes[domain],
            }
            for domain in corpus.DOMAINS
        }

    def _repetition(self, target: LlamaForCausalLM) -> cards.Repetition:
        held_out = tokenizer.load_tokens(self.folder / "corpus", "held_out")
        prompts = pretraining.held_out_prompts(held_out, PROMPTS_A_DOMAIN)
        length = PROMPT_TOKENS + repetition.WRITTEN_TOKENS
        texts = torch.cat([evaluation_windows(tokens, length, 4 * PROMPTS_A_DOMAIN) for tokens in held_out.values()])
        return cards.Repetition(
            greedy=repetition.repeated_share(repetition.continue_greedily(target, prompts, self._workers)),
            held_out=repetition.repeated_share(texts),
        )

    def _written_by(self, target: LlamaForCausalLM) -> dict[float, torch.Tensor]:
        domains = tokenizer.load_tokens(self.folder / "corpus", "held_out")
        prompts = torch.cat([evaluation_windows(t, PROMPT_TOKENS, PROMPTS_A_DOMAIN) for t in domains.values()])
        return {t: acceptance.write(target, prompts, WRITTEN_TOKENS, t, seed=0) for t in TEMPERATURES}

    def _acceptance(
        self, target: LlamaForCausalLM, draft: LlamaForCausalLM, texts: Mapping[float, torch.Tensor]
    ) -> dict[str, Acceptance]:
        return {f"{t:g}": acceptance.measure(target, draft, texts[t], t, seed=0) for t in TEMPERATURES}

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
        shape = architecture.SHAPES[TUNED.get(name) or name]
        end_of_text = self._tokenizer().token_to_id(tokenizer.END_OF_TEXT)
        assert end_of_text is not None
        return architecture.build(shape, _seed(name), end_of_text)

    def _trained(self, name: str) -> LlamaForCausalLM:
        """The model of the latest checkpoint, its weights rounded to bfloat16 as they will be shipped."""
        model = self._fresh(name)
        training.load_weights(model, self.folder / name)
        model.bfloat16().float().eval()  # type: ignore[no-untyped-call]
        return model

    def _lesson(self, side: str) -> Path:
        return self.folder / f"lesson-{side}.pt"


def _loss(name: str) -> str:
    if name in TUNED:
        return "forward KL from the target"
    if name == TARGET:
        start = pretraining.UNLIKELIHOOD_FROM
        return (
            f"next-token cross-entropy; from {start:.0%} of the time on also the unlikelihood of its own greedy loops"
        )
    return "next-token cross-entropy"


def _side(name: str) -> corpus.Split:
    return "train" if name == "train" else "held_out"


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
