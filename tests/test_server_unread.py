"""What a connection has brought and nobody has read yet."""

from __future__ import annotations

import asyncio
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from goodspeed_server.unread import Unread


class Transport:
    """Says whether it reads."""

    def __init__(self) -> None:
        self.reads = True
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class Reader:
    """Reads slices, with so many frames in each, and may have to wait behind each."""

    def __init__(self, frames: int = 1, wait_s: float = 0.0) -> None:
        self.transport = Transport()
        self.read = b""
        self.slices: list[int] = []
        self.frames = frames
        self.wait_s = wait_s
        self.unread = Unread(cast(asyncio.Transport, self.transport), self._take)

    def _take(self, piece: bytes) -> tuple[int, float]:
        self.read += piece
        self.slices.append(len(piece))
        return self.frames, self.wait_s


@given(st.lists(st.one_of(st.binary(max_size=2000), st.sampled_from(["fill", "drain"])), max_size=30))
def test_everything_is_read_once_and_in_order_however_often_there_is_no_room(deeds: list[bytes | str]) -> None:
    async def run() -> None:
        reader, brought, full = Reader(), b"", False
        for deed in [*deeds, "drain"]:
            before = reader.read
            if isinstance(deed, bytes):
                brought += deed
                reader.unread.bring(deed)
            elif deed == "fill":
                full = True
                reader.unread.fill()
            else:
                full = False
                reader.unread.drain()
                await asyncio.sleep(0)
                while reader.read != brought:
                    await asyncio.sleep(0)
            assert not full or reader.read == before
            assert brought.startswith(reader.read)
        assert reader.read == brought
        assert reader.transport.reads

    asyncio.run(run())


async def test_who_has_to_wait_is_not_read_and_brings_no_more() -> None:
    reader = Reader(wait_s=3600.0)
    reader.unread.bring(bytes(5000))
    assert reader.slices == [512]
    assert not reader.transport.reads
    reader.unread.drop()
    reader.unread.bring(b"more")
    assert reader.slices == [512]


async def test_it_is_read_on_when_the_wait_is_over() -> None:
    reader = Reader(wait_s=1e-6)
    reader.unread.bring(bytes(2000))
    while len(reader.read) < 2000:
        await asyncio.sleep(0)
    assert reader.slices == [512, 512, 512, 464]


async def test_a_long_frame_is_read_in_long_slices() -> None:
    reader = Reader(frames=0)
    reader.unread.bring(bytes(2**16))
    assert reader.slices == [512, 1024, 2048, 4096, 8192, 8192, 8192, 8192]
    # Others have their turn between.
    while len(reader.read) < 2**16:
        await asyncio.sleep(0)
    assert reader.transport.reads


async def test_that_nothing_more_comes_is_told_when_all_is_read() -> None:
    reader, told = Reader(wait_s=1e-6), asyncio.Event()
    reader.unread.bring(bytes(2000))
    reader.unread.end(told.set)
    assert not told.is_set()
    await told.wait()
    assert len(reader.read) == 2000


async def test_nothing_is_read_on_of_a_connection_that_ends() -> None:
    """Each answer to it would be a complaint in the log."""
    reader = Reader()
    reader.transport.closing = True
    reader.transport.reads = False
    reader.unread.bring(bytes(10_000))
    assert reader.read == b""
    assert reader.transport.reads, "or TLS would not come to its end"


async def test_what_waits_can_be_read_at_once() -> None:
    reader = Reader(wait_s=1e6)
    reader.unread.bring(bytes(600))
    assert len(reader.read) == 512
    reader.unread.read_on()
    assert len(reader.read) == 600
