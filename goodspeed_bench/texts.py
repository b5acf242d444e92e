"""Whether texts come out the same, whoever schedules."""

from __future__ import annotations

from collections.abc import Sequence

from goodspeed_bench.host import Report

__all__ = ["TextsCompared"]


class TextsCompared:
    """The longest version of every text, and how many were ever contradicted."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], list[int]] = {}
        self._differing: set[tuple[str, int]] = set()

    def note(self, reports: Sequence[Report]) -> None:
        """Hold what was written against what is known."""
        for report in reports:
            for number, tokens in report.texts.items():
                key = (report.name, number)
                before = self._known.get(key, [])
                longer, shorter = (tokens, before) if len(tokens) > len(before) else (before, tokens)
                if longer[: len(shorter)] != shorter:
                    self._differing.add(key)
                self._known[key] = longer

    @property
    def count(self) -> int:
        """Texts that are known."""
        return len(self._known)

    @property
    def differing(self) -> int:
        """Those of them that ever came out otherwise."""
        return len(self._differing)
