"""Every loss at the same steps, from a draft with more next-token training behind it: what each gains, and where.

The raw bundled draft was trained briefly, and any loss would help it. So it is first trained on by cross-entropy, with
the optimiser that all are compared with, until its held-out goodput stands still or the steps run out; all losses start
from there, cross-entropy among them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.tuning.runs import cards_of
from goodspeed.catalog import DEFAULT_TARGET
from goodspeed.tuning.losses import LOSSES
from goodspeed.tuning.run import Tuning, tune
from goodspeed.tuning.sources import DataSpec

__all__ = ["compare", "figures", "report", "settle"]

RAW = "pico-draft-l"
MODES = ("0", "0.7", "1")
LENGTH_AT = "4"
COMPARED = tuple(loss for loss in LOSSES if loss not in ("utility", "inverse-goodput"))
"""With one budget and equal weights these two are `block` and `neg-log-alpha` once more."""


def settle(lessons: Path, folder: Path, steps: int, batch_rows: int) -> Path:
    """Train the raw draft on by cross-entropy until it stands still, at most so many steps; what is there is kept."""
    out = folder / "settled-muon"
    if not (out / "card.json").exists():
        tune(_tuning(RAW, lessons, out, "cross-entropy", 0, steps, batch_rows, evaluate_every=150, patience=2))
    return out


def compare(
    start: Path | str,
    lessons: Path,
    folder: Path,
    losses: Iterable[str],
    seeds: Iterable[int],
    steps: int,
    batch_rows: int,
) -> list[dict[str, Any]]:
    """Tune by each loss with each seed; results that are there already are kept.

    Returns:
        A card each, with the loss and the seed in `training`.
    """

    def out(loss: str, seed: int) -> Path:
        return folder / f"{Path(start).name}-{loss}-{steps}x{batch_rows}-{seed}"

    return cards_of(
        _tuning(str(start), lessons, out(loss, seed), loss, seed, steps, batch_rows, evaluate_every=steps, patience=1)
        for seed in seeds
        for loss in losses
    )


def _tuning(
    start: str,
    lessons: Path,
    out: Path,
    loss: str,
    seed: int,
    steps: int,
    batch_rows: int,
    *,
    evaluate_every: int,
    patience: int,
) -> Tuning:
    return Tuning(
        draft=start,
        target=DEFAULT_TARGET,
        out=out,
        sources=[DataSpec(lessons)],
        loss=loss,
        steps=steps,
        batch_rows=batch_rows,
        evaluate_every=evaluate_every,
        patience=patience,
        seed=seed,
        measured_rows=32,
        progress_bar=False,
    )


def figures(cards: Sequence[dict[str, Any]], when: str, temperature: str) -> dict[str, float]:
    """Acceptance, coupled acceptance and length at S = 4: means over clients and cards."""
    found = [by[temperature] for card in cards for by in card[when].values()]
    return {
        "acceptance": statistics.fmean(one["acceptance"] for one in found),
        "coupled": statistics.fmean(one["coupled"] for one in found),
        "length": statistics.fmean(one["length"][LENGTH_AT] for one in found),
    }


def report(cards: Sequence[dict[str, Any]], title: str) -> Table:
    """A row a loss; the best of each column is marked, and the spread over the seeds stands behind."""
    losses = list(dict.fromkeys(card["training"]["loss"] for card in cards))
    rows: dict[str, list[float]] = {"before": _row(cards, "before")}
    spreads: dict[str, list[float]] = {}
    for loss in losses:
        own = [card for card in cards if card["training"]["loss"] == loss]
        rows[loss] = _row(own, "after")
        each = [_row([card], "after") for card in own]
        spreads[loss] = [(max(column) - min(column)) / 2 for column in zip(*each, strict=True)]
    table = Table(title=title)
    table.add_column("loss", no_wrap=True)
    for mode in MODES:
        for what in ("acceptance", "coupled", f"length S={LENGTH_AT}"):
            if mode != "0" or what != "coupled":
                table.add_column(f"{what}, T={mode}", justify="right")
    best = [max(column) for column in zip(*(rows[loss] for loss in losses), strict=True)]
    for name, values in rows.items():
        cells = []
        for place, value in enumerate(values):
            spread = f" ±{spreads[name][place]:.3f}" if name in spreads else ""
            mark = "*" if name in spreads and value == best[place] else ""
            cells.append(f"{value:.3f}{spread}{mark}")
        table.add_row(name, *cells)
    return table


def _row(cards: Sequence[dict[str, Any]], when: str) -> list[float]:
    values = []
    for mode in MODES:
        found = figures(cards, when, mode)
        names = ("acceptance", "length") if mode == "0" else ("acceptance", "coupled", "length")
        values += [found[name] for name in names]
    return values
