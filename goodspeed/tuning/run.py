"""One tuning run: from names and sources to a model folder with a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import tokenizers
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    EarlyStoppingCallback,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
)

from goodspeed.catalog import fingerprint, load_model, resolve, tokenizer_files
from goodspeed.errors import CorruptData, InvalidRequest, TokenizerMismatch
from goodspeed.extras import how_to_install
from goodspeed.tuning import cards
from goodspeed.tuning.clients import Client, UtilityGuide
from goodspeed.tuning.lessons import Row, cut
from goodspeed.tuning.losses import LOSSES, make_loss
from goodspeed.tuning.measuring import TEMPERATURES, Figures, Sample, measure
from goodspeed.tuning.mixing import Source, strata
from goodspeed.tuning.optimizer import muon_and_adamw
from goodspeed.tuning.passages import Passage
from goodspeed.tuning.sources import PROMPT_TOKENS, DataSpec, load_source
from goodspeed.tuning.teaching import write_texts
from goodspeed.tuning.trainer import GoodputKeeper, TuningTrainer
from goodspeed.tuning.unfinished import UnfinishedRun
from goodspeed.utility import AlphaFair

__all__ = ["LORA_PARAMETERS", "Prepared", "Tuning", "prepare", "tune"]

LORA_PARAMETERS = 50_000_000
"""From this size on a draft gets adapters, unless the user says otherwise: its optimiser's state is what costs."""

