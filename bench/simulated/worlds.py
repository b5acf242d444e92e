"""The worlds that policies are compared in, and the policies.

The engine takes 35 ms a pass and 0.6 ms a token. Agents are heterogeneous: drafts of 4 to 30 ms a token and round trips
of 5 to 80 ms, both uniform in the logarithm, and acceptance rates uniform in 0.40 to 0.92.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from goodspeed.scheduling import (
    FixedS,
    GoodSpeedSched,
    PlainDecoding,
    RandomS,
    Scheduler,
    SecondsSched,
    ThroughputSched,
)
from goodspeed.simulation import Agent, Engine, Result, RoundsKind, simulate

__all__ = ["CAPACITY", "COLOCATED", "ENGINE", "LENGTHS", "POLICIES", "Policy", "edges"]

ENGINE = Engine(fixed_s=0.035, row_s=0.0, token_s=0.0006)
DRAFTER_SHARE = 0.1
"""A step of a draft model beside the target, as a share of the target's pass over as many tokens: both are bound by
reading weights, and drafts of a tenth of the target's time are usual (0.6B to 14B parameters is a twenty-third of the
weights, but small models are held up by launching kernels)."""
COLOCATED = replace(
    ENGINE, drafter=Engine(ENGINE.fixed_s * DRAFTER_SHARE, ENGINE.row_s * DRAFTER_SHARE, ENGINE.token_s * DRAFTER_SHARE)
)
CAPACITY = 28
LENGTHS = (1, 2, 3, 4, 5, 6, 8)
"""What the sweeps over fixed lengths try."""
JITTER_S = 0.001


@dataclass(frozen=True, slots=True)
class Policy:
    """One way to serve the same agents."""

    schedulers: Sequence[Callable[[], Scheduler]]
    """More than one: a sweep, of which the best run by geometric mean counts, chosen with hindsight."""
    rounds: RoundsKind
    capacity: int | None = None
    colocated: bool = False

    def run(self, agents: Sequence[Agent], *, duration_s: float, seed: int) -> Result:
        """Serve the agents."""
        if self.colocated:
            agents = [replace(agent, draft_s=0.0, latency_s=0.0, jitter_s=0.0) for agent in agents]
        runs = [
            simulate(
                agents,
                COLOCATED if self.colocated else ENGINE,
                scheduler(),
                rounds=self.rounds,
                capacity=self.capacity,
                duration_s=duration_s,
                seed=seed,
            )
            for scheduler in self.schedulers
        ]
        return max(runs, key=lambda run: run.geometric_mean)


def _fixed(length: int) -> Callable[[], Scheduler]:
    return lambda: FixedS(length)


_SWEEP = [_fixed(length) for length in LENGTHS]

POLICIES: Mapping[str, Policy] = {
    "seconds": Policy([SecondsSched], "rolling"),
    "GoodSpeed-Sched": Policy([GoodSpeedSched], "barrier", CAPACITY),
    "throughput": Policy([ThroughputSched], "barrier", CAPACITY),
    "Fixed-S": Policy([FixedS], "barrier", CAPACITY),
    "Random-S": Policy([RandomS], "barrier", CAPACITY),
    "best fixed": Policy(_SWEEP, "barrier"),
    "best fixed, rolling": Policy(_SWEEP, "rolling"),
    "plain": Policy([PlainDecoding], "rolling"),
    "co-located": Policy(_SWEEP, "barrier", colocated=True),
}
"""By the names that tables and plots use."""


def edges(seed: int, count: int = 8) -> list[Agent]:
    """Heterogeneous agents."""
    random = np.random.default_rng(seed)
    draft_s = np.exp(random.uniform(np.log(0.004), np.log(0.030), count))
    round_trip_s = np.exp(random.uniform(np.log(0.005), np.log(0.080), count))
    alpha = random.uniform(0.40, 0.92, count)
    columns = zip(draft_s.tolist(), round_trip_s.tolist(), alpha.tolist(), strict=True)
    return [Agent(draft, round_trip / 2, rate, jitter_s=JITTER_S) for draft, round_trip, rate in columns]
