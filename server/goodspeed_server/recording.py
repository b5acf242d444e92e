"""What a server keeps of its verdicts, for tuning drafts: off unless an operator asks for it.

The event loop hands every pass over and goes on; a thread of its own picks the target's likeliest tokens out of the
logits, puts texts together and writes them. Whatever does not fit, in memory or on disk, is left out, counted and told
of: recording never makes a round wait.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from goodspeed.stream import Commit
from goodspeed.tuning.passages import Passage
from goodspeed_server.live import LiveStream
from goodspeed_server.shards import ShardFolder

__all__ = ["Recorder", "Verified"]

logger = logging.getLogger(__name__)

SUPPORT = 64
"""How many of the target's likeliest tokens are kept at each position."""

_WAITING_BYTES = 2**28
"""Logits that may wait for the thread; with more than that a pass is left out, unless nothing waits before it."""
_WAITING_PASSES = 4096
"""So many passes may wait, with their logits or without; a thread that is so far behind is stuck."""
_SHARD_BYTES = 2**25
_SHARD_S = 60.0
"""What is finished is on the disk after so long."""
_TELL_S = 60.0
"""How often it is told that something was left out."""
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

    def add(self, turn: _Turn, log_p: NDArray[np.float16], support: NDArray[np.int32]) -> None:
        """What the target thought where the tokens of a turn were committed, before these are added themselves."""
        if not self.support:
            self.start = turn.base
        self.support.append(support)
        self.log_p.append(log_p)
        self.blocks.append(turn.block)

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


@dataclass(frozen=True, slots=True)
class _Due:
    """What is finished is to be written now."""


_DUE = _Due()
_Event: TypeAlias = _Pass | _Began | _Ended | _Due | None
"""None is the last."""


