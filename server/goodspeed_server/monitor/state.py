"""What the onlooker has chosen, and what a key makes of it: pure, so that every key can be tried in a test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from goodspeed.snapshot import AgentRow
from goodspeed_server.monitor.history import Shown

__all__ = ["SORTS", "Extent", "ViewState", "arranged", "press"]

_LONGEST_FILTER = 40


class Extent(NamedTuple):
    """How much there is to scroll through."""

    agents: int
    """How many there are to see, by the filter."""
    room: int
    """How many of them the screen shows."""


@dataclass(frozen=True, slots=True)
class ViewState:
    """How a snapshot is looked at."""

    sort: str = "linked"
    """A key of `SORTS`."""
    reverse: bool = False
    filter: str = ""
    """Only agents whose name contains it are shown, however it is capitalised."""
    typing: bool = False
    """Whether keys are letters of the filter."""
    timeline: bool = True
    help: bool = False
    paused: bool = False
    scroll: int = 0
    """How many agents are above the first one that is shown."""
    done: bool = False


_Key = tuple[str, float]


def _largest(of: Callable[[AgentRow], float]) -> Callable[[AgentRow], _Key]:
    """The largest first; what is no number comes last."""

    def key(agent: AgentRow) -> _Key:
        value = of(agent)
        return "", math.inf if math.isnan(value) else -value

    return key


SORTS: dict[str, Callable[[AgentRow], _Key]] = {
    "linked": lambda _: ("", 0.0),
    "name": lambda agent: (agent.name.casefold(), 0.0),
    "goodput": _largest(lambda agent: agent.goodput),
    "acceptance": _largest(lambda agent: agent.alpha),
    "budget": _largest(lambda agent: agent.budget),
    "rtt": _largest(lambda agent: agent.network_ms),
    "streams": _largest(lambda agent: agent.streams),
}
"""In the order in which `s` goes through them; the first is the order in which agents linked up."""


def arranged(rows: Sequence[Shown], state: ViewState) -> list[Shown]:
    """Those that the filter lets through, sorted; those that are alike stay in the order in which they linked up."""
    wanted = state.filter.casefold()
    kept = [row for row in rows if wanted in row.agent.name.casefold()] if wanted else list(rows)
    if state.sort == "linked":
        return kept[::-1] if state.reverse else kept
    key = SORTS[state.sort]
    return sorted(kept, key=lambda row: key(row.agent), reverse=state.reverse)


def press(state: ViewState, key: str, extent: Extent) -> ViewState:
    """What a key does.

    Args:
        state: before it.
        key: a character, or prompt_toolkit's name of the key: `up`, `pagedown`, `escape`, `c-m` for Enter.
        extent: of what can be scrolled.
    """
    if state.typing:
        return _type(state, key)
    match key:
        case "q" | "Q":
            return replace(state, done=True)
        case "s":
            names = list(SORTS)
            following = names[(names.index(state.sort) + 1) % len(names)]
            return replace(state, sort=following, reverse=False, scroll=0)
        case "S":
            return replace(state, reverse=not state.reverse, scroll=0)
        case "/":
            return replace(state, typing=True, help=False)
        case "escape":
            return replace(state, help=False) if state.help else replace(state, filter="", scroll=0)
        case "t":
            return replace(state, timeline=not state.timeline)
        case "h" | "?":
            return replace(state, help=not state.help)
        case "p" | " ":
            return replace(state, paused=not state.paused)
    page = max(1, extent.room - 1)
    steps = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -page, "pagedown": page}
    steps |= {"home": -extent.agents, "end": extent.agents}
    if key not in steps:
        return state
    return replace(state, scroll=min(max(0, state.scroll + steps[key]), max(0, extent.agents - extent.room)))


def _type(state: ViewState, key: str) -> ViewState:
    match key:
        case "escape":
            return replace(state, typing=False, filter="", scroll=0)
        case "c-m" | "c-j":
            return replace(state, typing=False)
        case "c-h":  # Backspace
            return replace(state, filter=state.filter[:-1], scroll=0)
        case "c-u":
            return replace(state, filter="", scroll=0)
    if len(key) == 1 and key.isprintable():
        return replace(state, filter=(state.filter + key)[:_LONGEST_FILTER], scroll=0)
    return state
