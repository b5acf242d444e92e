"""A queue in front of the rows, and who waits in it: an agent is a letter, and its streams are numbered."""

from __future__ import annotations

from goodspeed_server.admission import Admission

__all__ = ["NOBODY", "WEIGHTS", "join", "queue"]

WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.5, "e": 1.0}
"""Agents, and what each counts."""
NOBODY: dict[str, int] = {}


def queue(
    *names: str, max_waiting: int = 8, max_tokens: int = 1000, rows: int = 4, keep_s: float = 0.0
) -> Admission[str, str, int]:
    """A queue in which each waits with its place of arrival; its owner is the first letter of its name."""
    waiting: Admission[str, str, int] = Admission(rows, max_waiting=max_waiting, max_tokens=max_tokens, keep_s=keep_s)
    for place, name in enumerate(names):
        assert join(waiting, name, place) == []
    return waiting


def join(
    waiting: Admission[str, str, int], key: str, request: int = 0, tokens: int = 1, now: float = 0.0, name: str = ""
) -> list[tuple[str, int]]:
    return waiting.wait(
        key, request, owner=key[0], weight=lambda: WEIGHTS[key[0]], tokens=tokens, now=now, name=name or None
    )