class Recorder:
    """Makes passages of verdicts, and shards of passages; see `goodspeed.tuning.passages`.

    Args:
        folder: where shards go.
        shard_bytes: of a shard, about; at most a quarter of the folder's bound.
        clock: nanoseconds.
    """

    def __init__(
        self,
        folder: ShardFolder,
        *,
        shard_bytes: int = _SHARD_BYTES,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._folder = folder
        self._shard_bytes = min(shard_bytes, folder.max_bytes // 4)
        self._clock = clock
        self._numbers: dict[LiveStream, int] = {}
        self._next = 0
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._texts: dict[int, _Text] = {}
        self._finished: list[Passage] = []
        self._finished_at_ns: int | None = None
        """Since when something waits to be written."""
        self._told = 0
        self._told_at_ns: int | None = None
        self.recorded = 0
        """Passages on the disk so far."""
        self.left_out = 0
        """Passes that were dropped, for want of memory or by a defect, and passages that the disk did not take."""
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()
        logger.warning("everything that is verified is recorded to %s, the users' texts among it", folder.path)

    def passed(self, logits: Tensor, verified: Sequence[Verified]) -> None:
        """Take a pass; never blocks.

        Args:
            logits: float32 [sum(S_i + 1), vocab], which nobody changes any more.
            verified: whose they are.
        """
        if not verified:
            return  # prompts alone, or streams that were closed meanwhile
        if self._events.qsize() >= _WAITING_PASSES:
            # Their texts break off here: what comes later does not follow what the thread knows of them.
            self._leave_out(1)
            return
        turns = [self._turn(part) for part in verified]
        with self._lock:
            room = not self._waiting_bytes or self._waiting_bytes + logits.nbytes <= _WAITING_BYTES
            if room:
                self._waiting_bytes += logits.nbytes
        if not room:
            self._leave_out(1)
        # Without its logits, the committed tokens are context for what comes.
        self._events.put(_Pass(logits if room else logits.new_zeros((0, 0)), turns))

    def ended(self, live: LiveStream) -> None:
        """A stream is over, or was closed; or what it drafts with is another."""
        number = self._numbers.pop(live, None)
        if number is not None:
            self._events.put(_Ended(number))

    def close(self, within_s: float) -> None:
        """Write what is there, and end the thread; blocks meanwhile, but no longer than that."""
        for live in list(self._numbers):
            self.ended(live)
        self._events.put(None)
        self._thread.join(within_s)
        if self._thread.is_alive():
            logger.error("%s does not answer: what was not written there yet is lost", self._folder.path)
        logger.log(
            logging.WARNING if self.left_out else logging.INFO,
            "recorded %d passages to %s, left out %d",
            self.recorded,
            self._folder.path,
            self.left_out,
        )

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

    def _leave_out(self, count: int) -> None:
        """Count what is left out, and tell of it now and then."""
        with self._lock:
            self.left_out += count
            now = self._clock()
            if self._told_at_ns is not None and now - self._told_at_ns < _TELL_S * 1e9:
                return
            self._told_at_ns, more, self._told = now, self.left_out - self._told, self.left_out
        logger.warning("left out of the recording: %d more, %d in all, since it cannot keep up", more, self.left_out)

    def _work(self) -> None:
        event: _Event = _DUE
        while event is not None:
            try:
                event = self._events.get(timeout=self._due_s())
            except queue.Empty:
                event = _DUE
            try:
                self._take(event)
            except Exception:
                # A defect of ours; the server serves on.
                self._leave_out(1)
                logger.exception("a pass could not be recorded")

    def _due_s(self) -> float | None:
        """In how long what is finished is to be written; None if there is nothing."""
        if self._finished_at_ns is None:
            return None
        return max(0.0, _SHARD_S - (self._clock() - self._finished_at_ns) / 1e9)

    def _take(self, event: _Event) -> None:
        match event:
            case _Began(stream, text):
                self._texts[stream] = text
            case _Ended(stream):
                if stream in self._texts:  # else it broke off
                    self._finish(self._texts.pop(stream))
            case _Pass(logits, turns):
                try:
                    self._keep(logits, turns)
                finally:
                    with self._lock:
                        self._waiting_bytes -= logits.nbytes
        full = sum(passage.nbytes for passage in self._finished) >= self._shard_bytes
        if full or event is None or self._due_s() == 0:
            self._write()

    def _keep(self, logits: Tensor, turns: Sequence[_Turn]) -> None:
        likeliest = self._likeliest(logits, turns)
        begin = 0
        for turn in turns:
            end = begin + len(turn.committed)
            text = self._texts.get(turn.stream)
            if text is None:
                pass  # it broke off
            elif len(text.tokens) != turn.base:
                self._finish(self._texts.pop(turn.stream))
            else:
                if likeliest is None or text.known >= _PIECE_TOKENS:
                    self._finish(text)
                if likeliest is not None:
                    log_p, support = likeliest
                    text.add(turn, log_p[begin:end], support[begin:end])
                text.tokens += turn.committed
            begin = end

    def _likeliest(
        self, logits: Tensor, turns: Sequence[_Turn]
    ) -> tuple[NDArray[np.float16], NDArray[np.int32]] | None:
        """Log-probabilities and tokens at the committed positions, [committed, SUPPORT] each; None if lost."""
        if not len(logits):
            return None
        rows = [turn.first + place for turn in turns for place in range(len(turn.committed))]
        try:
            chosen = logits[torch.tensor(rows, device=logits.device)]  # [committed, vocab]
            log_p, support = chosen.log_softmax(-1).topk(min(SUPPORT, chosen.shape[1]), dim=-1)
        except torch.OutOfMemoryError:
            # The slab has nearly all of a GPU: the texts go on, and the pass is left out.
            self._leave_out(1)
            return None
        return log_p.cpu().numpy().astype(np.float16), support.cpu().numpy().astype(np.int32)

    def _finish(self, text: _Text) -> None:
        passage = text.take()
        if passage is not None:
            self._finished.append(passage)
            if self._finished_at_ns is None:
                self._finished_at_ns = self._clock()

    def _write(self) -> None:
        passages, self._finished, self._finished_at_ns = self._finished, [], None
        if not passages:
            return
        if self._folder.write(passages):
            self.recorded += len(passages)
        else:
            self._leave_out(len(passages))
