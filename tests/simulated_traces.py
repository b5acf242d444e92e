"""Worlds of the simulator that write a trace of what happens in them, as a server would."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from goodspeed.scenarios import Machine, Versions
from goodspeed.scheduling import make_scheduler
from goodspeed.simulation import Agent, Capacity, Engine, GrantPolicy, Result, RoundsKind
from goodspeed.simulation.streams import Box, Stream
from goodspeed.simulation.world import _World
from goodspeed.timing import EngineMeter, Pace, PassCost, PassSample
from goodspeed.traces import Closed, Ended, Event, Header, Joined, Known, Opened, Passed, Planned, Verdict, to_line
from goodspeed.utility import AlphaFair
from goodspeed.verification import Judgement

__all__ = ["header", "simulate_and_trace"]

ENDLESS = 8192


def header(engine: Engine, **changes: Any) -> Header:
    """Of a trace of passes that this engine makes."""
    about: dict[str, Any] = {
        "began": "2026-01-01T00:00:00+00:00",
        "machine": Machine.here(),
        "versions": Versions("3", "0", None, "2", None, None),
        "model": "a target",
        "scheduler": "seconds",
        "fairness": 1.0,
        "rule": "coupled",
        "rounds": "rolling",
        "round_timeout_s": 60.0,
        "capacity": None,
        "prefill_chunk": 512,
        "rows": 64,
        "passes": tuple((each.rows, each.tokens, each.seconds) for each in engine.samples()),
    }
    return Header(**about | changes)


class _Pace(Pace):
    """Remembers the last draft."""

    last: tuple[int, float, float] | None = None

    def observe(self, drafted: int, elapsed_s: float, computed_s: float) -> None:
        self.last = drafted, elapsed_s, computed_s
        super().observe(drafted, elapsed_s, computed_s)


class _Meter(EngineMeter):
    """Remembers the last pass."""

    last = PassSample(0, 0, 0.0)

    def observe(self, sample: PassSample) -> None:
        self.last = sample
        super().observe(sample)


class _TracedWorld(_World):
    def __init__(self, agents: Sequence[Agent], engine: Engine, policy: GrantPolicy, *rest: Any) -> None:
        super().__init__(agents, engine, policy, *rest)
        self._meter = _Meter(PassCost(engine.samples()))
        for box in self._boxes:
            box.pace = _Pace()
        self.events: list[Event] = [Joined(0.0, box.number, f"agent-{box.number}", "made up") for box in self._boxes]
        self._streams: dict[Stream, int] = {}
        self._committed_at: dict[int, list[float]] = {}
        """Each token of each stream."""

    def _handle(self, kind: Any, whose: Stream | Box | GrantPolicy | None, now: float) -> None:
        if kind == "join" and isinstance(whose, Stream):
            number = self._streams[whose] = len(self._streams)
            wanted = int(min(whose.left, ENDLESS))
            agent = whose.agent
            prompt, weight = whose.prompt_left + 1, agent.weight_at(now)
            self.events.append(Opened(now, number, whose.box.number, prompt, wanted, 0.0, agent.max_draft, weight, 0.0))
        super()._handle(kind, whose, now)

    def _learn(self, stream: Stream, budget: int, judgement: Judgement, now: float) -> int:
        before = len(self.events)
        size = super()._learn(stream, budget, judgement, now)
        assert isinstance(stream.pace, _Pace)
        sent, elapsed_s, computed_s = stream.pace.last or (0, 0.0, 0.0)
        network_ms = 1e3 * (elapsed_s - computed_s) if stream.pace.last else None
        accepted = min(judgement.accepted, size)
        verdict = Verdict(
            now, self._streams[stream], stream.budget, budget, accepted, size, sent, 1e3 * computed_s, network_ms
        )
        self.events.insert(before, verdict)
        stream.pace.last = None
        return size

    def _learn_from_guesses(self, stream: Stream, size: int, now: float) -> None:
        """What a server sees of guesses.

        The simulator's agents guess on what is overtaken already, and drop what is on its way when a chain breaks. Real
        ones do neither: a guess is seen if it was made before its agent heard what stands in its place.
        """
        guessing, agent, number = stream.guessing, stream.agent, self._streams[stream]
        under_way, passed, judged, lead = guessing.under_way, guessing._passed, guessing._judged, guessing.lead
        first, run = stream.written - passed, guessing._run
        committed_at = self._committed_at.setdefault(number, [])
        committed_at += [now] * size
        super()._learn_from_guesses(stream, size, now)

        def seen(guess: int) -> bool:
            here_at = guessing._began_at + (guess + 1) * guessing._every_s
            return here_at < committed_at[first + guess] + 2 * (agent.latency_s + agent.jitter_s)

        if not under_way:
            return
        broken = guessing._passed > run
        right = range(judged, run if broken else guessing._judged)
        self.events += [Known(now, number, first + guess, 1, False) for guess in right if seen(guess)]
        if broken and run < passed + lead and seen(run):
            self.events.append(Known(now, number, first + run, 0, True))

    def _commit(self, now: float) -> None:
        assert isinstance(self._meter, _Meter)
        last = self._meter.last
        super()._commit(now)
        self.events.append(Passed(now, last.rows, last.tokens, last.seconds, self._engine.between_s))

    def _close(self, stream: Stream, now: float) -> None:
        super()._close(stream, now)
        self.events.append(Ended(now, self._streams[stream], "length"))


def simulate_and_trace(
    file: Path,
    agents: Sequence[Agent],
    engine: Engine,
    scheduler: str,
    *,
    rounds: RoundsKind,
    capacity: Capacity,
    duration_s: float,
    seed: int,
    changes: Sequence[Event] = (),
    **about: Any,
) -> Result:
    """Run a world, and write its trace.

    Args:
        file: for the trace.
        agents: of the world; what is changed of one is in how it is made, too.
        engine: likewise.
        scheduler: likewise, by name.
        rounds: likewise.
        capacity: likewise.
        duration_s: virtual seconds.
        seed: of everything random.
        changes: events of what an operator changes; capacities are.
        about: what else is another in the header.
    """
    policy = GrantPolicy(make_scheduler(scheduler, AlphaFair()), capacity, math.inf)
    steered = [(each.at, replace(policy, capacity=each.capacity)) for each in changes if isinstance(each, Planned)]
    world = _TracedWorld(agents, engine, policy, rounds, "coupled", 512, 0.5, 0.0, seed, True, steered)
    result = world.run(duration_s)
    events = sorted([*world.events, *changes], key=lambda event: event.at)
    fixed = {} if callable(capacity) else {"capacity": capacity}
    lines = [
        header(engine, scheduler=scheduler, rounds=rounds, **fixed, **about),
        *events,
        Closed(duration_s, "stopped"),
    ]
    file.write_bytes(b"".join(map(to_line, lines)))
    return result
