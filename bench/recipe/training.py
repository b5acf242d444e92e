"""The training loop that all models of the recipe share, scheduled by time and resumable.

The learning rate is a trapezoid over the elapsed share of the time that a run is given: a short warm-up, a plateau,
a linear decay to zero. So a run may be planned by the clock alone, whatever the machine. The clock is the wall's, for
a deadline, or the process's own CPU time, which other work on the machine does not spend.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from bench.recipe.optimizer import Optimizers
from bench.recipe.workers import Workers

WARMUP_STEPS = 60
CHECKPOINT = "checkpoint.pt"


@dataclass
class Progress:
    """How far a run is."""

    steps: int = 0
    tokens: int = 0
    train_s: float = 0.0
    clock: str = "wall"
    """Whose seconds `train_s` counts: the wall's, or the process's CPU time."""


@dataclass(frozen=True)
class Budget:
    """The time that a run is given in all, and the share of it after which the learning rate decays."""

    train_s: float
    clock: Literal["wall", "cpu"] = "cpu"
    decay_from: float = 0.7

    def now_s(self) -> float:
        """The reading of the budget's clock."""
        return time.monotonic() if self.clock == "wall" else time.process_time()

    def elapsed(self, progress: Progress) -> float:
        """The share of the time that is spent, in [0, 1]."""
        return min(progress.train_s / self.train_s, 1.0)

    def lr_factor(self, progress: Progress) -> float:
        """The share of the base learning rate at this point, in [0, 1]."""
        decay = (1.0 - self.elapsed(progress)) / (1.0 - self.decay_from)
        return min(1.0, (progress.steps + 1) / WARMUP_STEPS, decay)


@dataclass(frozen=True)
class Objective:
    """What a run minimises, and what it reports on the way."""

    backward: Callable[[Progress], tuple[float, int]]
    """Fills the gradients for the next batch; returns its loss and how many tokens it holds."""
    evaluate: Callable[[], dict[str, float]]
    """Held-out figures, smaller is better."""


def train(
    model: PreTrainedModel,
    objective: Objective,
    folder: Path,
    budget: Budget,
    workers: Workers,
    report_every_s: float = 240.0,
    log: Callable[[str], None] = print,
) -> Progress:
    """Trains `model` in place until the budget is spent, resuming from the checkpoint in `folder` if there is one.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = Optimizers(model, workers)
    progress = _resume(model, optimizers, folder / CHECKPOINT)
    progress.clock = budget.clock
    origin_s = budget.now_s() - progress.train_s
    reported_s, losses = progress.train_s, [math.nan]
    while progress.train_s < budget.train_s:
        loss, tokens = objective.backward(progress)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(budget.lr_factor(progress))
        losses.append(loss)
        if not math.isfinite(losses[-1]):
            raise FloatingPointError("the loss is not a number any more: lower the learning rate")
        progress.steps += 1
        progress.tokens += tokens
        progress.train_s = budget.now_s() - origin_s
        if progress.train_s - reported_s >= report_every_s or progress.train_s >= budget.train_s:
            _save(model, optimizers, progress, folder / CHECKPOINT)
            entry = {**asdict(progress), "loss": sum(losses[1:]) / len(losses[1:]), **objective.evaluate()}
            with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            log(f"{folder.name}: {entry}")
            reported_s, losses = progress.train_s, [math.nan]
    return progress


def load_weights(model: PreTrainedModel, folder: Path) -> Progress:
    """Fills `model` from the checkpoint in `folder` and says how far that run was."""
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    model.load_state_dict(state["model"])
    return Progress(**state["progress"])


def _resume(model: PreTrainedModel, optimizers: Optimizers, path: Path) -> Progress:
    if not path.exists():
        return Progress()
    progress = load_weights(model, path.parent)
    optimizers.load_state_dict(torch.load(path, weights_only=True)["optimizers"])
    return progress


def _save(model: PreTrainedModel, optimizers: Optimizers, progress: Progress, path: Path) -> None:
    state = {"model": model.state_dict(), "optimizers": optimizers.state_dict(), "progress": asdict(progress)}
    # Written aside and renamed, so that an interrupted run never leaves half a checkpoint.
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
