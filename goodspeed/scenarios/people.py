"""The agents of a scenario one by one: what is given as a range is drawn, from the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from goodspeed.scenarios.scenario import AgentGroup, Scenario, Spread

__all__ = ["Person", "draw", "people"]


@dataclass(frozen=True, slots=True)
class Person:
    """One agent and its user."""

    name: str
    number: int
    group: AgentGroup
    draft_ms: float
    round_trip_ms: float
    standing: float
    """Where it stands in its group, in [0, 1]: where a group's acceptance is spread, this is its place."""


def people(scenario: Scenario, seed: int) -> list[Person]:
    """Everybody, in the order of the file.

    A group's agents do not change with what is written about other groups.
    """
    everybody: list[Person] = []
    for place, group in enumerate(scenario.agents):
        random = np.random.default_rng([seed, place])
        for number in range(1, group.count + 1):
            name = group.name if group.count == 1 else f"{group.name}-{number}"
            draft_ms, round_trip_ms = draw(group.draft_ms, random), draw(group.round_trip_ms, random)
            standing = float(random.random())
            everybody.append(Person(name, len(everybody), group, draft_ms, round_trip_ms, standing))
    return everybody


def draw(spread: float | Spread, random: np.random.Generator) -> float:
    """One number out of a range."""
    if not isinstance(spread, Spread):
        return spread
    if spread.log:
        return math.exp(random.uniform(math.log(spread.low), math.log(spread.high)))
    return float(random.uniform(spread.low, spread.high))
