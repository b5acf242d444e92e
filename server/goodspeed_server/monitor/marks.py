"""Numbers as short text, and as marks made of block characters."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

__all__ = [
    "SPAN",
    "area",
    "as_ascii",
    "bar",
    "clean",
    "count",
    "dots",
    "duration",
    "rate",
    "resampled",
    "spark",
    "trail",
]

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ASCII = str.maketrans("▁▂▃▄▅▆▇█■\u2571━╸─╌●·○▲▼…│╭╮╰╯↑↓", "__--==###/==--*.o^v~|++++^v")
SPAN = 60
"""How many values a history has at most, one a second."""
_UNITS = ("", "k", "M", "G", "T", "P", "E")


def clean(text: str) -> str:
    """The text without what could move a terminal's cursor: a peer chooses its own name."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def as_ascii(text: str) -> str:
    """The nearest text for a terminal that shows nothing but ASCII."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def rate(value: float) -> str:
    """Three significant digits in at most six characters: `4.27`, `45.3`, `231`, `12.3k`."""
    scaled = value
    for unit in _UNITS:
        size = abs(scaled)
        if size < 9.995:
            return f"{scaled:.2f}{unit}"
        if size < 99.95:
            return f"{scaled:.1f}{unit}"
        if size < 999.5:
            return f"{scaled:.0f}{unit}"
        scaled /= 1000
    return f"{value:.0e}" if math.isfinite(value) else "?"


def count(value: int) -> str:
    """A whole number as it is, a large one as `rate` writes it."""
    return str(value) if abs(value) < 1000 else rate(value)


def duration(seconds: float) -> str:
    """`0:04:05`, and `3d 0:04:05` beyond a day."""
    whole = int(max(0.0, seconds)) if math.isfinite(seconds) else 0
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02}:{second:02}"
    return f"{days}d {clock}" if days else clock


def bar(share: float, width: int) -> tuple[str, str]:
    """A thin bar in half-character steps: the filled part, and the rest up to `width`."""
    halves = round(_within(share) * 2 * width)
    filled = "━" * (halves // 2) + "╸" * (halves % 2)
    return filled, "─" * (width - len(filled))


def dots(value: float, scale: float, width: int) -> tuple[str, str]:
    """Filled dots for `value` out of `scale`, and faint ones up to `width`; something above 0 is at least one dot."""
    share = _within(value / scale) if scale > 0 else 0.0
    filled = round(share * width)
    if filled == 0 and share > 0 and width > 0:
        filled = 1
    return "●" * filled, "·" * (width - filled)


@lru_cache(maxsize=1024)
def spark(values: tuple[float, ...], width: int, peak: float) -> str:
    """A history as block characters, all of it in `width` of them; `peak` is a full block.

    Remembered, because a history changes once a second and is drawn more often.
    """
    return area(values, width, 1, peak)[0]


def area(values: Sequence[float], width: int, height: int, peak: float) -> list[str]:
    """The same as a filled curve of `height` lines, the top line first."""
    recent = resampled(values, width)
    top = 8 * height
    levels = [1] * len(recent)
    if 0 < peak < math.inf:
        begins = _begins(top)
        levels = [1 + bisect_left(begins, value / peak) for value in recent]
    lines = []
    for below in range(top - 8, -1, -8):
        ladder = " " * below + _EIGHTHS + "█" * (top - 8 - below)
        lines.append("".join([ladder[level] for level in levels]).rjust(width))
    return lines


@lru_cache
def _begins(top: int) -> list[float]:
    """Above which shares of the peak the levels from the second to the top one begin, each halfway from the one below.

    The first has no beginning: what is no number stays there.
    """
    return [(level - 0.5) / top for level in range(2, top + 1)]


def resampled(values: Sequence[float], width: int, span: int = SPAN) -> list[float]:
    """As many columns as the last `span` values take where all of them take `width`, the newest the last one.

    Where values share a column it shows their mean; where there are more columns than values, some are shown twice.
    """
    recent = values[-span:]
    shares = _shares(width, span, span - len(recent))
    return [sum(recent[begin:end]) / (end - begin) for begin, end in shares]


@lru_cache(maxsize=1024)
def _shares(width: int, span: int, missing: int) -> list[tuple[int, int]]:
    """Which values of a history share each of its columns; the oldest of the span may be missing."""
    columns = range(width)
    ends = [(column * span // width - missing, -(-(column + 1) * span // width) - missing) for column in columns]
    return [(max(0, begin), end) for begin, end in ends if end > 0]


def trail(durations: Sequence[float], per_column: float, width: int) -> list[int]:
    """How many characters each of consecutive durations takes, so that each begins and ends where its time does."""
    if not 0 < per_column < math.inf:
        return [0] * len(durations)
    begin, at, sizes = 0, 0.0, []
    for duration in durations:
        if 0 < duration < math.inf:
            at += duration
        end = round(min(width, at / per_column))
        sizes.append(end - begin)
        begin = end
    return sizes


def _within(share: float) -> float:
    return share if 0 <= share <= 1 else 1.0 if 1 < share < math.inf else 0.0
