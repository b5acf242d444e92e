"""What a monitor remembers of the last minute, beyond what a snapshot says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from goodspeed.snapshot import AgentRow, ServerSnapshot
from goodspeed_server.monitor.marks import SPAN

__all__ = ["History", "Shown"]

_Key = tuple[str, int]
"""A name, and which of those that bear it: two links may have the same."""


class Shown(NamedTuple):
    """An agent, and what it was like: one value a second, the newest last."""

    agent: AgentRow
    acceptance: tuple[float, ...] = ()
    budget: tuple[float, ...] = ()


class _Trace(NamedTuple):
    acceptance: tuple[float, ...] = ()
    budget: tuple[float, ...] = ()


class History:
    """Acceptance rates and budgets of agents, second by second, as the snapshots come.

    Goodput has its history in the snapshot itself. The others have not: a snapshot is sent to every monitor four times
    a second, and who has watched for a minute knows them.
    """

    def __init__(self) -> None:
        self._traces: dict[_Key, _Trace] = {}
        self._second = -1

    def add(self, snapshot: ServerSnapshot) -> None:
        """Remember it, if it is the first of its second."""
        second = int(min(max(snapshot.uptime_s, 0.0), 2.0**53)) if snapshot.uptime_s == snapshot.uptime_s else 0
        if second == self._second:
            return
        if second < self._second:  # The server has been started anew.
            self._traces.clear()
        self._second = second
        traces: dict[_Key, _Trace] = {}
        for key, agent in _keyed(snapshot.agents):
            acceptance, budget = self._traces.get(key, _Trace())
            if agent.streams and agent.drafted:
                acceptance = (*acceptance, agent.alpha)[-SPAN:]
            traces[key] = _Trace(acceptance, (*budget, agent.budget)[-SPAN:])
        self._traces = traces

    def rows(self, agents: Sequence[AgentRow]) -> list[Shown]:
        """The agents with their pasts, in the same order."""
        none = _Trace()
        return [Shown(agent, *self._traces.get(key, none)) for key, agent in _keyed(agents)]


def _keyed(agents: Sequence[AgentRow]) -> list[tuple[_Key, AgentRow]]:
    counted: dict[str, int] = {}
    keyed = []
    for agent in agents:
        nth = counted.get(agent.name, 0)
        counted[agent.name] = nth + 1
        keyed.append(((agent.name, nth), agent))
    return keyed
