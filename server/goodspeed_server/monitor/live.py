"""Showing what a server is doing, again and again: a picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

from rich.console import Console
from rich.live import Live

from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor import marks
from goodspeed_server.monitor.view import Picture, draw

__all__ = ["Show", "can_draw", "plain_line", "print_raw", "run_monitor", "showing"]

Show: TypeAlias = Callable[[ServerSnapshot, str], Awaitable[None]]
"""Shows a snapshot, and a notice beside it (`view.draw`)."""

_FRAME_INTERVAL_S = 0.25
_LINE_INTERVAL_S = 2.0


async def run_monitor(snapshot: Callable[[], ServerSnapshot], *, console: Console | None = None) -> None:
    """Show a server in its own process until cancelled.

    On a terminal this takes the whole screen and gives it back at the end; elsewhere it prints a line when something
    has changed, at most every two seconds.

    Args:
        snapshot: gives the server's present state; called on the event loop.
        console: where to show it; standard output if None.
    """
    with showing(console or Console()) as show:
        while True:
            await show(snapshot(), "")
            await asyncio.sleep(_FRAME_INTERVAL_S)


@contextlib.contextmanager
def showing(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Show]:
    """Hold the screen, if the console is one, while the context is open.

    Args:
        console: where to show snapshots.
        clock: in seconds; spaces the lines where there is no screen.

    Yields:
        What shows one snapshot; to be called at about 4 Hz.
    """
    if not can_draw(console):
        yield _Lines(console, clock)
        return
    # Whoever calls sets the pace, and what the process logs stays where its log goes.
    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        yield _Screen(live)


def can_draw(console: Console) -> bool:
    """Whether the console is a terminal on which one picture can be drawn over another."""
    return console.is_terminal and not console.is_dumb_terminal


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


class _Screen:
    """Keeps a picture on the whole of a screen."""

    def __init__(self, live: Live) -> None:
        self._live = live

    async def __call__(self, snapshot: ServerSnapshot, notice: str) -> None:
        # In a thread, so that a terminal that takes nothing (Ctrl-S, a slow ssh) never stalls the server.
        painting = asyncio.ensure_future(asyncio.to_thread(self._paint, draw(snapshot, notice)))
        try:
            await asyncio.shield(painting)
        except asyncio.CancelledError:
            await painting  # The screen must not be given back while it is written on.
            raise

    def _paint(self, picture: Picture) -> None:
        self._live.update(picture, refresh=True)


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
