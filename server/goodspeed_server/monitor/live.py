"""Showing what a server is doing, again and again: a picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import TextIO, TypeAlias

from rich.console import Console

from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor import marks
from goodspeed_server.monitor.canvas import Line
from goodspeed_server.monitor.history import History
from goodspeed_server.monitor.keyboard import Keyboard
from goodspeed_server.monitor.screen import Screen
from goodspeed_server.monitor.state import ViewState, press
from goodspeed_server.monitor.view import View, extent, view_lines

__all__ = ["Show", "can_draw", "frame_interval_s", "plain_line", "print_raw", "run_monitor", "showing"]

Show: TypeAlias = Callable[[ServerSnapshot, str], Awaitable[None]]
"""Shows a snapshot, and a notice beside it (`view.draw`)."""

_FRAME_INTERVAL_S = 0.5
"""Between two pictures, if no key asks for one sooner: figures that change faster cannot be read."""
_SHORTEST_FRAME_S = 0.4
"""Snapshots come in steps of a quarter of a second, give or take a little."""
_LONGEST_FRAME_S = 2.0
_SHARE = 0.0125
"""Of a core, for pictures: on a large screen or a slow machine, where drawing is dear, they come less often."""
_LINE_INTERVAL_S = 2.0


async def run_monitor(
    snapshot: Callable[[], Awaitable[ServerSnapshot]],
    *,
    console: Console | None = None,
    keyboard: TextIO | None = None,
) -> None:
    """Show a server in its own process until cancelled.

    On a terminal this takes the whole screen and gives it back at the end; elsewhere it prints a line when something
    has changed, at most every two seconds. Who quits the picture gets lines: the server, which serves others too, goes
    on, and ends with Ctrl-C.

    Args:
        snapshot: gives the server's present state.
        console: where to show it; standard output if None.
        keyboard: where keys are pressed, if the console is a terminal.
    """
    console = console or Console()
    if can_draw(console):
        closed = asyncio.Event()
        async with showing(console, keyboard=keyboard, on_quit=closed.set) as show:
            while not closed.is_set():
                await show(await snapshot(), "")
                with contextlib.suppress(TimeoutError):  # that nobody has quit is the rule
                    await asyncio.wait_for(closed.wait(), _FRAME_INTERVAL_S)
        print_raw(console, "the monitor is closed, and the server goes on: Ctrl-C ends it")
    print_lines = _Lines(console, time.monotonic)
    while True:
        await print_lines(await snapshot(), "")
        await asyncio.sleep(_FRAME_INTERVAL_S)


@contextlib.asynccontextmanager
async def showing(
    console: Console,
    *,
    keyboard: TextIO | None = None,
    on_quit: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    busy_clock: Callable[[], float] = time.thread_time,
) -> AsyncIterator[Show]:
    """Hold the screen, if the console is one, while the context is open.

    Args:
        console: where to show snapshots.
        keyboard: where keys are pressed, if the console is a screen.
        on_quit: called when the onlooker has had enough.
        clock: in seconds; spaces pictures and lines.
        busy_clock: the processor time of the thread that reads it, in seconds; what a picture took of it decides when
            the next is due.

    Yields:
        What shows one snapshot; to be called as often as there is one.
    """
    if not can_draw(console):
        yield _Lines(console, clock)
        return
    picture = _LivePicture(Screen(console), Keyboard(keyboard), on_quit, clock, busy_clock)
    async with picture.held():
        yield picture


def can_draw(console: Console) -> bool:
    """Whether the console is a terminal on which one picture can be drawn over another."""
    return console.is_terminal and not console.is_dumb_terminal


def frame_interval_s(picture_s: float) -> float:
    """How long after a picture's beginning the next is due, if no key asks for one sooner.

    Args:
        picture_s: the processor time that it took, seconds.
    """
    return min(max(picture_s / _SHARE, _SHORTEST_FRAME_S), _LONGEST_FRAME_S)


def print_raw(console: Console, line: str) -> None:
    """Print one line as it is, however long."""
    console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)


def plain_line(snapshot: ServerSnapshot) -> str:
    """What matters most, for a log: plain ASCII, one line."""
    used_rows = snapshot.rows - snapshot.free_rows
    parts = [
        f"up {marks.duration(snapshot.uptime_s)}",
        f"{marks.rate(snapshot.rounds_per_s)} rounds/s",
        f"agents {len(snapshot.agents)}, streams {snapshot.streams}, waiting {snapshot.waiting}",
        f"{marks.rate(snapshot.goodput)} tok/s",
        f"acceptance length {marks.rate(snapshot.mean_acceptance_length)}",
        f"{marks.rate(snapshot.speedup)}x plain decoding",
        f"rows {used_rows}/{snapshot.rows}",
        f"{snapshot.committed} tokens",
    ]
    if snapshot.draining:
        parts.append("draining")
    return " | ".join(parts)


class _LivePicture:
    """Keeps a picture on the whole of a screen, and does what keys say."""

    def __init__(
        self,
        screen: Screen,
        keyboard: Keyboard,
        on_quit: Callable[[], None],
        clock: Callable[[], float],
        busy_clock: Callable[[], float],
    ) -> None:
        self._screen = screen
        self._keyboard = keyboard
        self._on_quit = on_quit
        self._clock = clock
        self._busy_clock = busy_clock
        self._state = ViewState()
        self._history = History()
        self._snapshot: ServerSnapshot | None = None
        self._notice = ""
        self._next_at = clock()
        self._painting = asyncio.Lock()
        self._after_keys: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Have screen and keyboard while the context is open."""
        with self._screen.held(), self._keyboard.reading(self._pressed):
            try:
                yield
            finally:
                for task in self._after_keys:
                    task.cancel()
                await asyncio.gather(*self._after_keys, return_exceptions=True)

    async def __call__(self, snapshot: ServerSnapshot, notice: str) -> None:
        """Show a snapshot, at once or with the next picture."""
        for task in [task for task in self._after_keys if task.done()]:
            self._after_keys.discard(task)
            task.result()
        self._history.add(snapshot)
        if self._snapshot is None or not self._state.paused:
            self._snapshot = snapshot
        if notice != self._notice or self._clock() >= self._next_at:
            self._notice = notice
            await self._paint()

    def _pressed(self, key: str) -> None:
        if key == "c-c":
            signal.raise_signal(signal.SIGINT)
            return
        if key == "c-z":
            self._soon(self._stand_aside())
            return
        view = self._view()
        if view is None:
            return
        self._state = press(self._state, key, extent(view, *self._screen.size))
        if self._state.done:
            self._on_quit()
        else:
            self._soon(self._paint())

    def _soon(self, work: Coroutine[None, None, None]) -> None:
        self._after_keys.add(asyncio.create_task(work))

    def _view(self) -> View | None:
        if self._snapshot is None:
            return None
        return View.of(self._snapshot, self._history, self._state if self._keyboard else None, self._notice)

    async def _paint(self) -> None:
        async with self._painting:
            view, size = self._view(), self._screen.size
            if view is None:
                return
            began_s, busy_s = self._clock(), self._busy_clock()
            # Until it is done nobody knows what it takes.
            self._next_at = began_s + _SHORTEST_FRAME_S
            lines = view_lines(view, *size, ascii_only=self._screen.console.options.ascii_only)
            drawing_s = self._busy_clock() - busy_s
            # In a thread, so that a terminal that takes nothing (a slow ssh) never stalls the server.
            painting = asyncio.ensure_future(asyncio.to_thread(self._painted, lines, size))
            try:
                painting_s = await asyncio.shield(painting)
            except asyncio.CancelledError:
                await painting  # The screen must not be given back while it is written on.
                raise
            self._next_at = began_s + frame_interval_s(drawing_s + painting_s)

    def _painted(self, lines: Sequence[Line], size: tuple[int, int]) -> float:
        """The processor time that writing them took, seconds."""
        began_s = self._busy_clock()
        self._screen.paint(lines, size)
        return self._busy_clock() - began_s

    async def _stand_aside(self) -> None:
        """Give screen and keyboard back to the shell, stop, and take them again when it says so."""
        async with self._painting:
            with self._screen.given_back(), self._keyboard.as_before():
                os.kill(0, signal.SIGTSTP)
        await self._paint()


class _Lines:
    """Prints a line when something has changed, and not too often."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._next_at = clock()
        self._shown: tuple[object, ...] | None = None
        self._notice = ""

    async def __call__(self, snapshot: ServerSnapshot, notice: str) -> None:
        if notice != self._notice:
            self._notice = notice
            if notice:
                print_raw(self._console, notice)
        now = self._clock()
        counts = _what_counts(snapshot)
        if now >= self._next_at and counts != self._shown:
            self._next_at = now + _LINE_INTERVAL_S
            self._shown = counts
            print_raw(self._console, plain_line(snapshot))


def _what_counts(snapshot: ServerSnapshot) -> tuple[object, ...]:
    """What makes another line worth printing: time that passes does not."""
    return snapshot.committed, snapshot.streams, snapshot.waiting, len(snapshot.agents), snapshot.draining
