"""Keys of a terminal, one by one as they are pressed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from prompt_toolkit.input import Input, create_input

__all__ = ["Keyboard"]

_ESCAPE_S = 0.05
"""A terminal sends what begins with Escape at once; after so long it was the key itself."""


class Keyboard:
    """Reads keys while its context is open.

    Args:
        terminal: where they come from; what is no terminal, or is in the hands of another job, is left alone.
    """

    def __init__(self, terminal: TextIO | None) -> None:
        self._input: Input | None = create_input(terminal) if terminal is not None and _ours(terminal) else None

    def __bool__(self) -> bool:
        return self._input is not None

    @contextmanager
    def reading(self, pressed: Callable[[str], None]) -> Iterator[None]:
        """Call `pressed` with every key, on the event loop, and put the terminal back in order at the end."""
        keyboard = self._input
        if keyboard is None:
            yield
            return
        loop = asyncio.get_running_loop()
        alarm: asyncio.TimerHandle | None = None

        def pass_on(flush: bool) -> None:
            nonlocal alarm
            if alarm is not None:
                alarm.cancel()
            alarm = None if flush else loop.call_later(_ESCAPE_S, pass_on, True)
            for press in keyboard.flush_keys() if flush else keyboard.read_keys():
                pressed(getattr(press.key, "value", press.key))

        with keyboard.raw_mode(), keyboard.attach(lambda: pass_on(False)):
            try:
                yield
            finally:
                if alarm is not None:
                    alarm.cancel()

    def as_before(self) -> AbstractContextManager[None]:
        """The terminal as the shell needs it, for as long as the shell has it."""
        assert self._input is not None
        return self._input.cooked_mode()


def _ours(terminal: TextIO) -> bool:
    """Whether it is a terminal, and this process may change it: one in the background would be stopped."""
    if not terminal.isatty():
        return False
    return not hasattr(os, "tcgetpgrp") or os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
