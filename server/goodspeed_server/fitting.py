"""A pass that does not fit into memory, or that the target has no answer to: cut, run again, and nobody else notices.

```
Pass -> cut_up (what fitted lately) -> Verifier.run, piece by piece -> Settled
                  ^                        |  no memory: the halves of the piece; one token is left out
                  |                        |  logits that are no numbers: the stream alone, without its draft
                  +--- PassLimit <---------+
```

A piece that is run twice writes the same keys and values into the same slots and is judged with the same noise, so that
running it again changes nothing. Nothing is committed before the last piece is there.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from goodspeed.engine import Engine
from goodspeed.errors import StreamFault
from goodspeed.verification import Judgement
from goodspeed_server.verifier import Chunk, Outcome, Pass, Turn, Verifier

__all__ = ["Fitting", "PassLimit", "Settled", "cut_up", "halved", "is_out_of_memory"]

logger = logging.getLogger(__name__)

_GROWTH = 1.125
_RETURN = 2.0
"""The same, where as much fitted before."""
_FIRST_PATIENCE = 64
_LONGEST_PATIENCE = 8192
_ALLOCATORS = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
"""What a bare RuntimeError says of memory that is not there."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of all pieces of a pass."""

    work: Pass
    """What was run in the end: without the streams that cannot go on, and with some drafts cut short."""
    judgements: Sequence[Judgement]
    """One for each turn of `work`."""
    forward_s: float
    """As in `Outcome`; so are the three that follow, each in the order of the turns of `work`."""
    judge_s: float
    logits: Tensor | None
    logprobs: Sequence[bytes]
    cut: frozenset[int] = frozenset()
    """Rows of turns whose drafts were cut short."""
    faults: Mapping[int, StreamFault] = field(default_factory=dict)
    """Why the streams in these rows cannot go on."""
    lacking: frozenset[int] = frozenset()
    """Rows of which not even one token fitted: nothing of them was judged, and they may be tried again."""
    out_of_memory: int = 0
    """How often memory did not suffice."""
    recorded: bool = False
    """Whether something was recorded meanwhile, to be replayed from then on."""

    @property
    def typical(self) -> bool:
        """Whether how long it took says anything of the next: not if it failed, or did what is done once."""
        return not (self.out_of_memory or self.recorded)


