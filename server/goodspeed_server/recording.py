"""What a server keeps of its verdicts, for tuning drafts: off unless an operator asks for it.

The event loop hands every pass over and goes on; a thread of its own picks the target's likeliest tokens out of the
logits, puts texts together and writes them. Whatever does not fit, in memory or on disk, is left out and counted:
recording never makes a round wait.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from goodspeed.errors import InvalidRequest
from goodspeed.stream import Commit
from goodspeed.tuning.passages import SHARD_SUFFIX, Passage, write_shard
from goodspeed_server.live import LiveStream

__all__ = ["Recorder", "Verified"]

logger = logging.getLogger(__name__)

SUPPORT = 64
"""How many of the target's likeliest tokens are kept at each position."""

_WAITING_BYTES = 2**28
"""Logits that may wait for the thread; with more than that a pass is left out."""
_SHARD_TOKENS = 2**16
"""Distributions of a shard."""
_SHARD_S = 60.0
"""What is finished is on the disk after so long, if anything goes on at all."""
_PIECE_TOKENS = 2**10
"""A text so long is written as far as it is, so that its distributions leave the memory."""


@dataclass(frozen=True, slots=True)
class Verified:
    """One stream's part in a pass."""

    live: LiveStream
    first: int
    """Where its logits begin in those of the pass."""
    drafted: int
    commit: Commit


@dataclass(frozen=True, slots=True)
class _Turn:
    """The same, in numbers of its own: the stream goes on meanwhile."""

    stream: int
    first: int
    base: int
    committed: tuple[int, ...]
    block: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Pass:
    logits: Tensor
    turns: Sequence[_Turn]


@dataclass(frozen=True, slots=True)
class _Began:
    stream: int
    text: _Text


@dataclass(frozen=True, slots=True)
class _Ended:
    stream: int


@dataclass(slots=True)
class _Text:
    """A text on its way to the disk: what is known of its end, from `start` on, without a gap."""

    tokens: list[int]
    client: str
    domain: str
    drafter: str
    temperature: float
    start: int = 0
    support: list[NDArray[np.int32]] = field(default_factory=list)
    log_p: list[NDArray[np.float16]] = field(default_factory=list)
    blocks: list[tuple[int, int, int, int]] = field(default_factory=list)

    @property
    def known(self) -> int:
        return sum(map(len, self.support))

    def take(self) -> Passage | None:
        """What is known, as a passage; nothing is known afterwards."""
        if not self.support:
            return None
        known, start = self.known, self.start
        passage = Passage(
            tokens=np.array(self.tokens[: start + known], np.int32),
            start=start,
            support=np.concatenate(self.support),
            log_p=np.concatenate(self.log_p),
            client=self.client,
            domain=self.domain,
            drafter=self.drafter,
            temperature=self.temperature,
            blocks=np.array(self.blocks, np.int32),
        )
        self.support, self.log_p, self.blocks = [], [], []
        return passage


_Event: TypeAlias = _Pass | _Began | _Ended | None


