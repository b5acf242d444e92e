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
_PLAIN = "\x1b[0m"
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
"""A terminal that knows them shows what is between them all at once; others take no notice."""


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
        self._codes: dict[Style | None, str] = {}

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
            self.console.file.write("".join((_BEGIN, *written, _PLAIN, _END)))
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
        current: str | None = None
        for text, style, _ in line:
            if not text.isspace():  # Styles are colours of what is written: blanks have none.
                code = self._codes.get(style)
                if code is None:
                    code = self._codes[style] = self._code(style)
                if code != current:
                    parts.append(code)
                    current = code
            parts.append(text)
        return "".join(parts)

    def _code(self, style: Style | None) -> str:
        """What switches to a style, from whatever style there was."""
        if style is None:
            return _PLAIN
        if self.console.no_color or self.console.color_system is None:
            style = style.without_color
        code = style.render("\0", color_system=self._colours).partition("\0")[0]
        return f"\x1b[0;{code[2:]}" if code else _PLAIN
