"""The monitor: its picture at any size, its plain lines, and `top` against a small server that speaks our messages."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner
from websockets.asyncio.server import ServerConnection, serve

from bench import picture
from goodspeed.errors import InvalidRequest, LinkLost, MalformedMessage, Refused, VersionMismatch
from goodspeed.messages import (
    PROTOCOL_VERSION,
    Failure,
    Goodbye,
    Hello,
    Opened,
    ServerMessage,
    Snapshot,
    Welcome,
    decode_agent,
    encode,
)
from goodspeed.snapshot import AgentRow, PhaseTimes, ServerSnapshot
from goodspeed_server.monitor import draw, marks, run_monitor, top
from goodspeed_server.monitor.live import plain_line, showing
from goodspeed_server.monitor.top import quit_on_key, snapshots

AGENT = AgentRow(
    name="edge-1",
    drafter="suffix",
    streams=2,
    prefilling=1,
    budget=3.5,
    alpha=0.75,
    goodput=41.25,
    history=(10.0, 20.0, 40.0),
    drafted=1234,
    accepted=900,
    committed=1500,
)
SNAPSHOT = ServerSnapshot(
    model="tiny-target",
    scheduler="goodspeed",
    rule="coupled",
    layout="packed",
    capacity=32,
    uptime_s=3725.0,
    rounds=100,
    rounds_per_s=38.2,
    phases=PhaseTimes(gather_ms=4.0, plan_ms=1.0, verify_ms=20.0, commit_ms=1.5),
    agents=(AGENT,),
    streams=2,
    waiting=3,
    rows=16,
    free_rows=14,
    kv_used_tokens=512,
    kv_tokens=8192,
    utility=3.72,
    goodput=41.25,
    goodput_history=(10.0, 20.0, 40.0),
    committed=300,
    drafted=400,
    accepted=200,
    busy_s=10.0,
    judge_s=1.0,
    plain_busy_s=18.0,
)

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

any_float = st.floats(allow_nan=True, allow_infinity=True)
any_int = st.integers(-(2**63), 2**64)
any_text = st.text(max_size=40)
any_agent = st.builds(
    AgentRow,
    name=any_text,
    drafter=any_text,
    streams=any_int,
    prefilling=any_int,
    budget=any_float,
    alpha=any_float,
    goodput=any_float,
    history=st.lists(any_float, max_size=70).map(tuple),
    drafted=any_int,
    accepted=any_int,
    committed=any_int,
    state=st.sampled_from(["ok", "slow", "\x1b[2J"]) | any_text,
)
any_snapshot = st.builds(
    ServerSnapshot,
    model=any_text,
    scheduler=any_text,
    rule=any_text,
    layout=any_text,
    capacity=any_int,
    uptime_s=any_float,
    rounds=any_int,
    rounds_per_s=any_float,
    phases=st.builds(PhaseTimes, gather_ms=any_float, plan_ms=any_float, verify_ms=any_float, commit_ms=any_float),
    agents=st.lists(any_agent, max_size=5).map(tuple),
    streams=any_int,
    waiting=any_int,
    rows=any_int,
    free_rows=any_int,
    kv_used_tokens=any_int,
    kv_tokens=any_int,
    utility=any_float,
    goodput=any_float,
    goodput_history=st.lists(any_float, max_size=70).map(tuple),
    committed=any_int,
    drafted=any_int,
    accepted=any_int,
    busy_s=any_float,
    judge_s=any_float,
    plain_busy_s=any_float,
    draining=st.booleans(),
)


def make_console(width: int = 120, **options: Any) -> Console:
    return Console(file=io.StringIO(), width=width, **options)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def drawn(snapshot: ServerSnapshot, width: int, height: int | None = None, notice: str = "") -> list[str]:
    console = make_console(width)
    console.print(draw(snapshot, notice), height=height)
    return written(console).splitlines()


def with_agents(count: int) -> ServerSnapshot:
    agents = tuple(
        msgspec.structs.replace(AGENT, name=f"edge-{index}", streams=index % 2, goodput=2.0) for index in range(count)
    )
    return msgspec.structs.replace(SNAPSHOT, agents=agents)


# The picture.


@unhurried
@given(any_snapshot, st.integers(1, 260), st.none() | st.integers(1, 60), any_text, st.booleans())
def test_any_snapshot_is_drawn_at_any_size(
    snapshot: ServerSnapshot, width: int, height: int | None, notice: str, colour: bool
) -> None:
    console = make_console(width, color_system="truecolor" if colour else None)
    lines = draw(snapshot, notice).lines(console, width, height)
    assert {sum(segment.cell_length for segment in line) for line in lines} == {width}
    text = "".join(segment.text for line in lines for segment in line)
    assert text.isprintable(), "a peer's name must not move the cursor"
    if height is not None:
        assert len(lines) == height


@unhurried
@given(any_snapshot)
def test_a_terminal_without_unicode_gets_ascii(snapshot: ServerSnapshot) -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii")
    Console(file=stream, width=100).print(draw(snapshot))
    stream.flush()
    assert {len(line) for line in buffer.getvalue().decode("ascii").splitlines()} == {100}


def test_the_picture_says_what_the_snapshot_says() -> None:
    text = "\n".join(drawn(SNAPSHOT, 200))
    for part in (
        *("tiny-target", "scheduler goodspeed", "rule coupled", "layout packed", "capacity 32", "up 1:02:05"),
        *("38.2 rounds/s", "26.5 ms each", "gather 4.00", "plan 1.00", "verify 20.0", "commit 1.50"),
        *("edge-1", "suffix", "3.5", "0.75", "41.2", "1.23k", "900"),
        *("goodput 41.2 tok/s", "peak 40.0", "1.80x plain decoding", "3.00 tokens", "3.72 sum log tok/s"),
        *("2/16", "512/8.19k", "3 waiting"),
    ):
        assert part in text, part
    assert "draining" not in text


def test_a_draining_server_and_a_notice_are_seen() -> None:
    draining = msgspec.structs.replace(SNAPSHOT, draining=True)
    assert "draining" in drawn(draining, 80)[0]
    assert "connection lost" in drawn(SNAPSHOT, 80, notice="connection lost")[0]


def test_a_server_without_agents_says_how_to_start_one() -> None:
    assert any("goodspeed-agent" in line for line in drawn(msgspec.structs.replace(SNAPSHOT, agents=()), 80))


@pytest.mark.parametrize(
    ("width", "seen", "unseen"),
    [
        (40, {"agent", "tok/s", "acceptance"}, {"budget", "drafter", "history"}),
        (80, {"agent", "drafter", "streams", "budget", "acceptance", "tok/s", "history"}, {"drafted", "prefill"}),
        (120, {"agent", "history", "drafted", "accepted"}, {"prefill"}),
        (200, {"agent", "history", "drafted", "accepted", "prefill"}, set()),
    ],
)
def test_columns_are_dropped_in_the_order_of_importance(width: int, seen: set[str], unseen: set[str]) -> None:
    heading = next(line for line in drawn(SNAPSHOT, width) if "tok/s" in line and "agent" in line)
    titles = set(heading.split())
    assert seen <= titles
    assert not unseen & titles


def test_agents_beyond_the_height_are_counted_and_idle_ones_go_first() -> None:
    lines = drawn(with_agents(40), 100, height=30)
    assert len(lines) == 30
    rows = [line for line in lines if "edge-" in line]
    assert all(int(line.split("edge-")[1].split()[0]) % 2 == 1 for line in rows), "only those with streams"
    assert any(f"+ {40 - len(rows)} more, {2 * (40 - len(rows))}.0 tok/s together" in line for line in lines)


def test_agents_that_fit_are_all_shown() -> None:
    for height in (None, 60):
        lines = drawn(with_agents(40), 100, height=height)
        assert sum("edge-" in line for line in lines) == 40
        assert not any("more" in line for line in lines)


# Marks.


def test_a_spark_ends_with_the_newest_value() -> None:
    assert marks.spark((0.0, 1.0, 4.0, 8.0), 6, 8.0) == "  ▁▁▄█"
    assert marks.spark((0.0, 1.0, 4.0, 8.0), 2, 8.0) == "▄█"
    assert marks.spark((), 3, 0.0) == "   "
    assert marks.spark((0.0, 0.0), 2, 0.0) == "▁▁"


@unhurried
@given(st.lists(st.floats(0, 1e6), max_size=40), st.integers(0, 50), st.integers(1, 6))
def test_an_area_stacks_up_to_its_levels(values: list[float], width: int, height: int) -> None:
    peak = max(values, default=0.0)
    lines = marks.area(values, width, height, peak)
    assert [len(line) for line in lines] == [width] * height
    shown = values[-width:] if width else []
    for column, value in enumerate(reversed(shown), start=1):
        level = sum(" ▁▂▃▄▅▆▇█".index(line[-column]) for line in lines)
        exact = value / peak * 8 * height if peak > 0 else 0.0
        assert level == pytest.approx(max(1.0, exact), abs=0.5 + 1e-6)


@unhurried
@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=6), st.integers(0, 200))
def test_shares_fill_the_width_in_proportion(values: list[float], width: int) -> None:
    parts = marks.shares(values, width)
    total = sum(values)
    if total == 0:
        assert parts == [0] * len(values)
        return
    assert sum(parts) == width
    for part, value in zip(parts, values, strict=True):
        assert part == pytest.approx(width * value / total, abs=1 + 1e-6)


@unhurried
@given(st.floats(-1, 2), st.integers(0, 40))
def test_bars_and_dots_are_as_wide_as_asked(share: float, width: int) -> None:
    for filled, rest in (marks.bar(share, width), marks.dots(share, 1.0, width)):
        assert len(filled) + len(rest) == width
    assert not set(marks.bar(share, width)[0]) & set(marks.bar(share, width)[1]), "told apart without colour"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (4.267, "4.27"),
        (9.996, "10.0"),
        (45.26, "45.3"),
        (231.4, "231"),
        (999.6, "1.00k"),
        (12345.0, "12.3k"),
        (-2.5, "-2.50"),
        (float("nan"), "?"),
        (float("inf"), "?"),
    ],
)
def test_rates_have_three_digits(value: float, text: str) -> None:
    assert marks.rate(value) == text


@unhurried
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_rates_stay_short(value: float) -> None:
    assert len(marks.rate(value)) <= 7


def test_durations() -> None:
    assert marks.duration(245.9) == "0:04:05"
    assert marks.duration(3 * 86400 + 3600) == "3d 1:00:00"


# Lines where there is no terminal.


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
        "acceptance length 3.00 | 1.80x plain decoding | rows 2/16 | 300 tokens | draining"
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


# The screen.


async def test_the_screen_gets_only_what_has_changed_and_is_given_back() -> None:
    console = make_console(80, height=24, force_terminal=True, legacy_windows=False, _environ={"TERM": "xterm"})
    with showing(console) as show:
        await show(SNAPSHOT, "")
        first = len(written(console))
        assert "edge-1" in written(console)
        await show(SNAPSHOT, "")
        assert len(written(console)) == first
        await show(msgspec.structs.replace(SNAPSHOT, uptime_s=3726.0), "")
        second = written(console)[first:]
    assert "1:02:06" in second
    assert "edge-1" not in second
    assert written(console).index("\x1b[?1049h") < written(console).index("\x1b[?1049l")


async def test_q_ends_it() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as keyboard, os.fdopen(ours, "wb", buffering=0) as fingers:
        stop = asyncio.Event()
        with quit_on_key(stop, keyboard):
            fingers.write(b"xq")
            await asyncio.wait_for(stop.wait(), 10)


async def test_what_is_no_keyboard_is_left_alone() -> None:
    stop = asyncio.Event()
    with quit_on_key(stop, io.StringIO("q")), quit_on_key(stop, None):
        assert not stop.is_set()


# From afar.

WELCOME = Welcome(
    protocol=PROTOCOL_VERSION,
    server="test",
    model="tiny-target",
    fingerprint="f",
    tokenizer="t",
    weights="w",
    rule="coupled",
    vocab_size=97,
    max_length=96,
    max_draft=8,
    eos_tokens=[],
)

Handler = Callable[[ServerConnection], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}"


def saying(*messages: ServerMessage | str | bytes) -> Handler:
    async def handler(connection: ServerConnection) -> None:
        frame = await connection.recv()
        assert isinstance(frame, bytes)
        hello = decode_agent(frame)
        assert isinstance(hello, Hello)
        assert hello.role == "monitor"
        for message in messages:
            await connection.send(message if isinstance(message, str | bytes) else encode(message))
        await connection.wait_closed()

    return handler


SHOWN = Snapshot(SNAPSHOT.to_json())


async def test_top_once_as_json_is_the_snapshot() -> None:
    console = make_console(40)
    async with serving(saying(WELCOME, SHOWN)) as url:
        await top(url, once=True, as_json=True, console=console)
    assert written(console).count("\n") == 1
    assert ServerSnapshot.from_json(written(console).encode()) == SNAPSHOT
    assert json.loads(written(console))["agents"][0]["name"] == "edge-1"


async def test_top_once_is_a_picture() -> None:
    console = make_console(100)
    async with serving(saying(WELCOME, SHOWN)) as url:
        await top(url, once=True, as_json=False, console=console)
    assert written(console).splitlines() == drawn(SNAPSHOT, 100)


async def test_top_comes_back_when_the_server_does() -> None:
    connections = 0
    second = msgspec.structs.replace(SNAPSHOT, model="after the restart")

    async def handler(connection: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        await connection.recv()
        match connections:
            case 1:
                await connection.send(encode(SHOWN))
                await connection.send(encode(Goodbye("restarting")))
            case 2:
                await connection.send(encode(Snapshot(second.to_json())))
                await connection.wait_closed()

    seen = asyncio.Event()

    class Paper(io.StringIO):
        def write(self, text: str) -> int:
            if "after the restart" in text:
                seen.set()
            return super().write(text)

    console = Console(file=Paper(), width=120)
    async with serving(handler) as url:
        watching = asyncio.create_task(top(url, once=False, as_json=True, console=console))
        await asyncio.wait_for(seen.wait(), 20)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
    assert [json.loads(line)["model"] for line in written(console).splitlines()] == ["tiny-target", "after the restart"]


async def test_top_gives_up_when_the_server_stays_away() -> None:
    console = make_console()
    async with serving(saying(WELCOME, SHOWN, Goodbye("shutting down"))) as url:
        with pytest.raises(LinkLost, match="shutting down"):
            await top(url, once=False, as_json=False, console=console, patience_s=0.0)
    assert written(console).splitlines() == [plain_line(SNAPSHOT)]


async def test_top_says_that_there_is_no_server() -> None:
    async with serving(saying()) as url:
        pass
    with pytest.raises(LinkLost, match="Is goodspeed-server running there"):
        await top(url, once=False, as_json=False, console=make_console())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://127.0.0.1:8000", "ws://", "ws://host:port"])
async def test_top_says_what_an_address_looks_like(url: str) -> None:
    with pytest.raises(InvalidRequest, match="ws://HOST:PORT"):
        await top(url, once=True, as_json=False, console=make_console())


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (Failure("overloaded", "no more monitors"), Refused, "no more monitors"),
        (msgspec.structs.replace(WELCOME, protocol=PROTOCOL_VERSION + 1), VersionMismatch, "has to be upgraded"),
        (Snapshot(b"{}"), MalformedMessage, "not a snapshot"),
        (Opened(1, 1, 1), MalformedMessage, "sends a monitor a Opened"),
        ("hello", MalformedMessage, "no GoodSpeed server"),
        (b"\xc1", MalformedMessage, "not a message"),
    ],
)
async def test_top_reports_what_a_server_should_not_say(
    said: ServerMessage | str | bytes, error: type[Exception], words: str
) -> None:
    async with serving(saying(said)) as url:
        with pytest.raises(error, match=words):
            await top(url, once=False, as_json=False, console=make_console())


async def test_leaving_the_snapshots_closes_the_connection() -> None:
    closed = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        await saying(SHOWN)(connection)
        closed.set()

    async with serving(handler) as url:
        async with contextlib.aclosing(snapshots(url)) as arriving:
            assert await anext(arriving) == SNAPSHOT
        await asyncio.wait_for(closed.wait(), 10)


# The picture for the README.


def make_picture(*arguments: str) -> tuple[int, str]:
    app = Typer()
    app.command()(picture.main)
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_a_recorded_snapshot_becomes_an_svg(tmp_path: Path) -> None:
    recorded, out = tmp_path / "snapshot.json", tmp_path / "docs" / "monitor.svg"
    recorded.write_bytes(SNAPSHOT.to_json())
    assert make_picture("--snapshot", str(recorded), "--out", str(out)) == (0, "")
    svg = out.read_text(encoding="utf-8")
    assert svg.startswith("<svg")
    assert "edge-1" in svg
    assert "█" not in svg


@pytest.mark.parametrize("content", [None, b"{}"])
def test_a_picture_of_nothing_is_refused(tmp_path: Path, content: bytes | None) -> None:
    recorded = tmp_path / "snapshot.json"
    if content is not None:
        recorded.write_bytes(content)
    code, said = make_picture("--snapshot", str(recorded), "--out", str(tmp_path / "out.svg"))
    assert code == 1
    assert "no picture" in said


def test_widths_are_measured_in_columns_not_characters() -> None:
    wide = msgspec.structs.replace(SNAPSHOT, agents=(msgspec.structs.replace(AGENT, name="日本語" * 9),))
    assert {cell_len(line) for line in drawn(wide, 80)} == {80}
