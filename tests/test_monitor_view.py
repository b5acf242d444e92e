"""The whole picture, at any size."""

from __future__ import annotations

import io

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor import draw
from tests.monitor_examples import SNAPSHOT, any_snapshot, any_text, drawn, make_console, unhurried


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
        *("goodput 41.2 tok/s", "peak 40.0", "1.64x plain decoding", "3.00 tokens", "3.72 sum log tok/s"),
        *("2/16", "512/8.19k", "3 waiting"),
    ):
        assert part in text, part
    assert "capacity by price" in "\n".join(drawn(msgspec.structs.replace(SNAPSHOT, capacity=None), 200))
    assert "draining" not in text


def test_a_draining_server_and_a_notice_are_seen() -> None:
    draining = msgspec.structs.replace(SNAPSHOT, draining=True)
    assert "draining" in drawn(draining, 80)[0]
    assert "connection lost" in drawn(SNAPSHOT, 80, notice="connection lost")[0]
