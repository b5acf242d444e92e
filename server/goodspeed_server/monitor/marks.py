"""Numbers as short text, and as marks made of block characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

__all__ = ["area", "as_ascii", "bar", "clean", "count", "dots", "duration", "rate", "shares", "spark"]

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ASCII = str.maketrans("▁▂▃▄▅▆▇█░▒▓━╸─●·○▲■…│╭╮╰╯", "__--==##.%+==-*.o!#~|++++")
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
    """The newest `width` values as block characters, the newest at the right; `peak` is a full block.

    Remembered, because a history changes once a second and is drawn four times.
    """
    return area(values, width, 1, peak)[0]


def area(values: Sequence[float], width: int, height: int, peak: float) -> list[str]:
    """The same as a filled curve of `height` lines, the top line first; no value may be above `peak`."""
    recent = values[-width:] if width > 0 else ()
    top = 8 * height
    flat = not 0 < peak < math.inf
    levels = [1 if flat or not value > 0 else max(1, round(value / peak * top)) for value in recent]
    return [
        "".join([_EIGHTHS[min(8, max(0, level - below))] for level in levels]).rjust(width)
        for below in range(top - 8, -1, -8)
    ]


def shares(values: Sequence[float], width: int) -> list[int]:
    """Split `width` characters in proportion to `values`; what is left over goes to the largest remainders."""
    sizes = [max(0.0, value) if math.isfinite(value) else 0.0 for value in values]
    largest = max(sizes, default=0.0)
    if largest <= 0 or width <= 0:
        return [0] * len(sizes)
    # Scaled by the largest first: the sum of huge values would overflow.
    sizes = [size / largest for size in sizes]
    exact = [size / sum(sizes) * width for size in sizes]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] - exact[index])
    for index in by_remainder[: width - sum(parts)]:
        parts[index] += 1
    return parts


def _within(share: float) -> float:
    return min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
