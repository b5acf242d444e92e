"""Where a text stands in the server's queue, told to who waits for it."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType

__all__ = ["WaitingLine"]


class WaitingLine:
    """Says the place: on a terminal in one line, gone when the text begins; elsewhere in few lines that stay.

    Args:
        console: the terminal, if it is one.
        say: takes a line elsewhere.
    """

    def __init__(self, console: Console, say: Callable[[str], None]) -> None:
        self._console = console
        self._say = say
        self._said: int | None = None

    def __enter__(self) -> Self:
        """Begin to wait."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over()

    def at(self, place: int) -> None:
        """The text has a place: 1 is next."""
        line = f"waiting for a row on the server: place {place} in its queue"
        if self._console.is_terminal:
            self._erase()
            self._console.print(line, style="dim", end="", markup=False, highlight=False, soft_wrap=True)
            self._said = place
        # A line for each step of a long queue would be many; half the way there is worth one.
        elif self._said is None or 2 * place <= self._said:
            self._say(line)
            self._said = place

    def over(self) -> None:
        """It waits no more."""
        if self._console.is_terminal:
            self._erase()
        self._said = None

    def _erase(self) -> None:
        if self._said is not None:
            self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
