"""Many tunings in a row, of which those that are done already are not done again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from goodspeed.tuning.run import Prepared, Tuning, prepare, tune

__all__ = ["cards_of"]


def cards_of(runs: Iterable[Tuning]) -> list[dict[str, Any]]:
    """Tune, and read the cards; those of one seed share what they learn from and are measured on.

    Args:
        runs: they differ in draft, loss, seed and `out` alone, those of one seed behind each other.
    """
    cards = []
    seed: int | None = None
    prepared: Prepared | None = None
    for settings in runs:
        if not (settings.out / "card.json").exists():
            if prepared is None or settings.seed != seed:
                prepared, seed = prepare(settings), settings.seed
            tune(settings, prepared)
        cards.append(json.loads((settings.out / "card.json").read_bytes()))
    return cards
