"""All policies on random instances of eight heterogeneous agents: who is how fast, and how surely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.simulated.worlds import POLICIES, edges
from goodspeed.utility import jain_index

__all__ = ["OURS", "Comparison", "compare"]

Floats = NDArray[np.float64]

OURS = "seconds"
RIVALS = ("GoodSpeed-Sched", "best fixed", "best fixed, rolling", "plain", "co-located")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Goodputs by policy, tokens per second, [instances, agents]."""

    goodput: Mapping[str, Floats]

    def geometric_mean(self, policy: str) -> Floats:
        """Over the agents, [instances]."""
        return np.asarray(np.exp(np.log(np.maximum(self.goodput[policy], 1e-9)).mean(-1)))

    def ratio(self, ours: str, rival: str) -> Floats:
        """Of geometric means in the same instance, [instances]."""
        return self.geometric_mean(ours) / self.geometric_mean(rival)

    def slowest(self, policy: str) -> Floats:
        """Each instance's slowest agent, [instances]."""
        return np.asarray(self.goodput[policy].min(-1))

    def __len__(self) -> int:
        return len(self.goodput["plain"])

    def policies(self) -> dict[str, dict[str, float]]:
        """Means over the instances, by policy."""
        return {
            policy: {
                "geometric_mean": float(np.exp(np.log(self.geometric_mean(policy)).mean())),
                "slowest_agent": float(self.slowest(policy).mean()),
                "sum": float(goodput.sum(-1).mean()),
                "jain": float(np.mean([jain_index(row) for row in goodput])),
            }
            for policy, goodput in self.goodput.items()
        }

    def ratios(self) -> dict[str, dict[str, float]]:
        """How they are spread over the instances, for each rival."""
        return {rival: _spread(self.ratio(OURS, rival)) for rival in RIVALS}

    def slowest_no_worse(self) -> int:
        """In how many instances our slowest agent is at least as fast as the paper's."""
        return int((self.slowest(OURS) >= self.slowest("GoodSpeed-Sched")).sum())

    def figures(self) -> dict[str, object]:
        """Everything that is worth keeping."""
        return {
            "instances": len(self),
            "policies": self.policies(),
            "ratios": {f"{OURS} / {rival}": spread for rival, spread in self.ratios().items()},
            "slowest_agent_no_worse_than_under_the_paper": self.slowest_no_worse(),
        }


def compare(instances: int, duration_s: float) -> Comparison:
    """Run every policy on every instance; the same seed for all policies of an instance."""
    goodput: dict[str, list[Floats]] = {name: [] for name in POLICIES}
    for seed in range(instances):
        agents = edges(seed)
        for name, policy in POLICIES.items():
            goodput[name].append(policy.run(agents, duration_s=duration_s, seed=seed).goodput)
    return Comparison({name: np.array(rows) for name, rows in goodput.items()})


def _spread(ratios: Floats) -> dict[str, float]:
    low, quarter, median, three_quarters, high = np.quantile(ratios, [0.0, 0.25, 0.5, 0.75, 1.0])
    return {
        "geometric_mean": float(np.exp(np.log(ratios).mean())),
        "min": float(low),
        "quarter": float(quarter),
        "median": float(median),
        "three_quarters": float(three_quarters),
        "max": float(high),
    }
