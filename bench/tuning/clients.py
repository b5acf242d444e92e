"""One small shared draft, three client domains with budgets 2, 4 and 8: `sum log x` after each way of weighing them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.tuning.runs import cards_of
from goodspeed.catalog import DEFAULT_TARGET
from goodspeed.tuning.clients import Client
from goodspeed.tuning.run import Tuning
from goodspeed.tuning.sources import DataSpec

__all__ = ["compare", "report"]

DRAFT = "pico-draft-s"
CLIENTS = (Client("code", 2), Client("prose", 4), Client("tests", 8))
COMPARED = ("forward-kl", "neg-log-alpha", "inverse-goodput", "block", "utility")


def compare(lessons: Path, folder: Path, seeds: Iterable[int], steps: int) -> list[dict[str, Any]]:
    """Tune the shared draft by each loss with each seed; results that are there already are kept."""
    return cards_of(
        _tuning(lessons, folder / f"shared-{loss}-{steps}-{seed}", loss, seed, steps)
        for seed in seeds
        for loss in COMPARED
    )


def _tuning(lessons: Path, out: Path, loss: str, seed: int, steps: int) -> Tuning:
    return Tuning(
        draft=DRAFT,
        target=DEFAULT_TARGET,
        out=out,
        sources=[DataSpec(lessons)],
        loss=loss,
        clients=CLIENTS,
        steps=steps,
        evaluate_every=steps,
        learning_rate=3e-3,
        seed=seed,
        measured_rows=48,
        progress_bar=False,
    )


def report(cards: Sequence[dict[str, Any]], temperature: str = "1") -> Table:
    """Utility by loss, every seed's own, and each client's length at its budget."""
    table = Table(title=f"{DRAFT}, shared by code (S = 2), prose (4), tests (8); sum log x at T = {temperature}")
    for heading in ("loss", "mean", "seeds", "x code", "x prose", "x tests"):
        table.add_column(heading, justify="left" if heading == "loss" else "right", no_wrap=True)
    losses = list(dict.fromkeys(card["training"]["loss"] for card in cards))
    for when, loss in [("before", losses[0]), *(("after", loss) for loss in losses)]:
        own = [card for card in cards if card["training"]["loss"] == loss]
        values = [card["utility"][when][temperature] for card in own]
        lengths = [
            statistics.fmean(card[when][client.name][temperature]["length"][str(client.budget)] for card in own)
            for client in CLIENTS
        ]
        table.add_row(
            loss if when == "after" else "before",
            f"{statistics.fmean(values):.4f}",
            " ".join(f"{value:.4f}" for value in values),
            *(f"{length:.3f}" for length in lengths),
        )
    return table
