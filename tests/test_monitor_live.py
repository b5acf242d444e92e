"""Lines where there is no terminal, and the screen where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pty
import re
import signal
import termios
from collections.abc import Callable, Iterator
from typing import TextIO

import msgspec
import pytest
from rich.console import Console, ConsoleDimensions

from goodspeed.event_loop import loop_factory
from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor import live, run_monitor
from goodspeed_server.monitor.keyboard import Keyboard
from goodspeed_server.monitor.live import frame_interval_s, plain_line, showing
from tests.monitor_examples import SNAPSHOT, make_console, written


async def test_plain_lines_come_when_something_changes_and_not_too_often() -> None:
    now = 0.0
    console = make_console(40)
    async with showing(console, clock=lambda: now) as show:
        await show(SNAPSHOT, "")
        changed = msgspec.structs.replace(SNAPSHOT, committed=301)
        await show(changed, "")
        assert written(console).count("\n") == 1
        now = 2.0
        await show(changed, "")
        assert written(console).count("\n") == 2
        now = 4.0
        await show(msgspec.structs.replace(changed, uptime_s=4000.0), "")
        assert written(console).count("\n") == 2, "that time passes is no news"
        await show(changed, "connection lost")
        await show(changed, "connection lost")
    assert written(console).splitlines() == [plain_line(SNAPSHOT), plain_line(changed), "connection lost"]


def test_a_plain_line_says_what_matters_in_ascii() -> None:
    line = plain_line(msgspec.structs.replace(SNAPSHOT, draining=True))
    assert line == (
        "up 1:02:05 | 38.2 rounds/s | agents 1, streams 2, waiting 3 | 41.2 tok/s | "
        "acceptance length 3.00 | 1.64x plain decoding | rows 2/16 | 300 tokens | draining"
    )


async def example() -> ServerSnapshot:
    return SNAPSHOT


async def test_run_monitor_goes_on_until_it_is_cancelled() -> None:
    console = make_console()
    asked = asyncio.Event()

    async def snapshot() -> ServerSnapshot:
        asked.set()
        return SNAPSHOT

    monitor = asyncio.create_task(run_monitor(snapshot, console=console))
    await asked.wait()
    monitor.cancel()
    with pytest.raises(asyncio.CancelledError):
        await monitor
    assert written(console).splitlines() == [plain_line(SNAPSHOT)]


def make_screen(width: int = 80, height: int = 24) -> Console:
    return make_console(width, height=height, force_terminal=True, legacy_windows=False, _environ={"TERM": "xterm"})


async def test_pictures_that_are_dear_come_less_often() -> None:
    now = busy = 0.0

    def busy_clock() -> float:
        nonlocal busy
        busy += 0.005  # read four times a picture, of which the two between pairs count: 10 ms
        return busy

    console = make_screen()
    async with showing(console, clock=lambda: now, busy_clock=busy_clock) as show:

        async def pictures_until(end_s: float) -> int:
            nonlocal now
            before = written(console).count("\x1b[?2026h")
            while now < end_s:
                now += 0.25
                await show(msgspec.structs.replace(SNAPSHOT, committed=int(100 * now)), "")
            return written(console).count("\x1b[?2026h") - before

        assert await pictures_until(10.0) == 10, "10 ms each are 1.25% of a core at intervals of 0.8 s and more"
    assert frame_interval_s(0.001) < 0.5
    assert frame_interval_s(0.01) == pytest.approx(0.8)
    assert frame_interval_s(60.0) == 2.0


async def test_the_screen_shows_each_picture_at_the_size_of_the_terminal_and_is_given_back() -> None:
    console = make_screen()
    async with showing(console) as show:
        await show(SNAPSHOT, "")
        assert "edge-1" in written(console)
        assert "1:02:05" in written(console)
        first = len(written(console))
        console.size = ConsoleDimensions(60, 18)
        await show(msgspec.structs.replace(SNAPSHOT, uptime_s=3726.0), "lost")
        frame = written(console)[first:]
        assert "lost" in frame
        assert "edge-1" in frame
        assert re.findall(r"\x1b\[(\d+);1H", frame) == [str(line) for line in range(1, 19)]
    assert written(console).index("\x1b[?1049h") < written(console).index("\x1b[?1049l")
    assert written(console).rindex("\x1b[?25h") > written(console).rindex("\x1b[?25l"), "the cursor is back"


async def test_only_what_has_changed_is_written_again() -> None:
    console, now = make_screen(), 0.0
    async with showing(console, clock=lambda: now) as show:
        await show(SNAPSHOT, "")
        first = len(written(console))
        later = msgspec.structs.replace(SNAPSHOT, uptime_s=3726.0)
        await show(later, "")
        assert len(written(console)) == first, "too soon for another picture"
        now = 1.0
        await show(later, "")
        assert re.findall(r"\x1b\[(\d+);1H", written(console)[first:]) == ["1"]


async def test_without_colours_there_are_none() -> None:
    console = make_console(80, height=24, force_terminal=True, _environ={"TERM": "xterm", "NO_COLOR": "1"})
    async with showing(console) as show:
        await show(SNAPSHOT, "")
    codes = {code for codes in re.findall(r"\x1b\[([\d;]*)m", written(console)) for code in codes.split(";")}
    assert codes <= {"", "0", "1"}, "bold is no colour"
    assert "\N{BOX DRAWINGS LIGHT DIAGONAL UPPER RIGHT TO LOWER LEFT}" in written(console), "and marks still differ"


async def test_the_screen_is_given_back_when_drawing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    console = make_screen()
    monkeypatch.setattr(live, "view_lines", fail)
    with pytest.raises(ZeroDivisionError):
        async with showing(console) as show:
            await show(SNAPSHOT, "")
    assert written(console).endswith("\x1b[?25h\x1b[?1049l")


class Paper(io.StringIO):
    """Says when a sign is written on it."""

    def __init__(self) -> None:
        super().__init__()
        self._signs: list[tuple[str, asyncio.Event, asyncio.AbstractEventLoop]] = []

    def write(self, text: str) -> int:
        for sign, seen, loop in self._signs:
            if sign in text:
                loop.call_soon_threadsafe(seen.set)
        return super().write(text)

    async def shows(self, sign: str, act: Callable[[], object]) -> None:
        """Do something, and wait until the sign is written after it."""
        seen = asyncio.Event()
        self._signs.append((sign, seen, asyncio.get_running_loop()))
        act()
        await asyncio.wait_for(seen.wait(), 10)


@contextlib.contextmanager
def at_the_keys() -> Iterator[tuple[TextIO, Callable[[bytes], object]]]:
    """A terminal to read keys from, and fingers to press them."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as keyboard, os.fdopen(ours, "wb", buffering=0) as fingers:
        yield keyboard, fingers.write


