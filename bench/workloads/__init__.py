"""Prompts that ship with the tree: openings of code, prose and tests, the domains the bundled models know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Prompt", "load_prompts"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One opening."""

    id: str
    text: str

    @property
    def domain(self) -> str:
        """What kind of text it opens."""
        return self.id.partition("-")[0]


def load_prompts() -> list[Prompt]:
    """Every prompt, domains interleaved, so that the first few are of all kinds."""
    lines = Path(__file__).with_name("prompts.jsonl").read_text().splitlines()
    prompts = [Prompt(entry["id"], entry["prompt"]) for entry in map(json.loads, lines)]
    by_domain = [[prompt for prompt in prompts if prompt.domain == domain] for domain in ("code", "prose", "tests")]
    return [prompt for group in zip(*by_domain, strict=True) for prompt in group]
