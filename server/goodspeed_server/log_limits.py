"""What strangers can have logged: they may come as often as they like, and fill nobody's disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from goodspeed_server.gate import Bucket

__all__ = ["FloodLimit"]

_CAUSED_BY_PEERS = frozenset(
    {"goodspeed_server.doorkeeper", "goodspeed_server.link", "goodspeed_server.listener", "websockets.server"}
)
"""Loggers of lines that somebody else decides how many there are of."""
_AT_ONCE = 50
_PER_S = 20 / 60
_KINDS = 256


class FloodLimit(logging.Filter):
    """For a handler: of one kind of line that peers cause, some at once, and a few a minute from then on.

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
        if record.name not in _CAUSED_BY_PEERS:
            return True
        kind = (record.name, str(record.msg))
        if kind not in self._kinds and len(self._kinds) >= _KINDS:
            kind = ("", "")  # a text that is made up for each line is no kind
        bucket, unsaid = self._kinds.setdefault(kind, (Bucket(_AT_ONCE, _PER_S), [0]))
        now = self._clock()
        if bucket.lacking_s(now) > 0.0:
            unsaid[0] += 1
            return False
        bucket.take(now)
        if unsaid[0]:
            record.msg, record.args = "%s (and %d more like it)", (record.getMessage(), unsaid[0])
            unsaid[0] = 0
        return True
