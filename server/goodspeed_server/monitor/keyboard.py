"""Keys of a terminal, one by one as they are pressed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from prompt_toolkit.input import Input

__all__ = ["Keyboard"]

_ESCAPE_S = 0.05
"""A terminal sends what begins with Escape at once; after so long it was the key itself."""


class Keyboard:
    """Reads keys while its context is open.

    Args:
        terminal: where they come from; what is no terminal, or is in the hands of another job, is left alone.
    """

    def __init__(self, terminal: TextIO | None) -> None:
        self._name = _name_of(terminal) if terminal is not None else None
        self._input: Input | None = None

    def __bool__(self) -> bool:
        return self._name is not None

    @contextmanager
    def reading(self, pressed: Callable[[str], None]) -> Iterator[None]:
        """Call `pressed` with every key, on the event loop, and put the terminal back in order at the end."""
        if self._name is None:
            yield
            return
        # Imported here: a sixth of what the start of any command would take, and only a monitor reads keys.
        from prompt_toolkit.input import create_input

        # Opened anew: an event loop reads without blocking, which it would take from whoever shares the descriptor, the
        # output first of all, and pictures would be cut off wherever the terminal is a little late.
        with open(self._name, encoding="utf-8", opener=_open) as terminal:
            self._input = create_input(terminal)
            with self._input.raw_mode(), _attached(self._input, pressed):
                yield

    def as_before(self) -> AbstractContextManager[None]:
        """The terminal as the shell needs it, for as long as the shell has it."""
        assert self._input is not None
        return self._input.cooked_mode()


def _open(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOCTTY)


@contextmanager
def _attached(keyboard: Input, pressed: Callable[[str], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    alarm: asyncio.TimerHandle | None = None

    def pass_on(flush: bool) -> None:
        nonlocal alarm
        if alarm is not None:
            alarm.cancel()
        alarm = None if flush else loop.call_later(_ESCAPE_S, pass_on, True)
        for press in keyboard.flush_keys() if flush else keyboard.read_keys():
            pressed(getattr(press.key, "value", press.key))

    with keyboard.attach(lambda: pass_on(False)):
        try:
            yield
        finally:
            if alarm is not None:
                alarm.cancel()


def _name_of(terminal: TextIO) -> str | None:
    """Of a terminal that this process may change; in the background it would be stopped for that."""
    if not terminal.isatty():
        return None
    try:
        name = os.ttyname(terminal.fileno())
    except (OSError, AttributeError):  # It has no name here, or the system has no such names.
        return None
    try:
        return name if os.tcgetpgrp(terminal.fileno()) == os.getpgrp() else None
    except OSError:  # It is no shell's terminal, so that nobody shares it.
        return name
