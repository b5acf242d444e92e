"""A folder of recorded shards that stays within a bound."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from goodspeed.errors import InvalidRequest
from goodspeed.tuning.passages import SHARD_SUFFIX, Passage, write_shard

__all__ = ["ShardFolder"]

logger = logging.getLogger(__name__)

_LEAST_BYTES = 2**26
"""The smallest bound: what many streams finish at once has to find room below it."""
_OURS = re.compile(rf"\d{{20}}-\d+{re.escape(SHARD_SUFFIX)}(\.unfinished)?")
"""The names of what is written here: others in the folder are not to be deleted."""


class ShardFolder:
    """Writes shards, and deletes the oldest of them for new ones.

    Args:
        folder: made if it is not there, for its owner alone; what earlier runs wrote stays until room is needed.
        max_bytes: of all shards together.
        clock: nanoseconds; names the shards, so that the oldest sort first.

    Raises:
        InvalidRequest: the folder cannot be written to, or the bound is too small.
    """

    def __init__(self, folder: Path, max_bytes: int, clock: Callable[[], int] = time.time_ns) -> None:
        if max_bytes < _LEAST_BYTES:
            raise InvalidRequest(f"recording needs room for {_LEAST_BYTES >> 20} MB at least: see --record-max-mb")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InvalidRequest(f"cannot record to {folder}: {error.strerror}; give another --record") from None
        self.path = folder
        self.max_bytes = max_bytes
        self._clock = clock
        self._failing = False

    def write(self, passages: Sequence[Passage]) -> bool:
        """Write one shard; False if the disk does not take it, of which the log is told once."""
        path = self.path / f"{self._clock():020d}-{os.getpid()}{SHARD_SUFFIX}"
        trouble = None
        try:
            write_shard(path, passages)
            self._make_room(keep=path)
        except OSError as error:
            trouble = error.strerror
        if trouble is not None and not self._failing:  # once, and not with every shard of a full disk
            logger.error("nothing can be recorded to %s (%s); the server serves on", self.path, trouble)
        self._failing = trouble is not None
        return trouble is None

    def _make_room(self, keep: Path) -> None:
        """Delete the oldest shards until the rest is within the bound."""
        ours = sorted(path for path in self.path.iterdir() if _OURS.fullmatch(path.name))
        # One that somebody else deletes meanwhile needs no room.
        sizes = {path: path.stat().st_size for path in ours if path.exists()}
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self.max_bytes or path == keep:
                break
            path.unlink(missing_ok=True)
            total -= size
