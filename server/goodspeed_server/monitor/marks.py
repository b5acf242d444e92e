"""Numbers as short text, and as marks made of block characters."""

from __future__ import annotations

import math
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
    if not math.isfinite(value):
        return "?"
    size = abs(value)
    for unit in _UNITS:
        if size < 999.5:
            digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
            return f"{math.copysign(size, value):.{digits}f}{unit}"
        size /= 1000
    return f"{value:.0e}"


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
    flat = not 0 < peak < math.inf
    levels = [1 if flat or not value > 0 else max(1, round(min(1.0, value / peak) * top)) for value in recent]
    return [
        "".join([_EIGHTHS[min(8, max(0, level - below))] for level in levels]).rjust(width)
        for below in range(top - 8, -1, -8)
    ]


def resampled(values: Sequence[float], width: int, span: int = SPAN) -> list[float]:
    """As many columns as the last `span` values take where all of them take `width`, the newest the last one.

    Where values share a column it shows their mean; where there are more columns than values, some are shown twice.
    """
    recent = values[-span:]
    missing = span - len(recent)
    columns = []
    for column in range(width):
        begin, end = column * span // width - missing, -(-(column + 1) * span // width) - missing
        shared = recent[max(0, begin) : max(0, end)]
        if shared:
            columns.append(sum(shared) / len(shared))
    return columns


def trail(durations: Sequence[float], per_column: float, width: int) -> list[int]:
    """How many characters each of consecutive durations takes, so that each begins and ends where its time does."""
    ends, at, sizes = 0, 0.0, []
    for duration in durations:
        at += max(0.0, duration) if math.isfinite(duration) else 0.0
        end = min(width, round(at / per_column)) if 0 < per_column < math.inf and at < math.inf else 0
        sizes.append(max(0, end - ends))
        ends = max(ends, end)
    return sizes


def _within(share: float) -> float:
    return min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
