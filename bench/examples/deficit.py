"""A scheduler of one's own: whoever has had least drafts first, as far as a draft is likely to stand."""

import numpy as np

from goodspeed.scheduling import Demand, Plan


class Deficit:
    """Serve streams in the order of what they have had, the poorest first.

    Args:
        odds: a stream's k-th token is verified while the chance that it is accepted, alpha ** k, is at least this.
    """

    def __init__(self, odds: float = 0.5) -> None:
        self.odds = odds

    def plan(self, demand: Demand, capacity: int) -> Plan:
        """Choose how many drafted tokens of each stream the next pass verifies."""
        alpha = np.clip(demand.alpha, 1e-6, 1 - 1e-6)
        wanted = np.floor(np.log(self.odds) / np.log(alpha))
        wanted = np.minimum(wanted.astype(np.int64), demand.limit)
        budgets = np.zeros_like(wanted)
        for stream in np.argsort(demand.goodput / demand.weight):
            budgets[stream] = min(wanted[stream], capacity - budgets.sum())
        return Plan(budgets)
