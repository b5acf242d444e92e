"""Lines of styled text, boxes around them, and the palette.

Lines are built from rich's segments directly: a rich `Table` measures every cell several times, which at 64 agents
costs several times as much as the whole picture may.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style

from goodspeed_server.monitor.marks import clean

__all__ = [
    "ALERT",
    "BOLD",
    "FAINT",
    "GREEN",
    "MUTED",
    "ORANGE",
    "PLAIN",
    "SKY",
    "VERMILLION",
    "Line",
    "beside",
    "box",
    "cell",
    "fit",
    "inner_width",
    "width_of",
]

Line: TypeAlias = list[Segment]
Align: TypeAlias = Literal["left", "right"]

# Okabe and Ito's colours, told apart under every common colour blindness, on dark and on light terminals. No colour
# carries a meaning that is not also a word, a number or a shape.
PLAIN = Style()
BOLD = Style(bold=True)
MUTED = Style(color="#8b949e")
FAINT = Style(color="#57606a")
ORANGE = Style(color="#e69f00")
SKY = Style(color="#56b4e9")
GREEN = Style(color="#009e73")
ALERT = Style(bold=True, color="#d55e00")
VERMILLION = Style(color="#d55e00")

_MIN_BOX_WIDTH = 12


def cell(text: str, width: int, style: Style = PLAIN, align: Align = "left") -> Segment:
    """Text from anywhere, made exactly `width` wide; an ellipsis stands for what is cut off."""
    text = clean(text)
    length = len(text) if text.isascii() else cell_len(text)
    if length > width:
        text = set_cell_size(text, width - 1) + "…" if width > 0 else ""
    elif align == "right":
        text = " " * (width - length) + text
    else:
        text = text + " " * (width - length)
    return Segment(text, style)


def fit(line: Line, width: int) -> Line:
    """The line, cut or padded to exactly `width`."""
    return Segment.adjust_line_length(line, max(0, width))


def width_of(line: Iterable[Segment]) -> int:
    """How many characters wide the line is."""
    return sum(segment.cell_length for segment in line)


def box(
    lines: Iterable[Line], width: int, *, title: Sequence[Segment] = (), corner: Sequence[Segment] = ()
) -> list[Line]:
    """Draw a rounded frame around lines; no frame where there is no room for one.

    Args:
        lines: what it holds, each `inner_width(width)` wide.
        width: of the whole box.
        title: stands in the upper edge, at the left.
        corner: stands in the upper edge, at the right, where there is room.
    """
    if width < _MIN_BOX_WIDTH:
        return list(lines)
    inside = width - 4
    edge = [*title, Segment(" ", FAINT)] if title else []
    used = width_of(edge)
    ending = [Segment(" ", FAINT), *corner, Segment(" ─", FAINT)] if corner else []
    ending_width = width_of(ending)
    if used + ending_width > inside - 1:
        ending, ending_width = [], 0
    if used > inside:
        edge, used = fit(edge, inside), inside
    rule = "─" * (inside - used - ending_width)
    top: Line = [Segment("╭─ " if edge else "╭──", FAINT), *edge, Segment(rule, FAINT), *ending, Segment("╮", FAINT)]
    left, right = Segment("│ ", FAINT), Segment(" │", FAINT)
    bottom: Line = [Segment("╰" + "─" * (width - 2) + "╯", FAINT)]
    return [top, *([left, *line, right] for line in lines), bottom]


def inner_width(width: int) -> int:
    """How wide the lines inside a box of this width are."""
    return width if width < _MIN_BOX_WIDTH else width - 4


def beside(left: Sequence[Line], right: Sequence[Line]) -> list[Line]:
    """Two blocks of the same height, next to each other."""
    return [[*one, *other] for one, other in zip(left, right, strict=True)]
