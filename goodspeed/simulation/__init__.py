"""A world under a virtual clock: agents, links and an engine, around the objects that production runs.

Rounds, scheduler, estimators, cost model and meters are the real ones; what is made up is how long things take and
which drafts are accepted. The same seed gives the same run.
"""

from goodspeed.simulation.granting import Capacity, GrantPolicy, RoundsKind
from goodspeed.simulation.outcome import Record, Result
from goodspeed.simulation.scenery import Agent, Engine
from goodspeed.simulation.texts import Script, Span, Text, Texts, Written
from goodspeed.simulation.world import simulate

__all__ = [
    "Agent",
    "Capacity",
    "Engine",
    "GrantPolicy",
    "Record",
    "Result",
    "RoundsKind",
    "Script",
    "Span",
    "Text",
    "Texts",
    "Written",
    "simulate",
]
