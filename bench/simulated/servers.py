"""A hundred servers and 100,000 streams: where streams go, and how alike the prices of their places become.

Servers are unlike: what is done once a pass takes 10 to 40 ms, and a row and a token half to twice what they take of
`scale.ENGINE`, each uniform in the logarithm and apart from the other. So are streams: acceptance is uniform in 0.40
to 0.92, boxes draft a token in 4 to 30 ms (so that a draft has 1 to 12 tokens by the time of a usual pass), texts are
400 tokens long in the mean, exponentially. Whoever ends a text begins another, and is placed anew: there are always as
many streams. In the beginning they are anywhere. Then a tenth of the servers die, and later come back empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from bench.simulated.scale import ENGINE
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.placement import (
    ServerLoad,
    best_draft,
    fair_counts,
    lower_of_two,
    lowest,
    moving_pays_after_s,
    place_price,
)
from goodspeed.simulation import Engine
from goodspeed.simulation.fleet import Fleet
from goodspeed.utility import jain_index

__all__ = ["FULL", "POLICIES", "QUICK", "Course", "Run", "Summary", "compare", "engines", "figures"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

USUAL_PASS_S = 0.050
LONGEST_DRAFT = 16
MEAN_TEXT = 400.0
STEP_S = 1.0
STALE_S = 2.0
"""How often prices are heard of, where they are not followed: as often as the balancer that we ship looks."""
DEAD = 0.1
"""The share of servers that die."""
SETTLED = 0.15
"""Prices count as equal where their standard deviation is no more than this: two choices stay at two thirds of it."""

Signal = Callable[[ServerLoad], float]
"""What a server is judged by."""
Choice = Callable[[Floats, Sequence[int], Random], int]
"""Says where a stream goes, from what is known of the servers, [servers], and those that live."""


@dataclass(frozen=True, slots=True)
class Course:
    """How large, and what happens when, in seconds."""

    servers: int
    streams: int
    warm_s: int
    dies_s: int
    returns_s: int
    ends_s: int


FULL = Course(servers=100, streams=100_000, warm_s=60, dies_s=80, returns_s=105, ends_s=140)
QUICK = Course(servers=20, streams=4_000, warm_s=40, dies_s=50, returns_s=65, ends_s=100)


class RoundRobin:
    """One after another."""

    def __init__(self) -> None:
        self._turn = 0

    def __call__(self, signals: Floats, servers: Sequence[int], random: Random) -> int:
        self._turn += 1
        return servers[self._turn % len(servers)]


def anywhere(signals: Floats, servers: Sequence[int], random: Random) -> int:
    """Any."""
    return random.choice(servers)


def best(signals: Floats, servers: Sequence[int], random: Random) -> int:
    """Whichever is best."""
    return lowest(signals)


def streams_there(load: ServerLoad) -> float:
    """What a balancer sees by itself; under `log`, the price of a second of the engine's time."""
    return load.second


def token_price(load: ServerLoad) -> float:
    """What a server shows as `goodspeed_capacity_price`."""
    return load.second * load.cost.token_s


@dataclass(frozen=True, slots=True)
class Policy:
    """How a server is chosen."""

    choice: Callable[[], Choice]
    signal: Signal = streams_there
    weighted: bool = False
    """Whether the signal is divided by the share of the streams that a server should have, were all alike."""
    stale: bool = False


