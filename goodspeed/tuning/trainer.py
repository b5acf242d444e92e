"""transformers' `Trainer` with our objective: checkpoints, schedules, devices and precision are its own."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from goodspeed.tuning.clients import UtilityGuide
from goodspeed.tuning.lessons import Lesson, Row, accepted, coarse, collate
from goodspeed.tuning.losses import Loss
from goodspeed.tuning.mixing import mixed
from goodspeed.tuning.objectives import block_goodput

__all__ = ["GoodputKeeper", "TuningTrainer", "goodputs", "quiet"]

logger = logging.getLogger(__name__)


class _Rows(Dataset[Row]):
    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


class _Order(Sampler[int]):
    """A run of indices, the same each time it is asked for, so that a resumed training skips what it has had."""

    def __init__(self, groups: Sequence[tuple[float, Sequence[int]]], count: int, seed: int) -> None:
        self._groups = groups
        self._count = count
        self._seed = seed

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(mixed(self._groups, self._seed), self._count)


class GoodputKeeper(TrainerCallback):
    """Keeps the clients' smoothed goodputs beside each checkpoint: the utility's weights are part of a run's state."""

    def __init__(self, guide: UtilityGuide) -> None:
        self._guide = guide

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write them down."""
        self._file(args, state).write_text(json.dumps(self._guide.goodput), encoding="utf-8")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read them, where a run goes on."""
        file = self._file(args, state)
        if file.exists():
            self._guide.goodput.update(json.loads(file.read_text(encoding="utf-8")))

    @staticmethod
    def _file(args: Any, state: Any) -> Path:
        return Path(args.output_dir, f"checkpoint-{state.global_step}", "goodput.json")


class _Teller(TrainerCallback):
    """Says in the log how it is going."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        figures = [f"{name} {value:.4g}" for name, value in (logs or {}).items() if isinstance(value, (int, float))]
        logger.info("step %d of %d: %s", state.global_step, state.max_steps, ", ".join(figures))


class _Bar(ProgressCallback):
    """The library's bar alone."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        pass


class TuningTrainer(Trainer):
    """Trains a draft on rows of passages, and evaluates it by its clients' goodput.

    Args:
        model: the draft.
        args: transformers' own; `max_steps` has to be set.
        loss: what is minimised.
        rows: what is trained on.
        groups: how `rows` are mixed; see `mixing`.
        held_out: what is evaluated on.
        guide: the clients.
        optimizer: of the model's parameters; None for AdamW.
        callbacks: transformers' own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        loss: Loss,
        rows: Sequence[Row],
        groups: Sequence[tuple[float, Sequence[int]]],
        held_out: Sequence[Row],
        guide: UtilityGuide,
        optimizer: torch.optim.Optimizer | None = None,
        callbacks: list[TrainerCallback],
    ) -> None:
        assert args.max_steps > 0
        self._loss = loss
        self._groups = groups
        self._held_out = held_out
        self._guide = guide
        super().__init__(
            model,
            args,
            data_collator=lambda chosen: {"lesson": collate(chosen)},
            train_dataset=_Rows(rows),
            eval_dataset=_Rows(held_out),
            callbacks=[*callbacks, _Teller()],
            optimizers=(optimizer, None),
        )
        # Both would print figures among what a script is to read.
        self.remove_callback(PrinterCallback)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(_Bar())
        # Our losses are means already: it shall divide by the accumulated batches, as for any other loss.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one lesson; the trainer calls it under its own autocast."""
        lesson: Lesson = inputs["lesson"].to(self.args.device)
        loss = self._loss(lesson, _logits(model, lesson))
        return (loss, {}) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out goodput, tokens per round at the clients' budgets, and its utility."""
        model: Any = self.model
        model.eval()
        by_client = goodputs(model, self._held_out, self._guide, self.args.per_device_eval_batch_size)
        values = np.array([by_client[name] * self._guide.clients[name].rounds_per_s for name in by_client])
        weights = np.array([self._guide.clients[name].weight for name in by_client])
        metrics = {
            "eval_goodput": float(np.mean(list(by_client.values()))),
            "eval_utility": float(self._guide.utility.value(values, weights).sum()),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        model.train()
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        count = self.args.max_steps * self.args.gradient_accumulation_steps * self.args.per_device_train_batch_size
        return _Order(self._groups, count, self.args.seed)


def quiet() -> None:
    """Let the library speak of errors only: it warns of tied weights, which a checkpoint leaves out on purpose."""
    cast("Any", transformers_logging.set_verbosity_error)()


@torch.no_grad()
def goodputs(model: Any, rows: Sequence[Row], guide: UtilityGuide, batch_rows: int) -> dict[str, float]:
    """Tokens per round of each client on some rows, as `block_goodput` estimates them from what is kept of `p`.

    A client none of whose blocks fit is left out.
    """
    names = sorted({row.client for row in rows})
    found = {}
    for name in names:
        own = [row for row in rows if row.client == name]
        totals: list[tuple[float, int]] = []
        for begin in range(0, len(own), batch_rows):
            lesson = collate(own[begin : begin + batch_rows]).to(model.device)
            rates = accepted(lesson, *coarse(lesson, _logits(model, lesson)))
            value = block_goodput(rates, lesson.known, guide.clients[name].budget)
            if value is not None:
                totals.append((float(value), int(lesson.known.sum())))
        if totals:
            found[name] = sum(value * count for value, count in totals) / sum(count for _, count in totals)
    return found


def _logits(model: Any, lesson: Lesson) -> Tensor:
    """The draft's, [rows, length - 1, vocab]."""
    # Rows are padded on the right, which no earlier position sees: a mask would only cost the faster kernel.
    logits: Tensor = model(input_ids=lesson.tokens[:, :-1], use_cache=False).logits
    return logits
