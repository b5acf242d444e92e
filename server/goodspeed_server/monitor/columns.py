"""The columns of the table of agents: what stands in each, and which of them a width has room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.segment import Segment

from goodspeed.snapshot import AgentRow
from goodspeed_server.monitor import marks
from goodspeed_server.monitor.canvas import (
    ALERT,
    BOLD,
    FAINT,
    GREEN,
    MUTED,
    ORANGE,
    PLAIN,
    SKY,
    Line,
    cell,
    fit,
)
from goodspeed_server.monitor.history import Shown
from goodspeed_server.monitor.timeline import lane, lane_scale

__all__ = ["GAP", "Column", "Scale", "layout"]

GAP = 2
_NUMBER_WIDTH = 5
"""Room for the number beside a bar, and the space between them."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a full bar means; the same for all agents, so that they can be compared by eye."""

    budget: float
    goodput: float
    """Of bars."""
    peak: float
    """Of histories of goodput."""
    budget_peak: float
    """Of histories of budgets."""
    verify_ms: float
    longest_ms: float
    """Of lanes."""

    @classmethod
    def of(cls, rows: Sequence[Shown], verify_ms: float) -> Scale:
        """The scale on which all of them can be drawn."""
        agents = [row.agent for row in rows]
        return cls(
            budget=max((agent.budget for agent in agents), default=0.0),
            goodput=max((agent.goodput for agent in agents), default=0.0),
            peak=max((max(agent.history, default=0.0) for agent in agents), default=0.0),
            budget_peak=max((max(row.budget, default=1.0) for row in rows), default=1.0),
            verify_ms=verify_ms,
            longest_ms=lane_scale(agents, verify_ms, 1),
        )


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `draw` gives segments that are together exactly as wide as asked."""

    key: str
    title: str
    min_width: int
    max_width: int
    draw: Callable[[Shown, int, Scale], Line]
    align: Literal["left", "right"] = "left"
    sort: str = ""
    """By which key of `state.SORTS` the table is sorted when it is sorted by this column."""


def layout(agents: Sequence[AgentRow], width: int) -> list[tuple[Column, int]]:
    """Choose columns by importance, then let them grow into the room that is left."""
    longest = {
        "agent": 2 + max(cell_len(_label(agent)) for agent in agents),
        "drafter": max(cell_len(agent.drafter) for agent in agents),
    }
    idle = set() if any(agent.weight != 1 for agent in agents) else {"weight"}
    idle |= set() if any(agent.prefilling for agent in agents) else {"prefill"}
    room = width
    widths: dict[str, int] = {}
    for key in _BY_IMPORTANCE:
        if key in idle:
            continue
        needed = _COLUMNS[key].min_width + (GAP if widths else 0)
        if needed > room and widths:
            break
        widths[key] = _COLUMNS[key].min_width
        room -= needed
    for key, limit in _BY_GROWTH:
        if key in widths:
            most = min(limit, longest.get(key, limit), _COLUMNS[key].max_width)
            grown = max(0, min(room, most - widths[key]))
            widths[key] += grown
            room -= grown
    return [(column, widths[key]) for key, column in _COLUMNS.items() if key in widths]


def _label(agent: AgentRow) -> str:
    return agent.name if agent.state == "ok" else f"{agent.name} {agent.state}"


def _name(row: Shown, width: int, _: Scale) -> Line:
    agent = row.agent
    if agent.state != "ok":
        mark, style = Segment("▲ ", ALERT), ALERT
    elif agent.streams:
        mark, style = Segment("● ", GREEN), BOLD
    else:
        mark, style = Segment("○ ", MUTED), MUTED
    return [mark, cell(_label(agent), width - 2, style)]


def _drafter(row: Shown, width: int, _: Scale) -> Line:
    return [cell(row.agent.drafter, width, MUTED)]


def _streams(row: Shown, width: int, _: Scale) -> Line:
    streams = row.agent.streams
    return [cell(str(streams), width, PLAIN if streams else MUTED, "right")]


def _weight(row: Shown, width: int, _: Scale) -> Line:
    return [cell(f"{row.agent.weight:g}", width, MUTED if row.agent.weight == 1 else PLAIN, "right")]


def _prefill(row: Shown, width: int, _: Scale) -> Line:
    prefilling = row.agent.prefilling
    return [cell(str(prefilling) if prefilling else "", width, ORANGE, "right")]


def _budget(row: Shown, width: int, scale: Scale) -> Line:
    agent = row.agent
    if not agent.streams:
        return [cell("", width)]
    room = width - _NUMBER_WIDTH
    filled, rest = marks.dots(agent.budget, max(room, scale.budget), room)
    number = cell(f"{agent.budget:.1f}", _NUMBER_WIDTH, PLAIN, "right")
    return [Segment(filled, ORANGE), Segment(rest, FAINT), number]


def _budget_history(row: Shown, width: int, scale: Scale) -> Line:
    return [Segment(marks.spark(row.budget, width, max(scale.budget_peak, 1.0)), ORANGE)]


def _acceptance(row: Shown, width: int, _: Scale) -> Line:
    agent = row.agent
    if not agent.streams:
        return [cell("", width)]
    if not agent.drafted:  # its estimate is still the prior, which is nobody's acceptance
        return [cell("-", width, MUTED, "right")]
    filled, rest = marks.bar(agent.alpha, width - _NUMBER_WIDTH)
    return [Segment(filled, SKY), Segment(rest, FAINT), cell(f"{agent.alpha:.2f}", _NUMBER_WIDTH, PLAIN, "right")]


def _acceptance_history(row: Shown, width: int, _: Scale) -> Line:
    return [Segment(marks.spark(row.acceptance, width, 1.0), SKY)]


def _goodput(row: Shown, width: int, scale: Scale) -> Line:
    agent = row.agent
    number = cell(marks.rate(agent.goodput), 6, BOLD if agent.streams else MUTED, "right")
    if width <= 6:
        return [fit([number], width)[0]] if width < 6 else [number]
    filled, rest = marks.bar(agent.goodput / scale.goodput if scale.goodput > 0 else 0.0, width - 6)
    return [Segment(filled, GREEN), Segment(rest, FAINT), number]


def _history(row: Shown, width: int, scale: Scale) -> Line:
    return [Segment(marks.spark(row.agent.history, width, scale.peak), GREEN)]


def _rtt(row: Shown, width: int, _: Scale) -> Line:
    ms = row.agent.network_ms
    return [cell(marks.rate(ms) if ms > 0 else "-", width, PLAIN if ms > 0 else MUTED, "right")]


def _lane(row: Shown, width: int, scale: Scale) -> Line:
    if not row.agent.streams:
        return [cell("", width)]
    return lane(row.agent, scale.verify_ms, scale.longest_ms / width, width)


def _drafted(row: Shown, width: int, _: Scale) -> Line:
    return [cell(marks.count(row.agent.drafted), width, MUTED, "right")]


def _accepted(row: Shown, width: int, _: Scale) -> Line:
    return [cell(marks.count(row.agent.accepted), width, MUTED, "right")]


_COLUMNS = {
    column.key: column
    for column in (
        Column("agent", "agent", 12, 30, _name, sort="name"),
        Column("drafter", "drafter", 14, 24, _drafter),
        Column("streams", "streams", 7, 7, _streams, "right", sort="streams"),
        Column("prefill", "prefill", 7, 7, _prefill, "right"),
        Column("weight", "weight", 6, 6, _weight, "right"),
        Column("budget", "budget", 10, 21, _budget, sort="budget"),
        Column("budget history", "60 s", 8, 60, _budget_history),
        Column("acceptance", "acceptance", 10, 25, _acceptance, sort="acceptance"),
        Column("acceptance history", "60 s", 8, 60, _acceptance_history),
        Column("goodput", "tok/s", 6, 26, _goodput, "right", sort="goodput"),
        Column("history", "60 s", 6, 60, _history),
        Column("rtt", "rtt ms", 6, 6, _rtt, "right", sort="rtt"),
        Column("lane", "last drafts", 11, 60, _lane),
        Column("drafted", "drafted", 7, 7, _drafted, "right"),
        Column("accepted", "accepted", 8, 8, _accepted, "right"),
    )
}
"""In the order in which they stand."""

_BY_IMPORTANCE = (
    *("agent", "goodput", "acceptance", "budget", "rtt", "streams", "history", "lane", "weight", "drafter"),
    *("acceptance history", "budget history", "prefill", "accepted", "drafted"),
)
"""The most important first: where there is no room, the last go. Columns in which nobody has anything to show are left
out at any width: weights that are all 1, prompts where none is on its way."""

_BY_GROWTH = (
    ("agent", 16),
    ("goodput", 11),
    ("drafter", 18),
    ("history", 12),
    ("lane", 20),
    ("budget", 13),
    ("acceptance", 14),
    ("goodput", 14),
    ("history", 20),
    ("acceptance history", 15),
    ("budget history", 15),
    ("lane", 36),
    ("history", 30),
    ("agent", 30),
    ("acceptance history", 30),
    ("budget history", 30),
    ("drafter", 24),
    ("history", 60),
    ("lane", 60),
    ("acceptance", 25),
    ("budget", 21),
)
"""Columns grow in this order, each up to a width, while there is room."""
