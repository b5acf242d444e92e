"""Where the time of rounds goes, and of drafts: a line a round, a lane an agent.

A line is the way of one draft, the one in the middle by time of arrival, from the verdict that asked for it to the
verdict upon it. All lines share one scale, so that a round that took longer is longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.segment import Segment
from rich.style import Style

from goodspeed.snapshot import AgentRow, RoundRow
from goodspeed_server.monitor import marks
from goodspeed_server.monitor.canvas import ALERT, FAINT, GREEN, MUTED, ORANGE, PLAIN, SKY, VERMILLION, Line, cell, fit

__all__ = ["LEGEND", "lane", "lane_scale", "legend", "round_lines"]

LEGEND: tuple[tuple[str, str, Style], ...] = (
    ("draft", "━", ORANGE),
    ("network", "╌", SKY),
    ("wait", "·", MUTED),
    ("held up", "\N{BOX DRAWINGS LIGHT DIAGONAL UPPER RIGHT TO LOWER LEFT}", VERMILLION),
    ("verify", "■", GREEN),
)
"""What the parts of a line are called and drawn with, in the order in which they follow each other."""
_NUMBER_WIDTH = 8
_MS_WIDTH = 6
_TOKENS_WIDTH = 9
_BLAME_WIDTH = 24
_SHORT_BLAME_WIDTH = 18
_MIN_WIDTH_WITH_TOKENS = 80
_WORTH_NAMING = 0.1
"""An agent is named if it has held up a round for this share of it."""


def legend(short: bool) -> Line:
    """What the marks mean, for the edge of a box."""
    line: Line = []
    for name, mark, style in LEGEND:
        line += [
            Segment(mark * (1 if short else 2), style),
            Segment(f" {name}{' ' if name != 'verify' else ''}", MUTED),
        ]
    return line


def round_lines(rounds: Sequence[RoundRow], width: int, height: int) -> list[Line]:
    """A heading and the newest rounds, the newest last; at most `height` lines, each exactly `width` wide."""
    if height < 1:
        return []
    if not rounds:
        return [[cell("no round yet: a round begins when an agent asks for text", width, MUTED)]]
    shown = rounds[-max(1, height - 1) :]
    with_tokens = width >= _MIN_WIDTH_WITH_TOKENS
    blame_width = _BLAME_WIDTH if with_tokens else _SHORT_BLAME_WIDTH
    used = _NUMBER_WIDTH + _MS_WIDTH + 2 + blame_width + (_TOKENS_WIDTH if with_tokens else 0)
    trail_width = max(0, width - used)
    longest_ms = max(_total_ms(row) for row in shown)
    heading = [
        cell("round", _NUMBER_WIDTH, MUTED),
        cell("ms", _MS_WIDTH, MUTED, "right"),
        cell("", 2),
        cell("the middle draft", trail_width, MUTED),
        cell("  held up by", blame_width, MUTED),
    ]
    if with_tokens:
        heading.append(cell("accepted", _TOKENS_WIDTH, MUTED, "right"))
    lines = [heading] if height > 1 else []
    for row in shown:
        line = [
            cell(f"#{row.number}", _NUMBER_WIDTH, MUTED),
            cell(marks.rate(_total_ms(row)), _MS_WIDTH, PLAIN, "right"),
            cell("", 2),
            *_trail(_parts(row), longest_ms / max(1, trail_width), trail_width),
            *_blame(row, blame_width),
        ]
        if with_tokens:
            line.append(cell(f"{row.accepted}/{row.drafted}", _TOKENS_WIDTH, MUTED, "right"))
        lines.append(line)
    return [fit(line, width) for line in lines]


def lane_scale(agents: Iterable[AgentRow], verify_ms: float, width: int) -> float:
    """Milliseconds a character of lanes, so that the longest fills the width."""
    longest_ms = max((sum(_lane(agent, verify_ms)) for agent in agents if agent.streams), default=0.0)
    return longest_ms / max(1, width)


def lane(agent: AgentRow, verify_ms: float, per_column: float, width: int) -> Line:
    """The way of an agent's last drafts."""
    return _trail(_lane(agent, verify_ms), per_column, width)


def _lane(agent: AgentRow, verify_ms: float) -> tuple[float, ...]:
    return agent.draft_ms, agent.network_ms, agent.wait_ms, 0.0, verify_ms


def _parts(row: RoundRow) -> tuple[float, ...]:
    held_ms = row.held_ms if _is_held_up(row) else 0.0
    if row.draft_ms or row.network_ms:
        held_ms = min(held_ms, row.wait_ms)
    return row.draft_ms, row.network_ms, max(0.0, row.wait_ms - held_ms), held_ms, row.verify_ms + row.other_ms


def _is_held_up(row: RoundRow) -> bool:
    whole_ms = row.draft_ms + row.network_ms + row.wait_ms + row.verify_ms + row.other_ms
    return bool(row.slowest) and row.held_ms >= _WORTH_NAMING * whole_ms


def _total_ms(row: RoundRow) -> float:
    return sum(_parts(row))


def _trail(parts: Sequence[float], per_column: float, width: int) -> Line:
    sizes = marks.trail(parts, per_column, width)
    line = [Segment(mark * size, style) for (_, mark, style), size in zip(LEGEND, sizes, strict=True) if size]
    rest = width - sum(sizes)
    if rest:
        line.append(Segment(" " * rest, FAINT))
    return line


def _blame(row: RoundRow, width: int) -> Line:
    if not _is_held_up(row):
        return [cell("", width)]
    delay = f" +{row.held_ms:.0f}" if row.held_ms < 1e5 else f" +{marks.rate(row.held_ms)}"
    if width >= _BLAME_WIDTH:
        delay += " ms"
    name = cell(row.slowest, width - 4 - len(delay), VERMILLION)
    text = f"{name.text.rstrip()}{delay}"
    return [Segment("  ▲ ", ALERT), cell(text, width - 4, VERMILLION)]