async def test_keys_change_the_picture_and_the_terminal_is_put_in_order() -> None:
    paper, closed = Paper(), asyncio.Event()
    console = Console(file=paper, width=100, height=24, force_terminal=True, _environ={"TERM": "xterm"})
    with at_the_keys() as (keyboard, press):
        before = termios.tcgetattr(keyboard)
        async with showing(console, keyboard=keyboard, on_quit=closed.set) as show:
            await show(SNAPSHOT, "")
            await paper.shows("sort: name", lambda: press(b"s"))
            await paper.shows("the pass, with planning", lambda: press(b"?"))
            await paper.shows("edge-1", lambda: press(b"\x1b"))
            await paper.shows("nobody_", lambda: press(b"/nobody"))
            await paper.shows("filter: nobody", lambda: press(b"\r"))
            press(b"q")
            await asyncio.wait_for(closed.wait(), 10)
        assert termios.tcgetattr(keyboard) == before


async def test_what_is_paused_stands_still() -> None:
    now, paper = 0.0, Paper()
    console = Console(file=paper, width=100, height=24, force_terminal=True, _environ={"TERM": "xterm"})
    with at_the_keys() as (keyboard, press):
        async with showing(console, keyboard=keyboard, clock=lambda: now) as show:
            await show(SNAPSHOT, "")
            await paper.shows("paused", lambda: press(b"p"))
            now = 10.0
            await show(msgspec.structs.replace(SNAPSHOT, model="another"), "")
            assert "another" not in paper.getvalue()
            await paper.shows("pause", lambda: press(b"p"))
            now = 20.0
            await show(msgspec.structs.replace(SNAPSHOT, model="another"), "")
    assert "another" in paper.getvalue()


async def test_ctrl_c_is_the_signal_it_always_was() -> None:
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    with at_the_keys() as (keyboard, press):
        async with showing(make_screen(), keyboard=keyboard):
            press(b"\x03")
            await asyncio.wait_for(interrupted.wait(), 10)
    asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


async def test_who_quits_the_servers_own_picture_gets_lines() -> None:
    paper = Paper()
    console = Console(file=paper, width=100, height=24, force_terminal=True, _environ={"TERM": "xterm"})
    with at_the_keys() as (keyboard, press):
        monitor = asyncio.create_task(asyncio.sleep(0))

        def begin() -> None:
            nonlocal monitor
            monitor = asyncio.create_task(run_monitor(example, console=console, keyboard=keyboard))

        await paper.shows("edge-1", begin)
        await paper.shows(plain_line(SNAPSHOT), lambda: press(b"q"))
        monitor.cancel()
        with pytest.raises(asyncio.CancelledError):
            await monitor
    assert "the server goes on" in paper.getvalue()


def test_reading_keys_leaves_the_output_as_it_was() -> None:
    """A loop reads without blocking; an output that does not block either loses what the terminal has no room for."""
    with at_the_keys() as (keyboard, _):

        async def look() -> bool:
            with Keyboard(keyboard).reading(lambda _: None):
                return os.get_blocking(keyboard.fileno())

        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            assert runner.run(look())


def test_what_is_no_terminal_gives_no_keys() -> None:
    assert not Keyboard(None)
    assert not Keyboard(io.StringIO("q"))
