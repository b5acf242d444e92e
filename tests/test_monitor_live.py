"""Lines where there is no terminal, and the screen where there is one."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from rich.console import ConsoleDimensions
from rich.text import Text

from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor import run_monitor
from goodspeed_server.monitor.live import plain_line, showing
from tests.monitor_examples import SNAPSHOT, make_console, written


async def test_plain_lines_come_when_something_changes_and_not_too_often() -> None:
    now = 0.0
    console = make_console(40)
    with showing(console, lambda: now) as show:
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


async def test_run_monitor_goes_on_until_it_is_cancelled() -> None:
    console = make_console()
    asked = asyncio.Event()

    def snapshot() -> ServerSnapshot:
        asked.set()
        return SNAPSHOT

    monitor = asyncio.create_task(run_monitor(snapshot, console=console))
    await asked.wait()
    monitor.cancel()
    with pytest.raises(asyncio.CancelledError):
        await monitor
    assert written(console).splitlines() == [plain_line(SNAPSHOT)]


async def test_the_screen_shows_each_picture_at_the_size_of_the_terminal_and_is_given_back() -> None:
    console = make_console(80, height=24, force_terminal=True, legacy_windows=False, _environ={"TERM": "xterm"})
    with showing(console) as show:
        await show(SNAPSHOT, "")
        assert "edge-1" in written(console)
        assert "1:02:05" in written(console)
        first = len(written(console))
        console.size = ConsoleDimensions(60, 18)
        await show(msgspec.structs.replace(SNAPSHOT, uptime_s=3726.0), "lost")
        frame = written(console)[first:]
        assert "lost" in frame
        assert "edge-1" in frame
        lines = Text.from_ansi(frame).plain.splitlines()
        assert [len(line) for line in lines] == [60] * 18
    assert written(console).index("\x1b[?1049h") < written(console).index("\x1b[?1049l")
