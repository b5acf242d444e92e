"""What the keys, the marks and the columns mean, on the screen itself."""

from __future__ import annotations

import textwrap

from rich.segment import Segment

from goodspeed_server.monitor.canvas import BOLD, MUTED, PLAIN, Line, box, cell, fit, inner_width, width_of
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
_NARROW_KEY_WIDTH = 13
_NAME_WIDTH = 13
_ROOMY = 72
"""Characters: with fewer, the keys' column is a narrow one."""
_LEAST_TEXT = 10
_EDGES = 2
_IN_SHORT = {"arrows PgUp PgDn Home End": "arrows ..."}


def help_lines(width: int, height: int) -> list[Line]:
    """A box of at most `height` lines; what has no room in it is left out by whole entries."""
    inside, room = inner_width(width), max(0, height - _EDGES)
    key_width = _KEY_WIDTH if inside >= _ROOMY else _NARROW_KEY_WIDTH
    blank: list[Line] = [[]]
    entries: list[list[Line]] = [
        *(_entry([cell(key, key_width, BOLD)], what, inside) for key, what in _keys(inside)),
        blank,
        *(
            _entry([Segment(mark * 4, style), cell(f"  {name}", _NAME_WIDTH, BOLD)], _MARKS[name], inside)
            for name, mark, style in LEGEND
        ),
        blank,
        *(_entry([cell(name, _NAME_WIDTH + 4, BOLD)], what, inside) for name, what in _COLUMNS),
    ]
    if sum(map(len, entries)) > room:
        entries = [entry for entry in entries if entry is not blank]
    lines: list[Line] = []
    for number, entry in enumerate(entries):
        last = number == len(entries) - 1
        # The last line that there is says that others are missing.
        if len(lines) + len(entry) > room - (0 if last else 1):
            lines.append([Segment("a taller terminal shows more", MUTED)])
            break
        lines += entry
    lines = [fit(line, inside) for line in lines[:room]]
    return box(lines, width, title=[Segment("help", BOLD)], corner=[Segment("? closes it", MUTED)])


def _keys(inside: int) -> list[tuple[str, str]]:
    """Keys and what they do, those with long names in short where there is little room."""
    return [(key if inside >= _ROOMY else _IN_SHORT.get(key, key), what) for key, what in KEYS]


def _entry(begin: Line, what: str, inside: int) -> list[Line]:
    """A name, and beside it what it means, in as many lines as that takes."""
    indent = width_of(begin)
    first, *others = textwrap.wrap(what, max(_LEAST_TEXT, inside - indent))
    return [[*begin, Segment(first, PLAIN)], *([Segment(" " * indent, PLAIN), Segment(more, PLAIN)] for more in others)]
