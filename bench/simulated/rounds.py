"""The paper's own model, where time is counted in rounds: does `X` reach `x*`, and do its figures come out?

*Convergence*: random small instances under equations (3) to (5), behind a full barrier, against the true optimum. Once
in expectation (rates known, every round brings `mu`, beta small), and once as the paper has it (rates estimated,
acceptances drawn), with beta falling as `1 / t`. Two hundred drawn rounds are far from their expectation by their own
chance, so there the mean `X` of several runs is looked at.

*Figures 3 and 4*: eight agents, C = 20, the paper's three schedules, through the simulated world. The engine takes a
second a pass, as is read off the paper's figures. Times are those for the same number of tokens: a schedule that gets
more tokens from a round needs fewer rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.simulated.optimum import true_optimum
from goodspeed.estimation import RatioMean, expected_tokens, smooth_goodput
from goodspeed.scheduling import Demand, FixedS, GoodSpeedSched, RandomS, Scheduler
from goodspeed.simulation import Agent, Engine, Result, simulate
from goodspeed.simulation.acceptance import judge_by_ratio
from goodspeed.utility import AlphaFair

__all__ = [
    "Instance",
    "Replay",
    "boxes",
    "converge",
    "figures",
    "follow_expectations",
    "follow_samples",
    "gap",
    "instances",
    "replay",
    "replay_all",
]

Floats = NDArray[np.float64]

ROUNDS = 200
BETA = 0.05
ETA = 0.02
RUNS = 20
ENGINE = Engine(fixed_s=1.0, row_s=0.0, token_s=0.001)
CAPACITY = 20
FIGURE_ROUNDS = 600
SCHEDULES: Mapping[str, Callable[[], Scheduler]] = {
    "GoodSpeed-Sched": GoodSpeedSched,
    "Fixed-S": FixedS,
    "Random-S": RandomS,
}


@dataclass(frozen=True, slots=True)
class Instance:
    """One small problem."""

    alpha: Sequence[float]
    weight: Sequence[float]
    capacity: int
    utility: AlphaFair

    def demand(self, alpha: Sequence[float], goodput: Sequence[float]) -> Demand:
        """What the scheduler is given."""
        limit = np.full(len(alpha), self.capacity)
        return Demand(np.array(alpha), np.array(goodput), np.array(self.weight), limit)

    def value(self, goodput: Sequence[float] | Floats) -> float:
        """`sum omega U(x)`."""
        return float(self.utility.value(np.asarray(goodput), np.asarray(self.weight)).sum())

    @property
    def optimum(self) -> float:
        """`sum omega U(x*)`."""
        return self.value(true_optimum(self.alpha, self.weight, self.capacity, self.utility))


def instances(count: int) -> list[Instance]:
    """Random ones: two to four streams, capacities of three to eight, three kinds of fairness in turn."""
    random = np.random.default_rng(2512)
    made = []
    for number in range(count):
        streams = int(random.integers(2, 5))
        made.append(
            Instance(
                alpha=random.uniform(0.2, 0.95, streams).tolist(),
                weight=random.choice([1.0, 1.0, 2.0], streams).tolist(),
                capacity=int(random.integers(3, 9)),
                utility=AlphaFair((1.0, 0.5, 2.0)[number % 3]),
            )
        )
    return made


def follow_expectations(instance: Instance, rounds: int = ROUNDS, beta: float = BETA) -> Floats:
    """`X` after every round that brings what it is expected to, [rounds, streams]."""
    scheduler, goodput, path = GoodSpeedSched(instance.utility), [1.0] * len(instance.alpha), []
    for _ in range(rounds):
        budgets = scheduler.plan(instance.demand(instance.alpha, goodput), instance.capacity).budgets.tolist()
        goodput = [
            smooth_goodput(smoothed, expected_tokens(alpha, budget), beta)
            for smoothed, alpha, budget in zip(goodput, instance.alpha, budgets, strict=True)
        ]
        path.append(goodput)
    return np.array(path)


def follow_samples(instance: Instance, random: np.random.Generator, rounds: int = ROUNDS, eta: float = ETA) -> Floats:
    """`X` after every round of drawn acceptances, the rates estimated by equation (3), [rounds, streams]."""
    scheduler, goodput, path = GoodSpeedSched(instance.utility), [1.0] * len(instance.alpha), []
    rates = [RatioMean(eta=eta) for _ in instance.alpha]
    for turn in range(rounds):
        demand = instance.demand([rate.optimistic for rate in rates], goodput)
        budgets = scheduler.plan(demand, instance.capacity).budgets.tolist()
        judgements = judge_by_ratio(np.array(instance.alpha), budgets, random)
        for rate, budget, judgement in zip(rates, budgets, judgements, strict=True):
            rate.observe(budget, judgement)
        goodput = [
            smooth_goodput(smoothed, judgement.accepted + 1, 1 / (turn + 1))
            for smoothed, judgement in zip(goodput, judgements, strict=True)
        ]
        path.append(goodput)
    return np.array(path)


def gap(instance: Instance, path: Floats) -> Floats:
    """How far `U(X)` is from `U(x*)`, relative to it, [rounds]."""
    optimum = instance.optimum
    return np.array([abs(instance.value(goodput) - optimum) / abs(optimum) for goodput in path])


def converge(count: int, runs: int = RUNS) -> dict[str, Floats]:
    """Relative gaps of random instances, [instances, rounds]: in expectation, and of the mean of so many runs."""
    gaps: dict[str, list[Floats]] = {"in expectation": [], f"mean of {runs} runs": []}
    for number, instance in enumerate(instances(count)):
        random = np.random.default_rng(number)
        mean = np.mean([follow_samples(instance, random) for _ in range(runs)], axis=0)
        for name, path in zip(gaps, (follow_expectations(instance), mean), strict=True):
            gaps[name].append(gap(instance, path))
    return {name: np.array(rows) for name, rows in gaps.items()}


@dataclass(frozen=True, slots=True)
class Replay:
    """One schedule in the paper's experiment."""

    receiving_s: float
    """For a thousand tokens: from a verdict to the last draft."""
    verification_s: float
    """For a thousand tokens."""
    utility: Floats
    """Sum of logarithms of the running mean goodput per round, [rounds]."""

    @property
    def wall_s(self) -> float:
        """For a thousand tokens."""
        return self.receiving_s + self.verification_s


