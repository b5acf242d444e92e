"""The picture of a server: a pure function of what it says and said, how it is looked at, and a size."""

from __future__ import annotations

from typing import NamedTuple

from rich.cells import set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment

from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor import marks
from goodspeed_server.monitor.agents import agent_lines
from goodspeed_server.monitor.canvas import (
    ALERT,
    BOLD,
    MUTED,
    PLAIN,
    SKY,
    Line,
    beside,
    box,
    cell,
    fit,
    inner_width,
    width_of,
)
from goodspeed_server.monitor.help import help_lines
from goodspeed_server.monitor.history import History, Shown
from goodspeed_server.monitor.overview import goodput_chart, overview
from goodspeed_server.monitor.state import Extent, ViewState, arranged
from goodspeed_server.monitor.timeline import legend, round_lines

__all__ = ["Picture", "View", "draw", "extent", "view_lines"]

_EDGES = 2
"""Lines that a box has beside what it holds."""
_LEAST_ROUNDS_HEIGHT, _ROUNDS_HEIGHT, _MOST_ROUNDS_HEIGHT = 7, 9, 19
"""Of the box of rounds, heading and edges included."""
_LEAST_AGENTS_HEIGHT = 6
_CHART_HEIGHT = 7
_MIN_WIDTH_SIDE_BY_SIDE = 150
_MIN_WIDTH_WITH_LONG_LEGEND = 90


class View(NamedTuple):
    """All that a picture depends on beside its size."""

    snapshot: ServerSnapshot
    rows: list[Shown]
    """The agents to see, in order."""
    state: ViewState | None = None
    """None: nobody is at the keys."""
    notice: str = ""

    @classmethod
    def of(cls, snapshot: ServerSnapshot, history: History, state: ViewState | None, notice: str = "") -> View:
        """What is to be seen of a snapshot."""
        rows = history.rows(snapshot.agents)
        return cls(snapshot, rows if state is None else arranged(rows, state), state, notice)


class _Room(NamedTuple):
    """How many lines each part has."""

    chart: int
    rounds: int
    agents: int


def draw(snapshot: ServerSnapshot, notice: str = "", history: History | None = None) -> Picture:
    """Make the picture of a snapshot, for whoever prints it once.

    Args:
        snapshot: of the server.
        notice: what the onlooker has to know besides, in a few words; stands in the upper edge.
        history: of the snapshots before it.
    """
    return Picture(View.of(snapshot, history or History(), None, notice))


class Picture:
    """A rich renderable, as wide as it is given room, and as high as it is told to be or as it takes."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield every line with its end."""
        newline = Segment.line()
        for line in view_lines(self._view, options.max_width, options.height, ascii_only=options.ascii_only):
            yield from line
            yield newline


def view_lines(view: View, width: int, height: int | None, *, ascii_only: bool = False) -> list[Line]:
    """The picture as lines, each exactly `width` wide.

    Args:
        view: what to see.
        width: of every line.
        height: how many lines; None is as many as it takes.
        ascii_only: whether marks become ASCII.
    """
    lines = _lines(view, width, height)
    return [[_in_ascii(segment) for segment in line] for line in lines] if ascii_only else lines


def extent(view: View, width: int, height: int) -> Extent:
    """How far there is to scroll."""
    above = len(overview(view.snapshot, view.notice, width, height))
    return Extent(len(view.rows), max(0, _share_out(view, width, height, above).agents - _EDGES - 1))


def _in_ascii(segment: Segment) -> Segment:
    # A wide character becomes a narrow question mark, so the width is made up for.
    return Segment(set_cell_size(marks.as_ascii(segment.text), segment.cell_length), segment.style)


def _lines(view: View, width: int, height: int | None) -> list[Line]:
    snapshot, state = view.snapshot, view.state
    header = overview(snapshot, view.notice, width, height)
    room = _share_out(view, width, height, len(header))
    if state is not None and state.help and height is not None:
        body = help_lines(width, height - len(header) - 1)
    else:
        body = [*_above(snapshot, width, room), *_agents(view, width, room.agents)]
    if height is None:
        return [*header, *body]
    keys = [_keys(view, width, room)] if state is not None else []
    blank = [fit([], width)] * (height - len(header) - len(body) - len(keys))
    lines = [*header, *body, *blank][: max(0, height - len(keys))]
    return [*lines, *keys][:height]