POLICIES: Mapping[str, Policy] = {
    "random": Policy(lambda: anywhere),
    "round robin": Policy(RoundRobin),
    "least streams": Policy(lambda: best),
    "least streams, weighted": Policy(lambda: best, weighted=True),
    "lowest token price": Policy(lambda: best, token_price),
    "lowest price": Policy(lambda: best, place_price),
    "two choices": Policy(lambda: lower_of_two, place_price),
    "lowest price, stale": Policy(lambda: best, place_price, stale=True),
    "two choices, stale": Policy(lambda: lower_of_two, place_price, stale=True),
}
"""By the names that tables and plots use."""


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one policy; every array is [steps]."""

    spread: Floats
    """Standard deviation of the prices of a place over the servers that live: 0.01 is 1% of goodput."""
    utility: Floats
    """Mean of the logarithms of tokens per second."""
    jain: Floats
    tenth: Floats
    """The goodput that a tenth of the streams stay below, tokens per second."""
    placed: int
    """Streams that were placed after the beginning."""
    busiest: ServerLoad
    """At the end."""

    def settled_s(self, since_s: int, until_s: int) -> float | None:
        """How long after a change prices are equal again, for good; None if they are not before the next change."""
        apart = np.flatnonzero(self.spread[since_s:until_s] > SETTLED)
        settled_s = float(apart[-1] + 1) * STEP_S if len(apart) else 0.0
        return settled_s if settled_s < until_s - since_s else None


def engines(count: int, random: np.random.Generator) -> list[Engine]:
    """Unlike servers."""
    fixed_s = np.exp(random.uniform(np.log(0.010), np.log(0.040), count))
    slower = np.exp(random.uniform(np.log(0.5), np.log(2.0), count))
    return [
        Engine(fixed, ENGINE.row_s * factor, ENGINE.token_s * factor)
        for fixed, factor in zip(fixed_s.tolist(), slower.tolist(), strict=True)
    ]


class Crowd:
    """Streams that come and go on a fleet, and where they are put."""

    def __init__(self, policy: Policy, course: Course, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._policy, self._choose, self._lots = policy, policy.choice(), Random(seed)
        count = course.streams
        servers = engines(course.servers, self._random)
        alpha, limit = self._boxes(count)
        self.fleet = Fleet(servers, alpha, limit, self._random.integers(course.servers, size=count))
        self._left = self._random.exponential(MEAN_TEXT, count)  # [streams]
        mean_s = (self.fleet.pass_s - self.fleet.fixed_s) / self.fleet.count
        self._share = fair_counts(self.fleet.fixed_s, mean_s, count) if policy.weighted else np.ones(course.servers)
        self._signals = np.zeros(course.servers)
        self._hear_all()
        self.placed = 0

    def step(self, now_s: int) -> None:
        """Let everybody write for a while, and place those that begin anew."""
        fleet = self.fleet
        self._left -= fleet.goodput * STEP_S
        ended = np.flatnonzero(self._left <= 0)
        fleet.alpha[ended], fleet.limit[ended] = self._boxes(len(ended))
        self._left[ended] = self._random.exponential(MEAN_TEXT, len(ended))
        fleet.leave(ended)
        if not self._policy.stale or now_s % STALE_S == 0:
            self._hear_all()
        self._place(ended)
        fleet.settle()

    def die(self, servers: Ints) -> None:
        """Servers are gone; their streams are placed anew at once, and everybody knows."""
        self.fleet.up[servers] = False
        self._signals[servers] = np.inf
        homeless = np.flatnonzero(np.isin(self.fleet.at, servers))
        self.fleet.leave(homeless)
        self._place(homeless)
        self.fleet.settle()

    def revive(self, servers: Ints) -> None:
        """They are back, with no streams."""
        self.fleet.up[servers] = True
        self._hear_all()

    def prices(self) -> Floats:
        """Of a place at every server that lives, [servers]."""
        return np.array([place_price(self.fleet.load(int(server))) for server in np.flatnonzero(self.fleet.up)])

    def _boxes(self, count: int) -> tuple[Floats, Ints]:
        alpha = self._random.uniform(0.40, 0.92, count)
        draft_s = np.exp(self._random.uniform(np.log(0.004), np.log(0.030), count))
        return alpha, np.minimum(LONGEST_DRAFT, USUAL_PASS_S / draft_s).astype(np.int64)

    def _place(self, streams: Ints) -> None:
        fleet = self.fleet
        length = [best_draft(PRIOR_ALPHA, fleet.load(s).token_price, LONGEST_DRAFT)[0] for s in range(len(fleet.up))]
        living = np.flatnonzero(fleet.up).tolist()
        for stream in streams.tolist():
            server = self._choose(self._signals, living, self._lots)
            fleet.place(stream, server, length[server])
            if not self._policy.stale:
                self._hear(server)
        self.placed += len(streams)

    def _hear(self, server: int) -> None:
        self._signals[server] = self._policy.signal(self.fleet.load(server)) / self._share[server]

    def _hear_all(self) -> None:
        self._signals[:] = np.inf
        for server in np.flatnonzero(self.fleet.up).tolist():
            self._hear(server)


def run(policy: Policy, course: Course, seed: int = 0) -> Run:
    """One policy, from the beginning to the end."""
    crowd, rows = Crowd(policy, course, seed), []
    dying = np.random.default_rng(seed + 1).permutation(course.servers)[: max(1, int(DEAD * course.servers))]
    for now_s in range(course.ends_s):
        if now_s == course.dies_s:
            crowd.die(dying)
        elif now_s == course.returns_s:
            crowd.revive(dying)
        goodput = crowd.fleet.goodput
        rows.append((crowd.prices().std(), np.log(goodput).mean(), jain_index(goodput), np.quantile(goodput, 0.1)))
        crowd.step(now_s)
    spread, utility, jain, tenth = np.array(rows).T
    busiest = crowd.fleet.load(int(crowd.fleet.count.argmax()))
    return Run(spread, utility, jain, tenth, crowd.placed, busiest)


def compare(course: Course, seed: int = 0) -> dict[str, Run]:
    """Every policy, on the same servers."""
    return {name: run(policy, course, seed) for name, policy in POLICIES.items()}


@dataclass(frozen=True, slots=True)
class Summary:
    """What is said of a policy: means while nothing happens, and how it takes a change."""

    price_spread: float
    sum_log: float
    geometric_mean: float
    jain: float
    tenth: float
    settled_after_death_s: float | None
    settled_after_return_s: float | None
    move_pays_after_s: float
    """How long a text in its middle has to go on until a move to the busiest server, for a price lower by one standard
    deviation, has paid."""
    placed: int

    @classmethod
    def of(cls, found: Run, course: Course) -> Summary:
        """Of one run."""
        calm = slice(course.warm_s, course.dies_s)
        spread, utility = float(found.spread[calm].mean()), float(found.utility[calm].mean())
        return cls(
            price_spread=spread,
            sum_log=course.streams * utility,
            geometric_mean=float(np.exp(utility)),
            jain=float(found.jain[calm].mean()),
            tenth=float(found.tenth[calm].mean()),
            settled_after_death_s=found.settled_s(course.dies_s, course.returns_s),
            settled_after_return_s=found.settled_s(course.returns_s, course.ends_s),
            move_pays_after_s=moving_pays_after_s(spread, found.busiest, int(MEAN_TEXT)),
            placed=found.placed,
        )


def figures(runs: Mapping[str, Run], course: Course) -> dict[str, object]:
    """Everything that is worth keeping."""
    return {
        "servers": course.servers,
        "streams": course.streams,
        "policies": {name: asdict(Summary.of(found, course)) for name, found in runs.items()},
        "spread_by_second": {name: [round(at, 4) for at in found.spread.tolist()] for name, found in runs.items()},
    }
