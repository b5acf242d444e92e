"""What strangers can have logged: they may come as often as they like, and fill nobody's disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from goodspeed_server.pacing import Bucket

__all__ = ["FloodLimit"]


class _Most(NamedTuple):
    """How many lines of one kind are written."""

    at_once: int
    per_s: float


_OF_STRANGERS, _OF_TEXTS = _Most(50, 20 / 60), _Most(1000, 10)
_CAUSED_BY_PEERS = {
    "asyncio": _OF_STRANGERS,
    "goodspeed_server.accepting": _OF_STRANGERS,
    "goodspeed_server.auditing": _OF_STRANGERS,
    "goodspeed_server.doorkeeper": _OF_STRANGERS,
    "goodspeed_server.fitting": _OF_STRANGERS,
    "goodspeed_server.link": _OF_STRANGERS,
    "goodspeed_server.listener": _OF_STRANGERS,
    "goodspeed_server.live": _OF_STRANGERS,
    "goodspeed_server.settling": _OF_STRANGERS,
    "goodspeed_server.streams": _OF_TEXTS,
    "websockets.server": _OF_STRANGERS,
}
"""Loggers of lines that somebody else decides how many there are of."""
_KINDS = 256
_LONGEST = 1000
"""Characters of a line: it may quote what a peer says of itself."""


class FloodLimit(logging.Filter):
    """For a handler: of one kind of line that peers cause, some at once, and few from then on; more of texts' own.

    None of them is long.

    The next line of the kind that is let through says how many were not.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, str], tuple[Bucket, list[int]]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is logged."""
        most = _CAUSED_BY_PEERS.get(record.name)
        if most is None:
            return True
        kind = (record.name, str(record.msg))
        if kind not in self._kinds and len(self._kinds) >= _KINDS:
            kind, most = ("", ""), _OF_STRANGERS  # a text that is made up for each line is no kind
        bucket, unsaid = self._kinds.setdefault(kind, (Bucket(*most), [0]))
        now = self._clock()
        if bucket.lacking_s(now) > 0.0:
            unsaid[0] += 1
            return False
        bucket.take(now)
        said = record.getMessage()
        if len(said) > _LONGEST:
            record.msg, record.args = "%s...", (said[:_LONGEST],)
        if unsaid[0]:
            record.msg, record.args = "%s (and %d more like it)", (record.getMessage(), unsaid[0])
            unsaid[0] = 0
        return True