class PassLimit:
    """How many tokens a pass may carry, learned from those that found no memory.

    Where nothing ever failed there is no limit. One that failed brings it down to the largest that fitted; a step up is
    tried now and then, the more rarely the more often that has failed. Where memory that was there is gone, somebody
    else has it, and may give it back: then the way back is taken in large steps, until one fails.
    """

    def __init__(self) -> None:
        self._most: float | None = None
        self._fitted = 0
        self._had = 0
        """What once fitted, and may again."""
        self._patience = _FIRST_PATIENCE
        self._until_step = 0

    @property
    def tokens(self) -> int | None:
        """The most; None for no limit."""
        return None if self._most is None else int(self._most)

    def fitted(self, tokens: int) -> None:
        """A pass of so many tokens has run."""
        self._fitted = max(self._fitted, tokens)
        if self._most is None or 2 * tokens <= self._most:
            return  # which says nothing of larger ones
        self._until_step -= 1
        if self._until_step <= 0:
            growth = _RETURN if _RETURN * self._most <= self._had else _GROWTH
            self._most = max(self._most * growth, self._most + 1)
            self._until_step = self._patience

    def too_large(self, tokens: int) -> None:
        """A pass of so many tokens found no memory."""
        shrunk = tokens <= max(1, self._fitted)
        if shrunk:
            self._had = max(self._had, self._fitted)
            self._fitted = tokens // 2
        self._most = float(max(1, self._fitted, tokens // 2))
        self._until_step = self._patience
        if not shrunk:  # a step was too large
            self._had //= 2
            self._patience = min(2 * self._patience, _LONGEST_PATIENCE)


class Fitting:
    """Runs passes in as many pieces as memory asks for.

    Args:
        verifier: runs a piece.
        engine: that it runs on.
        there: tokens that there is memory for in one piece, as far as is known from the start; None if nothing is.
    """

    def __init__(self, verifier: Verifier, engine: Engine, there: int | None = None) -> None:
        self._verifier = verifier
        self._engine = engine
        self._there = there
        self._lacked: frozenset[int] = frozenset()
        """Rows of which not even one token fitted the last time: others are not held up by what may fail again."""
        self.limit = PassLimit()

    @property
    def most(self) -> int | None:
        """How many tokens fit into one piece; None if nothing is known of it."""
        return min((most for most in (self._there, self.limit.tokens) if most is not None), default=None)

    def run(self, work: Pass) -> Settled:
        """Verify; blocks for as long as the forward passes take."""
        begun, recordings = self._engine.busy_clock(), self._engine.recordings
        for copy in work.copies:
            self._engine.copy(copy.source, copy.row, copy.tokens)
        to_run = deque(cut_up(_without(work, self._lacked), self.most))
        to_run += [Pass([turn], []) for turn in work.turns if turn.row in self._lacked]
        to_run += [Pass([], [chunk]) for chunk in work.chunks if chunk.row in self._lacked]
        outcomes: list[Outcome] = []
        chunks: list[Chunk] = []
        faults: dict[int, StreamFault] = {}
        lacking: set[int] = set()
        alone: set[int] = set()
        failed = 0
        while to_run:
            piece = _without(to_run.popleft(), faults.keys() | lacking)
            if not piece.rows:
                continue
            outcome = self._attempt(piece)
            if outcome is None:
                failed += 1
                if smaller := halved(piece):
                    self.limit.too_large(piece.tokens)
                    to_run.extendleft(reversed(smaller))
                else:  # which says of no other stream how much of it fits
                    lacking.add(piece.rows[0])
                continue
            self.limit.fitted(piece.tokens)
            outcomes.append(outcome)
            chunks += piece.chunks
            for turn in outcome.unsound:
                # Its draft may be to blame, or the leftovers of an earlier one: its text is neither's fault.
                self._engine.clear(turn.row, turn.base)
                if turn.row in alone:
                    faults[turn.row] = _no_numbers()
                else:
                    alone.add(turn.row)
                    to_run.append(Pass([_shortened(turn, 0)], []))
        self._lacked = self._lacked.difference(work.rows) | lacking
        busy_s = self._engine.busy_clock() - begun
        settled = _settled(work, outcomes, chunks, faults, frozenset(lacking), failed, busy_s)
        return replace(settled, recorded=self._engine.recordings > recordings)

    def _attempt(self, piece: Pass) -> Outcome | None:
        """Run a piece; None if there is not the memory for it."""
        try:
            return self._verifier.run(piece)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("memory does not suffice for a pass of %d tokens in %d rows", piece.tokens, len(piece.rows))
        # Only here has the traceback let go of what the pass had already made.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what it was raised from, says that there is no memory left."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(name in str(error) for name in _ALLOCATORS):
            return True
        error = error.__cause__
    return False


def cut_up(work: Pass, most: int | None) -> list[Pass]:
    """Cut a pass into as few as hold at most so many tokens each, or else a single turn.

    A chunk may be cut; its pieces come in their order, and each row is at most once in a piece.
    """
    if most is None or work.tokens <= most:
        return [work]
    pieces: list[Pass] = []
    turns: list[Turn] = []
    chunks: list[Chunk] = []
    room = most
    parts: list[Turn | Chunk] = [*work.turns, *(piece for chunk in work.chunks for piece in _lengths_of(chunk, most))]
    for part in parts:
        # Two pieces of one chunk, of which the first fills a pass, never meet in one.
        if part.size > room and (turns or chunks):
            pieces.append(Pass(turns, chunks))
            turns, chunks, room = [], [], most
        if isinstance(part, Turn):
            turns.append(part)
        else:
            chunks.append(part)
        room -= part.size
    return [*pieces, Pass(turns, chunks)]


def halved(work: Pass) -> list[Pass]:
    """What to try in place of a pass that is too large, in this order; nothing if it cannot be smaller.

    Of a single turn half the draft is given up: a shorter draft is as good a draft.
    """
    parts: list[Turn | Chunk] = [*work.turns, *work.chunks]
    if len(parts) > 1:
        first, held = 1, parts[0].size
        while first < len(parts) - 1 and 2 * (held + parts[first].size) <= work.tokens:
            held += parts[first].size
            first += 1
        return [_pass_of(parts[:first]), _pass_of(parts[first:])]
    (part,) = parts
    if part.size == 1:
        return []
    if isinstance(part, Turn):
        return [Pass([_shortened(part, len(part.drafted) // 2)], [])]
    return [Pass([], [piece]) for piece in _lengths_of(part, (part.size + 1) // 2)]


def _pass_of(parts: Sequence[Turn | Chunk]) -> Pass:
    return Pass([part for part in parts if isinstance(part, Turn)], [part for part in parts if isinstance(part, Chunk)])


def _lengths_of(chunk: Chunk, most: int) -> Iterator[Chunk]:
    for first in range(0, chunk.size, most):
        yield Chunk(chunk.row, chunk.start + first, chunk.tokens[first : first + most])


def _shortened(turn: Turn, length: int) -> Turn:
    return replace(turn, drafted=turn.drafted[:length], q=turn.q[:length])


def _without(work: Pass, rows: Collection[int]) -> Pass:
    if not rows:
        return work
    return Pass(
        [turn for turn in work.turns if turn.row not in rows], [chunk for chunk in work.chunks if chunk.row not in rows]
    )


def _settled(
    work: Pass,
    outcomes: Sequence[Outcome],
    chunks: Sequence[Chunk],
    faults: Mapping[int, StreamFault],
    lacking: frozenset[int],
    failed: int,
    busy_s: float,
) -> Settled:
    turns = [turn for outcome in outcomes for turn in outcome.turns]
    drafted = {turn.row: len(turn.drafted) for turn in work.turns}
    forward_s = sum(outcome.forward_s for outcome in outcomes)
    logits = [outcome.logits for outcome in outcomes if outcome.logits is not None]
    asked = any(turn.logprobs >= 0 for turn in turns)
    return Settled(
        Pass(turns, _without(Pass([], chunks), faults.keys() | lacking).chunks, work.copies, work.reused),
        [judgement for outcome in outcomes for judgement in outcome.judgements],
        forward_s,
        busy_s - forward_s,
        torch.cat(logits) if len(logits) > 1 else next(iter(logits), None),
        [entry for outcome in outcomes for entry in outcome.logprobs or [b""] * len(outcome.turns)] if asked else [],
        frozenset(turn.row for turn in turns if len(turn.drafted) < drafted[turn.row]),
        faults,
        lacking,
        failed,
    )


def _no_numbers() -> StreamFault:
    return StreamFault(
        "the target's answer to this text is no number (NaN or infinite), so that nothing can be drawn from it: change "
        "the prompt (its operator can serve in another --dtype)",
        code="not_finite",
    )
