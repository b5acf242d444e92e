"""What the benchmark writes down, and the figures that are made of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from msgspec import Struct

from goodspeed_bench.fleet import Edge
from goodspeed_bench.host import Workload
from goodspeed_bench.recorder import Seen
from goodspeed_bench.target import PassTime
from goodspeed_bench.trial import Trial, Window

__all__ = [
    "Comparison",
    "Concurrency",
    "Event",
    "Response",
    "Results",
    "Spread",
    "described",
    "geometric_mean",
    "jain",
    "log_utility",
    "ratios",
]

_LEAST = 1e-3
"""Tokens per second that stand for none at all where a logarithm is taken."""


def described(pass_time: PassTime | None) -> str:
    """A target, by its passes."""
    if pass_time is None:
        return "passes of the bundled target"
    return f"passes of {pass_time.fixed_ms:g} ms + {pass_time.token_ms:g} ms a token"


class Comparison(Struct, frozen=True):
    """All policies against one target."""

    target: str
    pass_time: PassTime | None
    sweep: tuple[Trial, ...]
    """One short run for each capacity of each policy that has to be given one."""
    repetitions: tuple[tuple[Trial, ...], ...]
    """Every policy once in each, at its best capacity, one after the other."""
    traces: dict[str, list[Seen]]
    """Verdict by verdict, by policy: the first repetition."""
    differing_texts: int
    """Texts that were not the same, token for token, under every policy and in every repetition."""
    texts: int

    def trials(self, policy: str) -> Sequence[Trial]:
        """One policy's, a repetition each."""
        return [trial for repetition in self.repetitions for trial in repetition if trial.policy.name == policy]

    @property
    def policies(self) -> Sequence[str]:
        """Names, in the order in which they took turns."""
        return [trial.policy.name for trial in self.repetitions[0]]


class Concurrency(Struct, frozen=True):
    """A policy at some number of streams."""

    streams: int
    trial: Trial


class Event(Struct, frozen=True):
    """Something that was done to the edges."""

    at_s: float
    what: str


class Response(Struct, frozen=True):
    """A run in which the edges change."""

    policy: str
    seconds: float
    events: tuple[Event, ...]
    verdicts: list[Seen]


class Results(Struct, frozen=True):
    """Everything."""

    command: str
    machine: str
    edges: tuple[Edge, ...]
    workload: Workload
    window: Window
    comparisons: tuple[Comparison, ...]
    concurrency: tuple[Concurrency, ...]
    response: Response
    pass_time: PassTime | None
    """Of the target behind the last two."""
    took_s: float


class Spread(Struct, frozen=True):
    """Median and range of several repetitions."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of some values, at least one."""
        known = list(values)
        return cls(statistics.median(known), min(known), max(known))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def log_utility(rates: Iterable[float]) -> float:
    """The sum of the logarithms of tokens per second."""
    return sum(math.log(max(rate, _LEAST)) for rate in rates)


def geometric_mean(rates: Iterable[float]) -> float:
    """Of tokens per second."""
    known = list(rates)
    return math.exp(log_utility(known) / len(known))


def jain(rates: Iterable[float]) -> float:
    """Jain's index: 1 when all get the same, 1 / n when one gets all."""
    known = list(rates)
    squares = len(known) * sum(rate * rate for rate in known)
    return sum(known) ** 2 / squares if squares else 1.0


def ratios(comparison: Comparison, policy: str, rival: str) -> Spread:
    """Geometric mean against a rival's, each within its repetition."""
    ours, theirs = (
        [geometric_mean(trial.rates.values()) for trial in comparison.trials(name)] for name in (policy, rival)
    )
    return Spread.of(our / their for our, their in zip(ours, theirs, strict=True))
