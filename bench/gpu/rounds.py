"""Rounds of one case: measured whole, in every way the engine has, and in parts."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from bench.gpu.cases import Case
from bench.gpu.hardware import synchronise
from goodspeed.engine import Engine, Segment
from goodspeed.sampling import SamplingParams
from goodspeed.verification import judge_coupled
from goodspeed_server.drawing import Drawing
from goodspeed_server.verifier import Pass, Turn, Verifier

__all__ = ["Bench", "Timing", "Way"]

Way = str
"""How the engine runs a pass: `graphs`, where a bucket's graph is replayed if that is faster; `eager`; `packed`."""

_TEMPERATURE = 0.8
_WARM_UP = 3
"""The second pass of a bucket captures it."""
_CHUNK_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Timing:
    """Some rounds, ms."""

    median_ms: float
    best_ms: float
    rounds: int

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Timing:
        """Sum them up."""
        return cls(statistics.median(times_ms), min(times_ms), len(times_ms))


@dataclass
class _Laps:
    """Times between calls, each on its own, by what was done."""

    device: torch.device
    ms: dict[str, list[float]] = field(default_factory=dict)
    _last_s: float = 0.0

    def start(self) -> None:
        synchronise(self.device)
        self._last_s = time.perf_counter()

    def lap(self, name: str, *, wait: bool = True) -> None:
        if wait:
            synchronise(self.device)
        now_s = time.perf_counter()
        self.ms.setdefault(name, []).append(1e3 * (now_s - self._last_s))
        self._last_s = now_s


class Bench:
    """One case on an engine whose slab is made anew for it.

    Args:
        engine: padded; nothing it holds is kept.
        case: what to run.
    """

    def __init__(self, engine: Engine, case: Case) -> None:
        self._engine = engine
        self._case = case
        self._rng = random.Random(0)
        self._verifier = Verifier(engine, "coupled")
        engine.begin_anew(case.rows, case.max_length)

    def fill(self, limit_s: float) -> float:
        """Cache random text, so that nothing is measured on zeros, which take less power; as far as time allows.

        Returns:
            The share of the slots that were filled.
        """
        case, until_s = self._case, time.monotonic() + limit_s
        size = max(1, _CHUNK_TOKENS // case.rows)
        for start in range(0, case.cache, size):
            count = min(size, case.cache - start)
            self._engine.forward([Segment(row, start, self._tokens(count), 0) for row in range(case.rows)])
            synchronise(self._engine.device)
            if time.monotonic() > until_s:
                return (start + count) / case.cache
        return 1.0

    def ways(self) -> list[Way]:
        """What there is on this device."""
        return [*(["graphs"] if self._engine.graphs else []), "eager", "packed"]

    def verification(self) -> Pass:
        """A round in which every row has its budget drafted."""
        return self._pass(self._case.budgets)

    def decoding(self) -> Pass:
        """A round without drafts: plain decoding."""
        return self._pass([0] * self._case.rows)

    def time(self, work: Pass, way: Way, rounds: int, limit_s: float) -> Timing:
        """Time whole rounds: from the tokens on the host to the verdicts on the host."""
        times_ms: list[float] = []
        with self._running(way):
            for _ in range(_WARM_UP):
                self._verifier.run(work)
            until_s = time.monotonic() + limit_s
            while len(times_ms) < rounds and (len(times_ms) < 1 or time.monotonic() < until_s):
                synchronise(self._engine.device)
                begun_s = time.perf_counter()
                self._verifier.run(work)
                times_ms.append(1e3 * (time.perf_counter() - begun_s))
        return Timing.of(times_ms)

    def split(self, work: Pass, way: Way, rounds: int) -> dict[str, float]:
        """Time the steps of a round one by one, waiting for the device behind each: ms, medians.

        The steps are `Verifier.run`'s; one behind the other and without the waiting they take somewhat less.
        """
        laps = _Laps(self._engine.device)
        with self._running(way):
            for _ in range(rounds):
                self._step_by_step(work, laps)
        return {name: statistics.median(times_ms) for name, times_ms in laps.ms.items()}

    @torch.inference_mode()
    def _step_by_step(self, work: Pass, laps: _Laps) -> None:
        laps.start()
        segments = segments_of(work)
        laps.lap("python: lay out")
        drawing = Drawing(work.turns, self._engine.device)
        laps.lap("copy: parameters and keys in")
        logits = self._engine.forward(segments)  # [sum(S_i + 1), vocab]
        laps.lap("host: inputs and launches", wait=False)
        laps.lap("device: rest of the forward")
        drawn = drawing.queue(logits, torch.isfinite(logits.amax(-1)))
        laps.lap("device: sampling")
        tokens = drawn.tolist()
        laps.lap("copy: tokens back")
        offset = 0
        for turn in work.turns:
            judge_coupled(turn.drafted, tokens[offset : offset + turn.size])
            offset += turn.size
        laps.lap("python: verdicts")

    def _pass(self, budgets: Sequence[int]) -> Pass:
        cache = self._case.cache
        turns = [
            Turn(
                row=row,
                base=cache + 1,
                last_token=self._tokens(1)[0],
                drafted=self._tokens(budget),
                params=SamplingParams(temperature=_TEMPERATURE, seed=row),
            )
            for row, budget in enumerate(budgets)
        ]
        return Pass(turns, [])

    def _tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(self._engine.vocab_size) for _ in range(count)]

    @contextmanager
    def _running(self, way: Way) -> Iterator[None]:
        engine, graphs = self._engine, self._engine.graphs
        if graphs is not None:
            graphs.paused = way != "graphs"
        engine.layout = "packed" if way == "packed" else "padded"
        try:
            yield
        finally:
            engine.layout = "padded"
            if graphs is not None:
                graphs.paused = False


def segments_of(work: Pass) -> list[Segment]:
    """As the verifier lays a pass without chunks out."""
    return [Segment(turn.row, turn.base - 1, [turn.last_token, *turn.drafted], turn.size) for turn in work.turns]
