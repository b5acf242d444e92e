"""What agents are asked for, and what they wrote: held against an undisturbed run's."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goodspeed.scenarios.prompts import bundled_prompts

__all__ = ["Ledger", "Written", "assignments", "orders", "read_results"]

Written = tuple[str, tuple[int, ...], str]
"""A text, its tokens, and why it ended."""


def orders(count: int, seed: int) -> list[dict[str, Any]]:
    """So many lines for `goodspeed-agent run`, each another text; `id` counts them."""
    noise, prompts = random.Random(seed), bundled_prompts()
    return [
        {
            "id": number,
            "prompt": prompts[number % len(prompts)].text,
            "temperature": noise.choice((0.0, 0.7)),
            "seed": number,
            "max_new_tokens": noise.randrange(12, 49),
        }
        for number in range(count)
    ]


def assignments(count: int, size: int, noise: random.Random) -> Iterator[list[int]]:
    """What one agent is asked for, run after run: all texts in an order of its own, then again in another."""
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += noise.sample(range(count), count)
        yield waiting[:size]
        del waiting[:size]


def read_results(file: Path) -> dict[int, dict[str, Any]]:
    """The results that are complete in a file, by their `id`; a line that a killed agent did not end is none."""
    if not file.exists():
        return {}
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return {result["id"]: result for result in map(json.loads, lines)}


@dataclass
class Ledger:
    """Every text that was completed, and what came out otherwise.

    Args:
        expected: what an undisturbed run wrote, by `id`.
    """

    expected: Mapping[int, Written]
    asked: int = 0
    compared: int = 0
    differing: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    """Results that are an error."""

    def note(self, results: Sequence[dict[str, Any]]) -> None:
        """Hold results against what they should be."""
        for result in results:
            if "error" in result:
                self.failed.append(result)
                continue
            self.compared += 1
            written = written_of(result)
            if written != self.expected[result["id"]]:
                self.differing.append({"id": result["id"], "expected": self.expected[result["id"]], "written": written})


def written_of(result: dict[str, Any]) -> Written:
    """What a result says was written."""
    return result["text"], tuple(result["tokens"]), result["finish_reason"]