def _share_out(view: View, width: int, height: int | None, above: int) -> _Room:
    """First agents and a few rounds, then the curve of goodput, then more rounds."""
    state = view.state or ViewState()
    wanted = _EDGES + max(1, len(view.rows)) + (1 if view.rows else 0)
    if height is None:
        return _Room(_CHART_HEIGHT, _ROUNDS_HEIGHT, wanted)
    room = height - above - (1 if view.state is not None else 0)
    rounds = 0
    if state.timeline and room >= _LEAST_ROUNDS_HEIGHT + _LEAST_AGENTS_HEIGHT:
        rounds = min(_ROUNDS_HEIGHT, max(_LEAST_ROUNDS_HEIGHT, room - wanted, room // 3))
    left = max(0, room - rounds - wanted)
    chart = _CHART_HEIGHT if left >= _CHART_HEIGHT and not (rounds and width >= _MIN_WIDTH_SIDE_BY_SIDE) else 0
    if rounds:
        rounds = min(_MOST_ROUNDS_HEIGHT, rounds + left - chart)
    return _Room(chart, rounds, max(0, min(wanted, room - rounds - chart)))


def _above(snapshot: ServerSnapshot, width: int, room: _Room) -> list[Line]:
    if width >= _MIN_WIDTH_SIDE_BY_SIDE and room.rounds:
        left = width // 3
        return beside(goodput_chart(snapshot, left, room.rounds), _rounds(snapshot, width - left, room.rounds))
    chart = goodput_chart(snapshot, width, room.chart) if room.chart else []
    return [*chart, *(_rounds(snapshot, width, room.rounds) if room.rounds else [])]


def _rounds(snapshot: ServerSnapshot, width: int, height: int) -> list[Line]:
    inside = inner_width(width)
    title = [Segment("rounds", BOLD)]
    if width >= _MIN_WIDTH_WITH_LONG_LEGEND:
        title.append(Segment(f" {marks.rate(snapshot.rounds_per_s)}/s", SKY))
    lines = round_lines(snapshot.recent, inside, height - _EDGES)
    lines += [fit([], inside)] * (height - _EDGES - len(lines))
    return box(lines, width, title=title, corner=legend(short=width < _MIN_WIDTH_WITH_LONG_LEGEND))


def _agents(view: View, width: int, height: int) -> list[Line]:
    state = view.state or ViewState()
    inside, rows = inner_width(width), view.rows
    shown = slice(0, 0)
    if not view.snapshot.agents:
        waiting = "no agent is linked up: goodspeed-agent complete --server URL --prompt TEXT starts one"
        lines = [[cell(waiting, inside, MUTED)]]
    elif not rows:
        lines = [[cell(f"no agent's name contains {state.filter!r}: Esc shows all", inside, MUTED)]]
    else:
        room = max(0, height - _EDGES - 1)
        first = min(state.scroll, max(0, len(rows) - room))
        shown = slice(first, min(first + room, len(rows)))
        lines = agent_lines(rows, inside, state, view.snapshot.phases.verify_ms, shown)
    count = len(view.snapshot.agents)
    title = [Segment("agents", BOLD), Segment(f" {count}" if len(rows) == count else f" {len(rows)} of {count}", SKY)]
    hidden = len(rows) - (shown.stop - shown.start)
    corner = [Segment(f"{view.snapshot.streams} streams", MUTED)]
    if hidden and rows:
        corner = [Segment(f"{shown.start + 1}-{shown.stop} of {len(rows)}", PLAIN)]
    return box(lines, width, title=title, corner=corner)


def _keys(view: View, width: int, room: _Room) -> Line:
    """What the keys do, and how the table is looked at."""
    assert view.state is not None
    state = view.state
    if state.typing:
        line = [
            Segment(" filter ", MUTED),
            Segment(f"{state.filter}_", BOLD),
            Segment("   Enter keeps it, Esc clears it", MUTED),
        ]
        return fit(line, width)
    # As it stands in the heading: names from A, numbers from the largest.
    arrow = "" if state.sort == "linked" else "▲" if state.reverse != (state.sort == "name") else "▼"
    order = "order of linking" if state.sort == "linked" else f"{state.sort}{arrow}"
    line = [Segment(" paused ", ALERT)] if state.paused else []
    hidden = len(view.rows) + _EDGES + 1 > room.agents
    # Behind the help all others are found: those that have no room are left out, whole.
    for key, what in (
        ("q", "quit"),
        ("?", "help"),
        ("s", f"sort: {order}"),
        ("/", f"filter: {state.filter}" if state.filter else "filter"),
        ("t", "timeline"),
        ("p", "go on" if state.paused else "pause"),
        *((("↑↓", "scroll"),) if hidden else ()),
    ):
        entry = [Segment(f" {key}", BOLD), Segment(f" {what} ", MUTED)]
        if width_of([*line, *entry]) <= width + 1:  # its last character is a blank
            line += entry
    return fit(line, width)
