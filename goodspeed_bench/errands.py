"""What the users of a scenario's agents ask for: real prompts, when, and for how many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from goodspeed.scenarios.people import Person, people
from goodspeed.scenarios.prompts import Prompt, load_prompts
from goodspeed.scenarios.scenario import Scenario
from goodspeed.scenarios.simulating import texts_of
from goodspeed.simulation.texts import Asking, Texts
from goodspeed_bench.fleet import Edge, Errand, edges_of

__all__ = ["Prompts", "busy_edges", "read_prompts"]

Prompts = dict[str, Sequence[Prompt]]
"""By the names of the groups."""

_SEEDS_APART = 10_000
"""Between the seeds of two agents' texts."""


def read_prompts(scenario: Scenario, folder: Path) -> Prompts:
    """Everybody's, before anything is started.

    Raises:
        InvalidRequest: some cannot be had.
    """
    return {group.name: load_prompts(group.prompts, folder) for group in scenario.agents}


def busy_edges(scenario: Scenario, prompts: Prompts, seed: int) -> list[Edge]:
    """The edges, with all that their users ask for; the same under every contender."""
    pairs = zip(people(scenario, seed), edges_of(scenario, seed), strict=True)
    return [
        msgspec.structs.replace(edge, errands=_errands(person, prompts[person.group.name], scenario.duration_s, seed))
        for person, edge in pairs
    ]


def _errands(person: Person, prompts: Sequence[Prompt], duration_s: float, seed: int) -> tuple[Errand, ...]:
    """In a closed loop a few, which are run round and round; else as many as arrive in the time."""
    group, texts = person.group, texts_of(person.group)
    random = np.random.default_rng([seed, person.number])
    asking = Asking(texts, random) if texts else None
    arrivals = _arrivals(asking, texts, duration_s)
    errands = []
    for number, at_s in enumerate(arrivals if arrivals is not None else [None] * group.texts):
        prompt = prompts[(person.number * group.texts + number) % len(prompts)]
        errands.append(
            Errand(
                prompt=prompt.text,
                seed=(seed * 100 + person.number) * _SEEDS_APART + number,
                temperature=group.temperature,
                new_tokens=asking.lengths()[1] if asking else None,
                max_draft=group.max_draft,
                chat=group.chat,
                at_s=at_s,
                pause_s=group.think_s * float(random.standard_exponential()) if group.think_s else 0.0,
            )
        )
    return tuple(errands)


def _arrivals(asking: Asking | None, texts: Texts | None, duration_s: float) -> list[float] | None:
    """None in a closed loop."""
    if asking is None or asking.waits:
        return None
    assert texts is not None
    found = [asking.first_at(0.0)]
    while found[-1] < duration_s:
        found.append(asking.next_at(found[-1]))
    return found