def replay(agents: Sequence[Agent], schedule: str, rounds: int, seed: int) -> Replay:
    """Run one schedule for so many rounds."""
    result: Result = simulate(
        agents,
        ENGINE,
        SCHEDULES[schedule](),
        rounds="barrier",
        rule="ratio",
        capacity=CAPACITY,
        duration_s=rounds * 1.25 * ENGINE.seconds(len(agents), len(agents) + CAPACITY),
        warm_up_s=0.0,
        seed=seed,
        keep_records=True,
    )
    records = result.records[:rounds]
    tokens = np.zeros((len(records), len(agents)))
    for row, record in zip(tokens, records, strict=True):
        row[list(record.streams)] = record.committed
    running = tokens.cumsum(0) / np.arange(1, len(records) + 1)[:, None]
    thousands = tokens.sum() / 1e3
    verifying_s = sum(record.seconds for record in records)
    return Replay(
        receiving_s=(records[-1].at - verifying_s) / thousands,
        verification_s=verifying_s / thousands,
        utility=np.log(running).sum(-1),
    )


def boxes(seed: int, count: int = 8) -> list[Agent]:
    """The paper's eight drafters: half with the smaller and faster, half with the larger draft, a data set each."""
    random = np.random.default_rng(seed)
    return [
        Agent(draft_s=0.010 if number % 2 else 0.020, latency_s=0.005, alpha=float(random.uniform(0.4, 0.9)))
        for number in range(count)
    ]


def replay_all(count: int, rounds: int = FIGURE_ROUNDS) -> dict[str, list[Replay]]:
    """Every schedule on random instances."""
    return {name: [replay(boxes(seed), name, rounds, seed) for seed in range(count)] for name in SCHEDULES}


def figures(gaps: Mapping[str, Floats], replays: Mapping[str, Sequence[Replay]]) -> dict[str, object]:
    """Everything that is worth keeping."""
    return {
        "convergence": {
            name: {
                "instances": len(rows),
                "rounds": rows.shape[1],
                "largest_gap": float(rows[:, -1].max()),
                "median_gap": float(np.median(rows[:, -1])),
                "within_1_percent": int((rows[:, -1] <= 0.01).sum()),
                "round_when_all_are_within_1_percent": _settled(rows),
            }
            for name, rows in gaps.items()
        },
        "replays": {
            name: {
                "receiving_s": float(np.mean([run.receiving_s for run in runs])),
                "verification_s": float(np.mean([run.verification_s for run in runs])),
                "wall_s": float(np.mean([run.wall_s for run in runs])),
                "utility": float(np.mean([run.utility[-1] for run in runs])),
                "instances_with_utility_below_ours": sum(
                    bool(run.utility[-1] < ours.utility[-1])
                    for run, ours in zip(runs, replays["GoodSpeed-Sched"], strict=True)
                ),
            }
            for name, runs in replays.items()
        },
    }


def _settled(gaps: Floats, within: float = 0.01) -> int | None:
    """The first round from which on every gap stays small."""
    outside = np.flatnonzero((gaps > within).any(0))
    first = int(outside.max()) + 2 if len(outside) else 1
    return first if first <= gaps.shape[1] else None
