"""The picture of a server: a pure function from a snapshot to something rich can print."""

from __future__ import annotations

from rich.cells import set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor import marks
from goodspeed_server.monitor.agents import agent_lines
from goodspeed_server.monitor.canvas import (
    ALERT,
    BLUE,
    BOLD,
    FAINT,
    MUTED,
    ORANGE,
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

__all__ = ["Picture", "draw"]

_HISTORY_S = 60
_PHASES = (("gather", "░", MUTED), ("plan", "▓", SKY), ("verify", "█", BLUE), ("commit", "▒", ORANGE))
"""What a round consists of; each has a colour and, where there are no colours, a texture."""

_CURVE = tuple(Style(color=shade) for shade in ("#79b8f7", "#5da5f0", "#4593e8", "#387fd0", "#2d6bb3"))
"""The shades of the goodput curve, the top line first."""
_LABEL_WIDTH = 18
_MIN_ENGINE_WIDTH = 42
_MIN_GOODPUT_WIDTH = 20
_MIN_HEIGHT_WITH_FOOTER = 17
"""Below it, the room belongs to the agents."""


def draw(snapshot: ServerSnapshot, notice: str = "") -> Picture:
    """Make the picture of a snapshot.

    Args:
        snapshot: of the server.
        notice: what the onlooker has to know besides, in a few words; stands in the upper edge.
    """
    return Picture(snapshot, notice)


class Picture:
    """A rich renderable, as wide as it is given room, and as high as it is told to be or as it takes."""

    def __init__(self, snapshot: ServerSnapshot, notice: str) -> None:
        self._snapshot = snapshot
        self._notice = notice

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield every line with its end."""
        newline = Segment.line()
        for line in self.lines(console, options.max_width, options.height):
            yield from line
            yield newline

    def lines(self, console: Console, width: int, height: int | None) -> list[Line]:
        """The picture as lines, each exactly `width` wide.

        Args:
            console: what it is drawn on: without colours, phases get textures; without Unicode, marks become ASCII.
            width: of every line.
            height: how many lines; None is as many as it takes.
        """
        lines = _lines(self._snapshot, self._notice, width, height, colourless=console.color_system is None)
        if console.options.ascii_only:
            return [[_in_ascii(segment) for segment in line] for line in lines]
        return lines


def _in_ascii(segment: Segment) -> Segment:
    # A wide character becomes a narrow question mark, so the width is made up for.
    return Segment(set_cell_size(marks.as_ascii(segment.text), segment.cell_length), segment.style)


def _lines(snapshot: ServerSnapshot, notice: str, width: int, height: int | None, *, colourless: bool) -> list[Line]:
    header = _header(snapshot, notice, width, colourless=colourless)
    if height is None:
        return [*header, *_agents(snapshot, width, None), *_footer(snapshot, width)]
    footer = _footer(snapshot, width) if height >= _MIN_HEIGHT_WITH_FOOTER else []
    room = height - len(header) - len(footer)
    agents = _agents(snapshot, width, room)
    blank = [fit([], width)] * (room - len(agents))
    return [*header, *agents, *footer, *blank][:height]


def _header(snapshot: ServerSnapshot, notice: str, width: int, *, colourless: bool) -> list[Line]:
    inside = inner_width(width)
    title = [Segment("GoodSpeed", BOLD), Segment(f" {marks.clean(snapshot.model)}", BLUE)]
    if snapshot.draining:
        title.append(Segment(" draining", ALERT))
    up = f"up {marks.duration(snapshot.uptime_s)}"
    corner = [Segment(marks.clean(notice), ALERT)] if notice else [Segment(up, MUTED)]
    lines = (_choices(snapshot), *_round(snapshot, inside, colourless=colourless))
    return box((fit(line, inside) for line in lines), width, title=title, corner=corner)


def _choices(snapshot: ServerSnapshot) -> Line:
    chosen = {
        "scheduler": snapshot.scheduler,
        "rule": snapshot.rule,
        "layout": snapshot.layout,
        "capacity": "by price" if snapshot.capacity is None else str(snapshot.capacity),
    }
    line: Line = []
    for name, value in chosen.items():
        line += [Segment(f"{'   ' if line else ''}{name} ", MUTED), Segment(marks.clean(value), PLAIN)]
    return line


def _round(snapshot: ServerSnapshot, width: int, *, colourless: bool) -> list[Line]:
    """Where a round's time goes: a stacked bar, and what its parts are below it."""
    phases = snapshot.phases
    times_ms = (phases.gather_ms, phases.plan_ms, phases.verify_ms, phases.commit_ms)
    rounds = [Segment(marks.rate(snapshot.rounds_per_s), BOLD), Segment(" rounds/s  ", MUTED)]
    length = [Segment(marks.rate(phases.total_ms), BOLD), Segment(" ms each  ", MUTED)]
    lead = max(width_of(rounds), width_of(length))
    bar: Line = []
    legend: Line = []
    sizes = marks.shares(times_ms, width - lead)
    for (name, texture, style), size, time_ms in zip(_PHASES, sizes, times_ms, strict=True):
        bar.append(Segment((texture if colourless else "█") * size, style))
        swatch = Segment(texture if colourless else "■", style)
        legend += [swatch, Segment(f" {name} ", MUTED), Segment(f"{marks.rate(time_ms)}  ", PLAIN)]
    return [[*fit(rounds, lead), *bar], [*fit(length, lead), *legend]]


def _agents(snapshot: ServerSnapshot, width: int, height: int | None) -> list[Line]:
    count = len(snapshot.agents)
    title = [Segment("agents", BOLD), Segment(f" {count}", BLUE)]
    streams = [Segment(f"{snapshot.streams} streams", MUTED)]
    lines = agent_lines(snapshot.agents, inner_width(width), None if height is None else height - 2)
    return box(lines, width, title=title, corner=streams)


def _footer(snapshot: ServerSnapshot, width: int) -> list[Line]:
    right = max(width - width // 2, _MIN_ENGINE_WIDTH)
    left = width - right
    if left < _MIN_GOODPUT_WIDTH:
        return _engine(snapshot, width)
    return beside(_goodput(snapshot, left), _engine(snapshot, right))


def _goodput(snapshot: ServerSnapshot, width: int) -> list[Line]:
    """The last minute's goodput as a filled curve, stretched where there is room for more than a minute."""
    inside = inner_width(width)
    history = snapshot.goodput_history[-min(inside, _HISTORY_S) :]
    peak = max(history, default=0.0)
    columns = max(inside, _HISTORY_S) * len(history) // _HISTORY_S
    stretched = [history[column * len(history) // columns] for column in range(columns)]
    curve = marks.area(stretched, inside, len(_CURVE), peak)
    title = [Segment("goodput", BOLD), Segment(f" {marks.rate(snapshot.goodput)} tok/s", BLUE)]
    corner = [Segment(f"peak {marks.rate(peak)}", MUTED)]
    lines = ([Segment(line, style)] for line, style in zip(curve, _CURVE, strict=True))
    return box(lines, width, title=title, corner=corner)


def _engine(snapshot: ServerSnapshot, width: int) -> list[Line]:
    """What the drafts are worth, and how full the engine is."""
    inside = inner_width(width)
    used_rows = snapshot.rows - snapshot.free_rows
    rows = f"{used_rows}/{snapshot.rows}"
    kv = f"{marks.count(snapshot.kv_used_tokens)}/{marks.count(snapshot.kv_tokens)}"
    waiting = f"{snapshot.waiting} waiting"
    unit = "sum log tok/s" if snapshot.fairness == 1 else f"of fairness {snapshot.fairness:g}"
    lines = (
        _figure("speed-up", f"{marks.rate(snapshot.speedup)}x", "plain decoding"),
        _figure("acceptance length", marks.rate(snapshot.mean_acceptance_length), "tokens"),
        _figure("utility", marks.rate(snapshot.utility), f"{unit}, plain {marks.rate(snapshot.plain_utility)}"),
        _gauge("rows", used_rows, snapshot.rows, rows, inside),
        _gauge("KV tokens", snapshot.kv_used_tokens, snapshot.kv_tokens, kv, inside),
    )
    title = [Segment("engine", BOLD)]
    corner = [Segment(waiting, ALERT if snapshot.waiting else MUTED)]
    return box((fit(line, inside) for line in lines), width, title=title, corner=corner)


def _figure(label: str, value: str, unit: str) -> Line:
    return [cell(label, _LABEL_WIDTH, MUTED), Segment(value, BOLD), Segment(f" {unit}", MUTED)]


def _gauge(label: str, used: int, of: int, text: str, width: int) -> Line:
    number_width = 13
    filled, rest = marks.bar(used / of if of > 0 else 0.0, max(0, width - _LABEL_WIDTH - number_width))
    return [
        cell(label, _LABEL_WIDTH, MUTED),
        Segment(filled, BLUE),
        Segment(rest, FAINT),
        cell(text, number_width, PLAIN, "right"),
    ]
