"""The server as a whole: its figures, and its goodput over the last minute."""

from __future__ import annotations

from typing import NamedTuple

from rich.segment import Segment
from rich.style import Style

from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor import marks
from goodspeed_server.monitor.canvas import (
    ALERT,
    BOLD,
    FAINT,
    GREEN,
    MUTED,
    PLAIN,
    SKY,
    Line,
    box,
    cell,
    fit,
    inner_width,
)

__all__ = ["goodput_chart", "headline", "overview"]

_LABEL_WIDTH = 10
_GAP = 2
_MIN_CELL_WIDTH = 26
_MOST_COLUMNS = 4
_MIN_GAUGE_WIDTH = 4
_ONE_LINE_BELOW = 10
_BRIEF_BELOW = 24
_BRIEF = ("goodput", "rounds", "running", "waiting")
"""What is left of the figures where the screen is low and narrow."""


class _Figure(NamedTuple):
    label: str
    value: str
    unit: str = ""
    share: float | None = None
    """Of a gauge."""
    alert: bool = False


def overview(snapshot: ServerSnapshot, notice: str, width: int, height: int | None) -> list[Line]:
    """The box at the top; on a screen of few lines, only what matters most."""
    if height is not None and height < _ONE_LINE_BELOW:
        return [headline(snapshot, notice, width)]
    inside = inner_width(width)
    columns = max(1, min(_MOST_COLUMNS, (inside + _GAP) // (_MIN_CELL_WIDTH + _GAP)))
    figures = _figures(snapshot)
    if height is not None and height < _BRIEF_BELOW and columns < _MOST_COLUMNS:
        figures = [figure for figure in figures if figure.label in _BRIEF]
        columns = min(columns, 2)
    rows = -(-len(figures) // columns)
    size = (inside + _GAP) // columns - _GAP
    lines: list[Line] = []
    for row in range(rows):
        line: Line = []
        for figure in figures[row::rows]:
            line += [Segment(" " * _GAP), *_drawn(figure, size)] if line else _drawn(figure, size)
        lines.append(fit(line, inside))
    title = [Segment("GoodSpeed", BOLD), Segment(f" {marks.clean(snapshot.model)}", SKY)]
    if snapshot.draining:
        title.append(Segment(" draining", ALERT))
    return box(lines, width, title=title, corner=_corner(snapshot, notice))


def headline(snapshot: ServerSnapshot, notice: str, width: int) -> Line:
    """All there is room for in one line."""
    if notice:
        return [cell(notice, width, ALERT)]
    text = (
        f"{marks.rate(snapshot.goodput)} tok/s  {marks.rate(snapshot.rounds_per_s)} rounds/s  "
        f"{snapshot.streams} running  {snapshot.waiting} waiting"
    )
    return [cell(text, width, BOLD)]


def goodput_chart(snapshot: ServerSnapshot, width: int, height: int) -> list[Line]:
    """The last minute's goodput as a filled curve."""
    inside = inner_width(width)
    history = snapshot.goodput_history
    peak = max(history, default=0.0)
    curve = marks.area(history, inside, max(1, height - 2), peak)
    title = [Segment("goodput", BOLD), Segment(f" {marks.rate(snapshot.goodput)} tok/s", GREEN)]
    corner = [Segment(f"60 s, peak {marks.rate(peak)}", MUTED)]
    return box(([Segment(line, GREEN)] for line in curve), width, title=title, corner=corner)


def _corner(snapshot: ServerSnapshot, notice: str) -> Line:
    if notice:
        return [Segment(marks.clean(notice), ALERT)]
    return [Segment(f"up {marks.duration(snapshot.uptime_s)}", MUTED)]


def _figures(snapshot: ServerSnapshot) -> list[_Figure]:
    """Three of what users get, three of what drafts are worth, three of what was chosen, three of how full it is."""
    used_rows = snapshot.rows - snapshot.free_rows
    kv = f"{marks.count(snapshot.kv_used_tokens)}/{marks.count(snapshot.kv_tokens)}"
    unit = f"plain {marks.rate(snapshot.plain_utility)}"
    return [
        _Figure("goodput", marks.rate(snapshot.goodput), "tok/s"),
        _Figure("utility", marks.rate(snapshot.utility), unit),
        _Figure("Jain", f"{snapshot.jain:.2f}", "1 is even"),
        _Figure("speed-up", f"{marks.rate(snapshot.speedup)}x", "plain"),
        _Figure("length", marks.rate(snapshot.mean_acceptance_length), "tok/verdict"),
        _Figure("rounds", f"{marks.rate(snapshot.rounds_per_s)}/s", f"{marks.rate(snapshot.phases.total_ms)} ms"),
        _Figure("scheduler", snapshot.scheduler, "" if snapshot.fairness == 1 else f"alpha {snapshot.fairness:g}"),
        _Figure("verifying", snapshot.rule, snapshot.layout),
        _Figure("capacity", "by price" if snapshot.capacity is None else str(snapshot.capacity),
                "" if snapshot.capacity is None else "tok/round"),
        _Figure("running", f"{used_rows}/{snapshot.rows}", share=_share(used_rows, snapshot.rows)),
        _Figure("waiting", str(snapshot.waiting), "streams", alert=snapshot.waiting > 0),
        _Figure("KV", kv, share=_share(snapshot.kv_used_tokens, snapshot.kv_tokens)),
    ]  # fmt: skip


def _share(used: int, of: int) -> float:
    return used / of if of > 0 else 0.0


def _drawn(figure: _Figure, width: int) -> Line:
    label = cell(figure.label, min(width, _LABEL_WIDTH), MUTED)
    room = width - min(width, _LABEL_WIDTH)
    value = marks.clean(figure.value)
    style: Style = ALERT if figure.alert else BOLD
    if figure.share is None:
        unit = f" {marks.clean(figure.unit)}" if figure.unit else ""
        return fit([label, Segment(value, style), Segment(unit, MUTED)], width) if room else [label]
    gauge = room - len(value) - 1
    if gauge < _MIN_GAUGE_WIDTH:
        return [label, cell(value, room, PLAIN)]
    filled, rest = marks.bar(figure.share, gauge)
    return [label, Segment(f"{value} ", BOLD), Segment(filled, SKY), Segment(rest, FAINT)]