_EVALUATED_ROWS = 256
_MEASURED_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a user asks for.

    Raises:
        InvalidRequest: a value is out of range.
    """

    draft: str
    target: str
    out: Path
    sources: Sequence[DataSpec]
    loss: str = "forward-kl"
    clients: Sequence[Client] = ()
    """Those a server knows; whoever else turns up in the data gets `budget`."""
    budget: int = 4
    fairness: float = 1.0
    steps: int = 1000
    optimizer: Literal["muon", "adamw"] = "muon"
    """Of a full tuning; adapters always have AdamW."""
    learning_rate: float | None = None
    """None for what suits the optimiser, or adapters."""
    batch_rows: int = 16
    accumulate: int = 1
    row_tokens: int = 256
    rows: int = 4096
    """At most so many rows of each source of text."""
    held_out: float = 0.05
    """Share of the passages that is kept for evaluation."""
    evaluate_every: int = 100
    patience: int = 5
    """Evaluations without a better held-out goodput before it stops."""
    method: Literal["auto", "full", "lora"] = "auto"
    lora_rank: int = 16
    device: str = "auto"
    bf16: bool | None = None
    """Autocast; None for on CUDA."""
    seed: int = 0
    resume: bool = False
    progress_bar: bool = True
    measured_rows: int = 24
    """Texts that the target writes for each client and temperature, to say what the tuning has brought."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise InvalidRequest("there is nothing to learn from: give --data or --prompts")
        if self.loss not in LOSSES:
            raise InvalidRequest(f"there is no loss {self.loss!r}: choose {', '.join(LOSSES)}")
        AlphaFair(self.fairness)
        budget = max([self.budget, *(client.budget for client in self.clients)])
        if budget > _MEASURED_TOKENS:
            raise InvalidRequest(f"a budget is {budget}: the texts that a draft is measured on have {_MEASURED_TOKENS}")
        if not 0 < self.held_out < 1:
            raise InvalidRequest(f"held-out is {self.held_out}: it is a share between 0 and 1")
        if self.row_tokens < 8:
            raise InvalidRequest(f"row-tokens is {self.row_tokens}: a row has at least 8")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InvalidRequest(f"learning-rate is {self.learning_rate}: it must be above 0")

    @property
    def unfinished(self) -> UnfinishedRun:
        """What the run keeps in `out` until it is over."""
        asked = {
            "draft": self.draft,
            "target": self.target,
            "data": [[str(spec.path), spec.share, spec.kind] for spec in self.sources],
            "loss": self.loss,
            "seed": self.seed,
        }
        return UnfinishedRun(self.out, asked)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run learns from and is measured on; it does not depend on draft or loss, so that many may share it."""

    target: PreTrainedModel
    sources: Sequence[Source]
    held_out: Sequence[Passage]
    clients: Sequence[Client]
    samples: Mapping[str, Sequence[Sample]]
    """By client, one for each temperature."""


def prepare(settings: Tuning) -> Prepared:
    """Read the sources, and let the target write what drafts are measured on.

    Raises:
        InvalidRequest: there is too little in a source.
        ModelError: the target cannot be loaded.
        TokenizerMismatch: the draft would speak of other tokens.
        CorruptData: a source cannot be read.
    """
    files = tokenizer_files(settings.target)
    if fingerprint(tokenizer_files(settings.draft)) != fingerprint(files):
        raise TokenizerMismatch(
            f"{settings.draft} and {settings.target} cut text into different tokens: "
            "tune a draft that was made with the target's tokenizer"
        )
    target = load_model(settings.target, device=settings.device)
    tokenizer = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
    sources, held_out = _read_sources(settings, target, tokenizer)
    clients = _clients(settings, [*held_out, *(row.passage for source in sources for row in source.rows)])
    return Prepared(target, sources, held_out, clients, _samples(target, held_out, settings))


def tune(settings: Tuning, prepared: Prepared | None = None) -> cards.Card:
    """Tune a draft, write it to `settings.out` as a model folder, and measure what it has brought.

    Args:
        settings: what is asked for.
        prepared: by `prepare`, from settings that differ in draft, loss, steps and `out` at most.

    Raises:
        InvalidRequest: a setting is out of range, or what is in `out` belongs to another run.
        ModelError: the draft cannot be loaded.
        GoodSpeedError: as `prepare`.
    """
    settings.unfinished.check(resume=settings.resume)
    known = prepared or prepare(settings)
    guide = UtilityGuide(known.clients, AlphaFair(settings.fairness))
    draft = load_model(settings.draft, device=settings.device, dtype="float32")
    before = _measured(known, draft)
    lora = settings.method == "lora" or (settings.method == "auto" and _parameters(draft) >= LORA_PARAMETERS)
    trained = _train(settings, draft, known.sources, known.held_out, guide, lora=lora)
    _save(settings, trained.model)
    tuned = load_model(str(settings.out), device=settings.device, dtype="float32")
    card = cards.Card(
        name=settings.out.name,
        draft=settings.draft,
        target=settings.target,
        loss=settings.loss,
        method="lora" if lora else "full",
        steps=trained.steps,
        seed=settings.seed,
        fairness=settings.fairness,
        sources=[f"{spec.path.name} ({spec.kind}, share {spec.share:g})" for spec in settings.sources],
        parameters=_parameters(tuned),
        bytes=sum(file.stat().st_size for file in settings.out.glob("*.safetensors")),
        clients=known.clients,
        before=before,
        after=_measured(known, tuned),
    )
    cards.write(card, settings.out)
    return card


def _read_sources(
    settings: Tuning, target: PreTrainedModel, tokenizer: tokenizers.Tokenizer
) -> tuple[list[Source], list[Passage]]:
    """What is trained on, by source, and the passages that are held out of all of them."""
    sources: list[Source] = []
    held_out: list[Passage] = []
    rng = np.random.default_rng(settings.seed)
    for number, spec in enumerate(settings.sources):
        passages = load_source(
            spec,
            target,
            tokenizer,
            row_tokens=settings.row_tokens,
            at_most=settings.rows,
            seed=settings.seed + number,
        )
        highest = max(max(passage.tokens.max(), passage.support.max(initial=0)) for passage in passages)
        if highest >= target.config.vocab_size:
            raise CorruptData(
                f"{spec.path} has tokens that {settings.target} does not know: another target's, it seems"
            )
        if len(passages) < 2:
            raise InvalidRequest(f"{spec.path} has one passage only: there has to be one to hold out, too")
        order = rng.permutation(len(passages))
        count = max(1, round(settings.held_out * len(passages)))
        held_out += [passages[place] for place in order[:count]]
        rows = cut([passages[place] for place in order[count:]], settings.row_tokens)
        sources.append(Source(str(spec.path), rows, spec.share))
    return sources, held_out


def _clients(settings: Tuning, passages: Sequence[Passage]) -> list[Client]:
    known = {client.name: client for client in settings.clients}
    names = sorted({passage.client for passage in passages})
    return [known.get(name) or Client(name, settings.budget) for name in names]


@dataclass(frozen=True)
class _Trained:
    model: PreTrainedModel
    steps: int


def _train(
    settings: Tuning,
    draft: PreTrainedModel,
    sources: Sequence[Source],
    held_out: Sequence[Passage],
    guide: UtilityGuide,
    *,
    lora: bool,
) -> _Trained:
    rows, groups = strata(sources)
    evaluated = _evaluated(settings, held_out)
    if not any(row.end - row.first >= guide.clients[row.client].budget for row in evaluated):
        raise InvalidRequest("none of the passages held out is as long as its client's budget: record longer ones")
    model = _trainable(draft, settings, lora=lora)
    if not settings.resume:
        # Not before: a run that came to nothing has begun nothing that would have to be resumed, or cleared away.
        settings.unfinished.begin()
    trainer = TuningTrainer(
        model,
        _arguments(settings, draft, lora=lora),
        loss=make_loss(settings.loss, guide),
        rows=rows,
        groups=groups,
        held_out=evaluated,
        guide=guide,
        optimizer=None if lora or settings.optimizer == "adamw" else muon_and_adamw(model, _rate(settings, lora=lora)),
        callbacks=cast("list[TrainerCallback]", [EarlyStoppingCallback(settings.patience), GoodputKeeper(guide)]),
    )
    trainer.train(resume_from_checkpoint=settings.unfinished.last_checkpoint())
    best = cast("Any", trainer.model)
    merged: PreTrainedModel = best.merge_and_unload() if lora else best
    return _Trained(merged, trainer.state.global_step)


def _evaluated(settings: Tuning, held_out: Sequence[Passage]) -> list[Row]:
    """Some windows of the passages held out, of every source and client alike."""
    windows = cut(held_out, settings.row_tokens)
    order = np.random.default_rng(settings.seed).permutation(len(windows))
    return [windows[place] for place in order[:_EVALUATED_ROWS]]


def _trainable(draft: PreTrainedModel, settings: Tuning, *, lora: bool) -> PreTrainedModel:
    module: nn.Module = draft
    module.train()
    if not lora:
        module.requires_grad_(True)
        return draft
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise InvalidRequest(f"adapters need peft: {how_to_install('tune')}, or --method full") from None
    config = LoraConfig(r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules="all-linear")
    return cast("PreTrainedModel", get_peft_model(draft, config))


def _arguments(settings: Tuning, draft: PreTrainedModel, *, lora: bool) -> TrainingArguments:
    on_cpu = draft.device.type == "cpu"
    best = "eval_utility" if settings.loss == "utility" else "eval_goodput"
    return TrainingArguments(
        output_dir=str(settings.unfinished.checkpoints),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_rows,
        per_device_eval_batch_size=settings.batch_rows,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=_rate(settings, lora=lora),
        lr_scheduler_type="cosine",
        warmup_steps=min(100, settings.steps // 10),
        weight_decay=0.01,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=not on_cpu if settings.bf16 is None else settings.bf16,
        use_cpu=on_cpu,
        eval_strategy="steps",
        eval_steps=settings.evaluate_every,
        save_strategy="steps",
        save_steps=settings.evaluate_every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=best,
        greater_is_better=True,
        logging_steps=max(1, settings.evaluate_every // 5),
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        restore_callback_states_from_checkpoint=True,
        disable_tqdm=not settings.progress_bar,
        seed=settings.seed,
    )


def _rate(settings: Tuning, *, lora: bool) -> float:
    if settings.learning_rate is not None:
        return settings.learning_rate
    return 2e-4 if lora else {"muon": 5e-3, "adamw": 1e-3}[settings.optimizer]


def _save(settings: Tuning, model: PreTrainedModel) -> None:
    """Write the model as the draft was stored, with its tokenizer; the checkpoints are no longer needed."""
    stored = _stored_dtype(settings.draft)
    cast("nn.Module", model).to(stored)
    model.save_pretrained(settings.out)
    tokenizer = AutoTokenizer.from_pretrained(resolve(settings.draft))
    tokenizer.save_pretrained(settings.out)
    settings.unfinished.over()


def _stored_dtype(name: str) -> torch.dtype:
    """In what precision a model's weights are stored."""
    kind = AutoConfig.from_pretrained(resolve(name)).dtype
    return kind if isinstance(kind, torch.dtype) else torch.float32


