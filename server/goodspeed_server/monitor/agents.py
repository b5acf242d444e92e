"""The table of agents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.segment import Segment

from goodspeed_server.monitor.canvas import BOLD, MUTED, Line, cell, fit
from goodspeed_server.monitor.columns import GAP, Column, Scale, layout
from goodspeed_server.monitor.history import Shown
from goodspeed_server.monitor.state import ViewState

__all__ = ["agent_lines"]

_GAP_TEXT = Segment(" " * GAP)


def agent_lines(rows: Sequence[Shown], width: int, state: ViewState, verify_ms: float, shown: slice) -> list[Line]:
    """The heading and a line for each agent that is shown.

    Args:
        rows: all agents, filtered and sorted; they all have a say in columns and scales, so that scrolling moves none.
        width: of the lines; columns that do not fit are left out, the least important first.
        state: by what they are sorted.
        verify_ms: what a pass takes.
        shown: which of them.
    """
    scale = Scale.of(rows, verify_ms)
    columns = layout([row.agent for row in rows], width)
    missing = width - sum(column_width + GAP for _, column_width in columns) + GAP
    lines = [_heading(columns, state)]
    lines += [_joined(column.draw(row, size, scale) for column, size in columns) for row in rows[shown]]
    if missing > 0:
        margin = Segment(" " * missing)
        return [[*line, margin] for line in lines]
    return lines if missing == 0 else [fit(line, width) for line in lines]


def _heading(columns: Sequence[tuple[Column, int]], state: ViewState) -> Line:
    return _joined([_title(column, width, state)] for column, width in columns)


def _title(column: Column, width: int, state: ViewState) -> Segment:
    if column.sort != state.sort:
        return cell(column.title, width, MUTED, column.align)
    # Names are sorted from A, numbers from the largest.
    arrow = "▲" if state.reverse != (state.sort == "name") else "▼"
    text = f"{column.title}{arrow}" if len(column.title) < width else column.title
    return cell(text, width, BOLD, column.align)


def _joined(cells: Iterable[Line]) -> Line:
    line: Line = []
    for segments in cells:
        if line:
            line.append(_GAP_TEXT)
        line += segments
    return line
