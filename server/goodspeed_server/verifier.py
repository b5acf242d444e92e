"""The blocking half of a round, run on the engine's own thread: one forward pass, then every draft is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from goodspeed.engine import Engine, Segment
from goodspeed.engine.stopwatch import Stopwatch
from goodspeed.logprobs import pack_logprobs
from goodspeed.rules import Coupled, checked_judgement, rule_named
from goodspeed.sampling import SamplingParams
from goodspeed.sampling.bending import bend
from goodspeed.sampling.warping import RowParams, log_probs
from goodspeed.verification import Judgement, Rule, judge_coupled
from goodspeed_server.drawing import UNSOUND, Drawing

__all__ = ["Chunk", "Copy", "Outcome", "Pass", "Turn", "Verifier"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a prompt on its way into the slab."""

    row: int
    start: int
    tokens: Sequence[int]

    @property
    def size(self) -> int:
        """How many tokens the model runs."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Turn:
    """One stream's part in a round: its last committed token, which the model has not seen yet, and its draft."""

    row: int
    base: int
    """The committed length; the last committed token stands at `base - 1`."""
    last_token: int
    drafted: Sequence[int]
    params: SamplingParams
    q: Sequence[Any] = ()
    """What was sent with each drafted token, as the rule reads it; empty where it wants nothing."""
    generated: Sequence[int] = ()
    """The tokens behind the prompt, where the parameters penalise them."""
    logprobs: int = -1
    """As in `messages.Open`."""

    @property
    def size(self) -> int:
        """How many tokens the model runs, and of how many it says what follows."""
        return len(self.drafted) + 1


