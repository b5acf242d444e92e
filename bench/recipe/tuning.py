"""The tuned drafts, made by the command that every user has: `goodspeed tune`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BATCH_TOKENS", "LESSON_ROWS", "TUNED", "Plan", "tune"]

LESSON_ROWS = 4096
"""So many rows of 256 tokens are read, and as many written: a draft of 2M parameters learns 0.5M tokens by heart."""

_BATCH_ROWS = 16
BATCH_TOKENS = _BATCH_ROWS * 256
"""Of every step."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one draft is tuned."""

    start: str | None
    """The bundled draft that it is tuned from; None for layers of the target."""
    steps: int
    """At most."""


TUNED = {"pico-draft-m": Plan(None, 500), "pico-draft-l-tuned": Plan("pico-draft-l", 2000)}


def tune(draft: Path, target: Path, lessons: Path, out: Path, *, steps: int, seed: int, threads: int) -> dict[str, Any]:
    """Run the command, or take up the run that was interrupted in `out`; one that is over is not repeated.

    Returns:
        The card that the command wrote.

    Raises:
        subprocess.CalledProcessError: it failed; it has said why.
    """
    card = out / "card.json"
    if not card.exists():
        command = [
            sys.executable, "-m", "goodspeed", "tune", "--loss", "forward-kl",
            "--draft", str(draft), "--target", str(target), "--data", str(lessons), "--out", str(out),
            "--steps", str(steps), "--batch-rows", str(_BATCH_ROWS), "--evaluate-every", str(max(1, steps // 8)),
            "--held-out", "0.02", "--seed", str(seed), "--threads", str(threads),
        ]  # fmt: skip
        if (out / "checkpoints").exists():
            command.append("--resume")
        subprocess.run(command, check=True)
    known: dict[str, Any] = json.loads(card.read_bytes())
    return known
