"""Scenarios: who drafts for whom, over which links, asking for what; and the schedulers that are to be compared.

One TOML file says it all, and runs on a virtual clock (`goodspeed simulate`) or in real processes (`goodspeed bench`).
"""

from goodspeed.scenarios.reading import read_scenario
from goodspeed.scenarios.results import AgentOutcome, Machine, Quantiles, Results, Run, Versions
from goodspeed.scenarios.scenario import AgentGroup, Contender, Scenario, Server

__all__ = [
    "AgentGroup",
    "AgentOutcome",
    "Contender",
    "Machine",
    "Quantiles",
    "Results",
    "Run",
    "Scenario",
    "Server",
    "Versions",
    "read_scenario",
]