def _samples(target: PreTrainedModel, held_out: Sequence[Passage], settings: Tuning) -> dict[str, list[Sample]]:
    """Text that the target writes after the beginnings of each client's held-out passages, at each temperature."""
    names = sorted({passage.client for passage in held_out})
    chosen = {
        name: [passage for passage in held_out if passage.client == name][: settings.measured_rows] for name in names
    }
    length = min([PROMPT_TOKENS, *(len(passage.tokens) - 1 for own in chosen.values() for passage in own)])
    beginnings = [passage.tokens[:length] for own in chosen.values() for passage in own]
    prompts = torch.from_numpy(np.stack(beginnings).astype(np.int64))  # [rows, prompt]
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for temperature in TEMPERATURES:
        generator = torch.Generator(target.device).manual_seed(settings.seed)
        texts = write_texts(target, prompts, _MEASURED_TOKENS, temperature, generator)
        by_client = torch.split(texts, [len(own) for own in chosen.values()])
        for name, own in zip(names, by_client, strict=True):
            samples[name].append(Sample(own, length, temperature))
    return samples


def _measured(known: Prepared, draft: PreTrainedModel) -> dict[str, dict[float, Figures]]:
    budgets = {client.name: sorted({cards.BUDGET, client.budget}) for client in known.clients}
    return {
        name: {sample.temperature: measure(known.target, draft, sample, budgets[name]) for sample in own}
        for name, own in known.samples.items()
    }


def _parameters(model: PreTrainedModel) -> int:
    module: nn.Module = model
    return sum(parameter.numel() for parameter in module.parameters())