@dataclass(frozen=True, slots=True)
class Copy:
    """What one row holds is to be in another too."""

    source: int
    row: int
    tokens: int
    """How many, from the first."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Everything one forward pass carries."""

    turns: Sequence[Turn]
    chunks: Sequence[Chunk]
    copies: Sequence[Copy] = ()
    """To be made before anything is run, in this order."""
    reused: int = 0
    """How many prompt tokens do not have to be run, since a row held them."""

    @property
    def tokens(self) -> int:
        """How many tokens the model runs."""
        return sum(turn.size for turn in self.turns) + sum(chunk.size for chunk in self.chunks)

    @property
    def rows(self) -> Sequence[int]:
        """Whose they are."""
        return [*(turn.row for turn in self.turns), *(chunk.row for chunk in self.chunks)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a pass."""

    turns: Sequence[Turn]
    """Those that were judged: all whose logits are numbers."""
    judgements: Sequence[Judgement]
    """One for each of `turns`."""
    forward_s: float
    """The forward pass: on a CPU by `Engine.busy_clock`, elsewhere the device's own time."""
    judge_s: float
    """Everything else, by `Engine.busy_clock`: laying the pass out, sampling, judging."""
    logits: Tensor | None
    """The target's own, where they are kept: float32 [sum(S_i + 1), vocab]."""
    logprobs: Sequence[bytes] = ()
    """Of every turn's accepted tokens and the one behind them (`logprobs.pack_logprobs`); empty if nobody asked."""
    unsound: Sequence[Turn] = ()
    """The others: somewhere in the logits of each is a NaN or an infinity, or nothing but minus infinities."""


class Verifier:
    """Runs passes and judges drafts under one rule.

    Args:
        engine: holds the target and its KV slab.
        rule: its name.
        keep_logits: whether outcomes hold them; a pass of many rows and a large vocabulary has a lot.
    """

    def __init__(self, engine: Engine, rule: Rule, *, keep_logits: bool = False) -> None:
        self._keep_logits = keep_logits
        self._engine = engine
        self._clock = engine.busy_clock
        self._watch = Stopwatch(engine.device, self._clock)
        self._rule = rule_named(rule)
        self._coupled = type(self._rule) is Coupled
        """Whether every row is drawn in the same way: only then can all be drawn at once."""

    @torch.inference_mode()
    def run(self, work: Pass) -> Outcome:
        """Verify; blocks for as long as the forward pass takes."""
        begun = self._clock()
        segments = [Segment(chunk.row, chunk.start, chunk.tokens, 0) for chunk in work.chunks]
        segments += [
            Segment(turn.row, turn.base - 1, [turn.last_token, *turn.drafted], turn.size) for turn in work.turns
        ]
        drawing = Drawing(work.turns, self._engine.device) if self._coupled else None
        self._watch.start()
        logits = self._engine.forward(segments)  # [sum(S_i + 1), vocab]
        self._watch.stop()
        bent = _bent(work.turns, logits)
        finite = torch.isfinite(bent.amax(-1))  # [sum(S_i + 1)]; of a NaN beside anything the largest is NaN
        tokens = None if drawing is None else drawing.tokens(bent, finite)
        sound = finite.tolist() if tokens is None else [token != UNSOUND for token in tokens]
        turns, unsound = work.turns, list[Turn]()
        if not all(sound):
            turns, unsound, kept = _sifted(turns, sound)
            logits, bent = logits[kept], bent[kept]
            tokens = None if tokens is None else [tokens[index] for index in kept]
        judgements = self._judge_each(turns, bent) if tokens is None else _judge_coupled(turns, tokens)
        logprobs = _logprobs(turns, judgements, logits)
        forward_s = self._watch.seconds()
        judge_s = self._clock() - begun - forward_s
        kept_logits = logits if self._keep_logits else None
        return Outcome(turns, judgements, forward_s, judge_s, kept_logits, logprobs, unsound)

    def _judge_each(self, turns: Sequence[Turn], logits: Tensor) -> list[Judgement]:
        if not turns:
            return []
        params = [turn.params for turn in turns for _ in range(turn.size)]
        log_p = log_probs(logits, RowParams.of(params, logits.device))
        judgements = []
        offset = 0
        for turn in turns:
            end = offset + turn.size
            judgements.append(
                checked_judgement(self._rule, log_p[offset:end], turn.drafted, turn.q, turn.params.seed, turn.base)
            )
            offset = end
        return judgements


def _judge_coupled(turns: Sequence[Turn], tokens: Sequence[int]) -> list[Judgement]:
    """Of each draft, by the target's own tokens: [sum(S_i + 1)]."""
    judgements = []
    offset = 0
    for turn in turns:
        end = offset + turn.size
        judgements.append(judge_coupled(turn.drafted, tokens[offset:end]))
        offset = end
    return judgements


def _sifted(turns: Sequence[Turn], sound: Sequence[bool]) -> tuple[list[Turn], list[Turn], list[int]]:
    """The turns all of whose logits can be drawn from, the others, and which logits are the former's."""
    whole, unsound, kept = list[Turn](), list[Turn](), list[int]()
    offset = 0
    for turn in turns:
        own = range(offset, offset + turn.size)
        if all(sound[index] for index in own):
            whole.append(turn)
            kept += own
        else:
            unsound.append(turn)
        offset = own.stop
    return whole, unsound, kept


def _bent(turns: Sequence[Turn], logits: Tensor) -> Tensor:
    """The logits that are judged by: a copy, where some stream bends its own."""
    if not any(turn.params.bent for turn in turns):
        return logits
    bent, offset = logits.clone(), 0
    for turn in turns:
        end = offset + turn.size
        if turn.params.bent:
            bend(bent[offset:end], turn.params, turn.generated, turn.drafted)
        offset = end
    return bent


def _logprobs(turns: Sequence[Turn], judgements: Sequence[Judgement], logits: Tensor) -> list[bytes]:
    if all(turn.logprobs < 0 for turn in turns):
        return []
    packed, offset = [], 0
    for turn, judgement in zip(turns, judgements, strict=True):
        committed = [*turn.drafted[: judgement.accepted], judgement.token]
        own = logits[offset : offset + len(committed)]
        packed.append(b"" if turn.logprobs < 0 else pack_logprobs(own, committed, turn.logprobs))
        offset += turn.size
    return packed
