"""The table of agents: which columns there is room for, how wide each is, and what stands in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.segment import Segment

from goodspeed.snapshot import AgentRow
from goodspeed_server.monitor import marks
from goodspeed_server.monitor.canvas import ALERT, BLUE, BOLD, FAINT, MUTED, ORANGE, PLAIN, Line, cell, fit

__all__ = ["agent_lines"]

_GAP = 2
_GAP_TEXT = Segment(" " * _GAP)
_NUMBER_WIDTH = 5
"""Room for the number beside a bar, and the space between them."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """What a full bar means; the same for all agents, so that they can be compared by eye."""

    budget: float
    goodput: float


@dataclass(frozen=True, slots=True)
class _Column:
    """One column; `draw` gives segments that are together exactly as wide as asked."""

    title: str
    min_width: int
    max_width: int
    draw: Callable[[AgentRow, int, _Scale], list[Segment]]
    align: Literal["left", "right"] = "left"


def agent_lines(agents: Sequence[AgentRow], width: int, height: int | None) -> list[Line]:
    """The heading and a line for each agent.

    Args:
        agents: all of them.
        width: of the lines; columns that do not fit are left out, the least important first.
        height: of the table with its heading; what does not fit is counted in a last line, and agents that have no
            streams are the first to go. None is as many as it takes.
    """
    if not agents:
        waiting = "no agent is linked up: goodspeed-agent complete --server URL --prompt TEXT starts one"
        return [[cell(waiting, width, MUTED)]]
    shown, hidden = _cut(agents, height)
    scale = _Scale(
        budget=max(agent.budget for agent in agents),
        goodput=max(max(agent.history, default=0.0) for agent in agents),
    )
    columns = _layout(agents, width)
    missing = width - sum(column_width + _GAP for _, column_width in columns) + _GAP
    lines = [_heading(columns), *(_row(columns, agent, scale) for agent in shown)]
    if missing > 0:
        margin = Segment(" " * missing)
        lines = [[*line, margin] for line in lines]
    elif missing < 0:
        lines = [fit(line, width) for line in lines]
    if hidden:
        goodput = marks.rate(sum(agent.goodput for agent in hidden))
        lines.append([cell(f"+ {len(hidden)} more, {goodput} tok/s together", width, MUTED)])
    return lines


def _cut(agents: Sequence[AgentRow], height: int | None) -> tuple[Sequence[AgentRow], Sequence[AgentRow]]:
    if height is None or len(agents) < height:
        return agents, ()
    room = max(0, height - 2)
    by_interest = sorted(agents, key=lambda agent: agent.streams == 0)
    return by_interest[:room], by_interest[room:]


def _layout(agents: Sequence[AgentRow], width: int) -> list[tuple[_Column, int]]:
    """Choose columns by importance, then let them grow into the room that is left."""
    longest = {
        "agent": 2 + max(cell_len(_label(agent)) for agent in agents),
        "drafter": max(cell_len(agent.drafter) for agent in agents),
    }
    room = width
    chosen: list[_Column] = []
    for title, spare in _BY_IMPORTANCE:
        column = _COLUMNS[title]
        needed = column.min_width + (_GAP if chosen else 0)
        if needed + spare > room and chosen:
            break
        chosen.append(column)
        room -= needed
    widths = {column.title: column.min_width for column in chosen}
    for title, limit in _BY_GROWTH:
        if title in widths:
            most = min(limit, longest.get(title, limit), _COLUMNS[title].max_width)
            grown = max(0, min(room, most - widths[title]))
            widths[title] += grown
            room -= grown
    return [(column, widths[title]) for title, column in _COLUMNS.items() if title in widths]


def _heading(columns: Sequence[tuple[_Column, int]]) -> Line:
    return _joined([cell(column.title, width, MUTED, column.align)] for column, width in columns)


def _row(columns: Sequence[tuple[_Column, int]], agent: AgentRow, scale: _Scale) -> Line:
    return _joined(column.draw(agent, width, scale) for column, width in columns)


def _joined(cells: Iterable[list[Segment]]) -> Line:
    line: Line = []
    for segments in cells:
        if line:
            line.append(_GAP_TEXT)
        line += segments
    return line


def _label(agent: AgentRow) -> str:
    return agent.name if agent.state == "ok" else f"{agent.name} {agent.state}"


def _name(agent: AgentRow, width: int, _: _Scale) -> list[Segment]:
    if agent.state != "ok":
        mark, style = Segment("▲ ", ALERT), ALERT
    elif agent.streams:
        mark, style = Segment("● ", BLUE), BOLD
    else:
        mark, style = Segment("○ ", MUTED), MUTED
    return [mark, cell(_label(agent), width - 2, style)]


def _drafter(agent: AgentRow, width: int, _: _Scale) -> list[Segment]:
    return [cell(agent.drafter, width, MUTED)]


def _streams(agent: AgentRow, width: int, _: _Scale) -> list[Segment]:
    return [cell(str(agent.streams), width, PLAIN if agent.streams else MUTED, "right")]


def _prefill(agent: AgentRow, width: int, _: _Scale) -> list[Segment]:
    return [cell(str(agent.prefilling) if agent.prefilling else "", width, ORANGE, "right")]


def _budget(agent: AgentRow, width: int, scale: _Scale) -> list[Segment]:
    if not agent.streams:
        return [cell("", width)]
    room = width - _NUMBER_WIDTH
    filled, rest = marks.dots(agent.budget, max(room, scale.budget), room)
    number = cell(f"{agent.budget:.1f}", _NUMBER_WIDTH, PLAIN, "right")
    return [Segment(filled, ORANGE), Segment(rest, FAINT), number]


def _acceptance(agent: AgentRow, width: int, _: _Scale) -> list[Segment]:
    if not agent.streams:
        return [cell("", width)]
    if not agent.drafted:  # its estimate is still the prior, which is nobody's acceptance
        return [cell("-", width, MUTED, "right")]
    filled, rest = marks.bar(agent.alpha, width - _NUMBER_WIDTH)
    return [Segment(filled, BLUE), Segment(rest, FAINT), cell(f"{agent.alpha:.2f}", _NUMBER_WIDTH, PLAIN, "right")]


def _goodput(agent: AgentRow, width: int, _: _Scale) -> list[Segment]:
    return [cell(marks.rate(agent.goodput), width, BOLD if agent.streams else MUTED, "right")]


def _history(agent: AgentRow, width: int, scale: _Scale) -> list[Segment]:
    return [Segment(marks.spark(agent.history, width, scale.goodput), BLUE)]


def _drafted(agent: AgentRow, width: int, _: _Scale) -> list[Segment]:
    return [cell(marks.count(agent.drafted), width, MUTED, "right")]


def _accepted(agent: AgentRow, width: int, _: _Scale) -> list[Segment]:
    return [cell(marks.count(agent.accepted), width, MUTED, "right")]


_COLUMNS = {
    column.title: column
    for column in (
        _Column("agent", 12, 30, _name),
        _Column("drafter", 10, 30, _drafter),
        _Column("streams", 7, 7, _streams, "right"),
        _Column("prefill", 7, 7, _prefill, "right"),
        _Column("budget", 10, 21, _budget),
        _Column("acceptance", 10, 25, _acceptance),
        _Column("tok/s", 6, 6, _goodput, "right"),
        _Column("history", 8, 60, _history),
        _Column("drafted", 7, 7, _drafted, "right"),
        _Column("accepted", 8, 8, _accepted, "right"),
    )
}
"""In the order in which they stand."""

_BY_IMPORTANCE = (
    ("agent", 0),
    ("tok/s", 0),
    ("acceptance", 0),
    ("budget", 0),
    ("streams", 0),
    ("drafter", 0),
    ("history", 0),
    ("accepted", 0),
    ("drafted", 0),
    ("prefill", 30),
)
"""The most important first; each with the room that has to be left for the others to grow into before it is shown."""

_BY_GROWTH = (
    ("agent", 16),
    ("drafter", 18),
    ("history", 14),
    ("budget", 13),
    ("acceptance", 15),
    ("history", 30),
    ("agent", 30),
    ("drafter", 30),
    ("history", 60),
    ("acceptance", 25),
    ("budget", 21),
)
"""Columns grow in this order, each up to a width, while there is room."""
