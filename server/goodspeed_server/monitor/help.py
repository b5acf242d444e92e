"""What the keys, the marks and the columns mean, on the screen itself."""

from __future__ import annotations

from rich.segment import Segment

from goodspeed_server.monitor.canvas import BOLD, MUTED, PLAIN, Line, box, cell, fit, inner_width
from goodspeed_server.monitor.timeline import LEGEND

__all__ = ["KEYS", "help_lines"]

KEYS = (
    ("q", "quit"),
    ("s  S", "sort by the next column; the other way round"),
    ("/", "show only agents whose name contains what is typed; Esc clears"),
    ("t", "show or hide the rounds"),
    ("p", "stand still, and go on"),
    ("arrows PgUp PgDn Home End", "scroll through the agents"),
    ("h  ?", "this"),
)
_MARKS = {
    "draft": "an agent drafts, by its own account",
    "network": "the rest of the way from the verdict to the draft's arrival",
    "wait": "the draft is here, and the round is open for others",
    "held up": "the part of the wait that one agent costs; its name stands behind",
    "verify": "the pass, with planning and committing",
}
_COLUMNS = (
    ("streams", "texts that the agent has under way"),
    ("budget", "tokens it is told to draft for a round and stream"),
    ("acceptance", "share of drafted tokens that are accepted, estimated"),
    ("tok/s", "its goodput: tokens committed a second, all streams"),
    ("60 s", "the same over the last minute"),
    ("rtt ms", "network time of its drafts, there and back"),
    ("last drafts", "their way, in the marks above"),
)
_KEY_WIDTH = 26
_NAME_WIDTH = 13


def help_lines(width: int, height: int) -> list[Line]:
    """A box of at most `height` lines."""
    inside = inner_width(width)
    lines: list[Line] = [[cell(key, _KEY_WIDTH, BOLD), Segment(what, PLAIN)] for key, what in KEYS]
    lines.append([])
    for name, mark, style in LEGEND:
        lines.append([Segment(mark * 4, style), cell(f"  {name}", _NAME_WIDTH, BOLD), Segment(_MARKS[name], PLAIN)])
    lines.append([])
    lines += [[cell(name, _NAME_WIDTH + 4, BOLD), Segment(what, PLAIN)] for name, what in _COLUMNS]
    lines = [fit(line, inside) for line in lines[: max(0, height - 2)]]
    return box(lines, width, title=[Segment("help", BOLD)], corner=[Segment("? closes it", MUTED)])