class Recorder:
    """Writes shards of passages to a folder; see `goodspeed.tuning.passages`.

    Args:
        folder: made if it is not there; what earlier runs recorded stays until room is needed.
        max_bytes: of all shards in it; the oldest are deleted for new ones.
        shard_tokens: distributions of a shard.
        clock: nanoseconds; names the shards, so that the oldest sort first.

    Raises:
        InvalidRequest: the folder cannot be written to, or the bound is too small.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        shard_tokens: int = _SHARD_TOKENS,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        if max_bytes < 2**20:
            raise InvalidRequest("recording needs room for a megabyte at least: see --record-max-mb")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InvalidRequest(f"cannot record to {folder}: {error.strerror}; give another --record") from None
        self._folder = folder
        self._max_bytes = max_bytes
        self._shard_tokens = shard_tokens
        self._clock = clock
        self._numbers: dict[LiveStream, int] = {}
        self._next = 0
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._texts: dict[int, _Text] = {}
        self._finished: list[Passage] = []
        self._failing = False
        self._written_ns = clock()
        self.recorded = 0
        """Passages on the disk so far."""
        self.left_out = 0
        """Passes that were dropped, for want of memory or by a defect, and passages that the disk did not take."""
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()
        logger.warning("everything that is verified is recorded to %s, the users' texts among it", folder)

    def passed(self, logits: Tensor, verified: Sequence[Verified]) -> None:
        """Take a pass; never blocks.

        Args:
            logits: float32 [sum(S_i + 1), vocab], which nobody changes any more.
            verified: whose they are.
        """
        if not verified:
            return  # prompts alone, or streams that were closed meanwhile
        turns = [self._turn(part) for part in verified]
        with self._lock:
            room = self._waiting_bytes + logits.nbytes <= _WAITING_BYTES
            if room:
                self._waiting_bytes += logits.nbytes
            else:
                self.left_out += 1
        # Without its logits, the committed tokens are context for what comes.
        self._events.put(_Pass(logits if room else logits.new_zeros((0, 0)), turns))

    def ended(self, live: LiveStream) -> None:
        """A stream is over, or was closed."""
        number = self._numbers.pop(live, None)
        if number is not None:
            self._events.put(_Ended(number))

    def close(self) -> None:
        """Write what is there, and end the thread; blocks meanwhile."""
        for live in list(self._numbers):
            self.ended(live)
        self._events.put(None)
        self._thread.join()
        logger.info("recorded %d passages to %s, left out %d", self.recorded, self._folder, self.left_out)

    def _turn(self, part: Verified) -> _Turn:
        live, commit = part.live, part.commit
        if live not in self._numbers:
            self._numbers[live] = self._next
            self._next += 1
            account, stream = live.account, live.stream
            text = _Text(
                tokens=stream.tokens[: commit.base],
                client=account.name,
                domain=stream.domain,
                drafter=account.drafter,
                temperature=stream.params.temperature,
            )
            self._events.put(_Began(self._numbers[live], text))
        committed = live.stream.tokens[commit.base : commit.base + commit.size]
        block = (commit.base, live.budget, part.drafted, commit.accepted)
        return _Turn(self._numbers[live], part.first, commit.base, tuple(committed), block)

    def _work(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                self._take(event)
            except Exception:
                # A defect of ours; the server serves on.
                self.left_out += 1
                logger.exception("a pass could not be recorded")
        try:
            self._write()
        except Exception:
            logger.exception("the last passages could not be recorded")

    def _take(self, event: _Pass | _Began | _Ended) -> None:
        match event:
            case _Began(stream, text):
                self._texts[stream] = text
            case _Ended(stream):
                self._finish(self._texts.pop(stream))
            case _Pass(logits, turns):
                try:
                    self._keep(logits, turns)
                finally:
                    with self._lock:
                        self._waiting_bytes -= logits.nbytes
        full = sum(passage.known for passage in self._finished) >= self._shard_tokens
        if full or self._clock() - self._written_ns >= _SHARD_S * 1e9:
            self._write()

    def _keep(self, logits: Tensor, turns: Sequence[_Turn]) -> None:
        lost = not len(logits)
        if not lost:
            rows = [turn.first + place for turn in turns for place in range(len(turn.committed))]
            chosen = logits[torch.tensor(rows, device=logits.device)]  # [committed, vocab]
            log_p, support = chosen.log_softmax(-1).topk(min(SUPPORT, chosen.shape[1]), dim=-1)
            log_p_rows = log_p.cpu().numpy().astype(np.float16)
            support_rows = support.cpu().numpy().astype(np.int32)
        begin = 0
        for turn in turns:
            text = self._texts[turn.stream]
            if lost or len(text.tokens) != turn.base or text.known >= _PIECE_TOKENS:
                self._finish(text)
            end = begin + len(turn.committed)
            if not lost:
                if not text.support:
                    text.start = turn.base
                text.support.append(support_rows[begin:end])
                text.log_p.append(log_p_rows[begin:end])
                text.blocks.append(turn.block)
            text.tokens += turn.committed
            begin = end

    def _finish(self, text: _Text) -> None:
        passage = text.take()
        if passage is not None:
            self._finished.append(passage)

    def _write(self) -> None:
        passages, self._finished = self._finished, []
        self._written_ns = self._clock()
        if not passages:
            return
        path = self._folder / f"{self._written_ns:020d}-{os.getpid()}{SHARD_SUFFIX}"
        trouble = None
        try:
            write_shard(path, passages)
            self._make_room(keep=path)
        except OSError as error:
            trouble = error.strerror
        if trouble is None:
            self.recorded += len(passages)
        else:
            self.left_out += len(passages)
            if not self._failing:  # once, and not with every shard of a full disk
                logger.error("nothing can be recorded to %s (%s); the server serves on", self._folder, trouble)
        self._failing = trouble is not None

    def _make_room(self, keep: Path) -> None:
        """Delete the oldest shards until the rest is within the bound."""
        sizes = {path: path.stat().st_size for path in sorted(self._folder.glob(f"*{SHARD_SUFFIX}"))}
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self._max_bytes or path == keep:
                break
            path.unlink(missing_ok=True)
            total -= size
