"""A terminal's screen, of which only the lines are written that have changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from goodspeed_server.monitor.canvas import Line

__all__ = ["Screen"]

_COLOURS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
    "windows": ColorSystem.WINDOWS,
}
_CLEAR = "\x1b[2J"


class Screen:
    """Draws on a console that is a terminal.

    Args:
        console: it knows the terminal's size and colours.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._colours = _COLOURS.get(console.color_system or "", ColorSystem.STANDARD)
        self._shown: Sequence[Line] = ()
        self._size = (0, 0)
        self._wrappings: dict[Style | None, tuple[str, str]] = {None: ("", "")}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Take the whole screen while the context is open, and give it back as it was, however that ends."""
        try:
            self._take()
            yield
        finally:
            self._give_back()

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """The other way round: not to have it while the context is open."""
        self._give_back()
        try:
            yield
        finally:
            self._take()

    @property
    def size(self) -> tuple[int, int]:
        """Its width and its height, in characters."""
        return self.console.size.width, self.console.size.height

    def paint(self, lines: Sequence[Line], size: tuple[int, int]) -> None:
        """Show lines that were made for this size; takes as long as the terminal does."""
        written = []
        if size != self._size:
            written.append(_CLEAR)
            self._shown = ()
        for number, line in enumerate(lines):
            if number >= len(self._shown) or line != self._shown[number]:
                written.append(f"\x1b[{number + 1};1H{self._encoded(line)}")
        self._shown, self._size = lines, size
        if written:
            self.console.file.write("".join(written))
            self.console.file.flush()

    def _take(self) -> None:
        self._size = (0, 0)
        self.console.set_alt_screen(True)
        self.console.show_cursor(False)

    def _give_back(self) -> None:
        self.console.show_cursor(True)
        self.console.set_alt_screen(False)

    def _encoded(self, line: Line) -> str:
        parts = []
        wrappings = self._wrappings
        for text, style, _ in line:
            if style not in wrappings:
                wrappings[style] = self._wrapping(style)
            before, after = wrappings[style]
            parts.append(f"{before}{text}{after}")
        return "".join(parts)

    def _wrapping(self, style: Style | None) -> tuple[str, str]:
        """What switches a style on, and off."""
        if style is None:
            return "", ""
        if self.console.no_color or self.console.color_system is None:
            style = style.without_color
        before, _, after = style.render("\0", color_system=self._colours).partition("\0")
        return before, after
