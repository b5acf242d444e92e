"""The emulated links: bytes arrive whole and in order whatever a link does to them, and a reset is a reset."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed_bench.proxy import proxied
from goodspeed_bench.toxics import Bandwidth, Latency, Passage, Piece, ResetPeer, Slicer, Toxic, Toxics

TEXT = bytes(range(256)) * 300

harmless = st.one_of(
    st.builds(Latency, st.floats(0, 100), st.floats(0, 200)),
    st.builds(Bandwidth, st.floats(0.1, 1e4)),
    st.builds(Slicer, st.integers(1, 64), st.floats(0, 5)),
)
arrivals = st.lists(st.tuples(st.floats(0, 0.1), st.binary(min_size=1, max_size=200)), max_size=12)


def through(toxics: Sequence[Toxic], pieces: Sequence[Piece], seed: int = 0) -> list[Piece]:
    noise = random.Random(seed)
    passages: list[Passage] = [toxic.open(noise) for toxic in toxics]
    out = list(pieces)
    for passage in passages:
        out = [part for piece in out for part in passage.take(piece)]
    return out


def arriving(gaps: Sequence[tuple[float, bytes]]) -> list[Piece]:
    at, pieces = 0.0, []
    for gap, data in gaps:
        at += gap
        pieces.append(Piece(at, data))
    return [*pieces, Piece(at, b"")]


@given(st.lists(harmless, max_size=4), arrivals, st.integers(0, 9))
def test_a_stream_stays_whole_in_order_and_never_arrives_before_it_was_sent(
    toxics: list[Toxic], gaps: list[tuple[float, bytes]], seed: int
) -> None:
    sent = arriving(gaps)
    came = through(toxics, sent, seed)
    assert b"".join(piece.data for piece in came) == b"".join(piece.data for piece in sent)
    assert [piece.data for piece in came].count(b"") == 1
    assert came[-1].data == b""
    times = [piece.at for piece in came]
    assert times == sorted(times)
    assert all(time >= 0 for time in times)
    assert times[-1] >= sent[-1].at


@given(st.floats(0, 100), arrivals)
def test_latency_delays_every_piece_alike_and_throttles_nothing(
    latency_ms: float, gaps: list[tuple[float, bytes]]
) -> None:
    sent = arriving(gaps)
    came = through([Latency(latency_ms)], sent)
    assert [piece.at - before.at for piece, before in zip(came, sent, strict=True)] == pytest.approx(
        [latency_ms / 1e3] * len(sent)
    )


@given(st.floats(0.1, 1e3), arrivals)
def test_bandwidth_is_never_exceeded_between_any_two_moments(
    kbytes_per_s: float, gaps: list[tuple[float, bytes]]
) -> None:
    came = through([Bandwidth(kbytes_per_s)], arriving(gaps))
    for first in range(len(came)):
        size = 0
        for last in range(first + 1, len(came)):
            size += len(came[last].data)
            assert size <= (came[last].at - came[first].at) * kbytes_per_s * 1e3 + 1e-6


@given(st.integers(1, 300), st.binary(min_size=1, max_size=900))
def test_a_slicer_cuts_to_size_and_spaces_out(size: int, data: bytes) -> None:
    came = through([Slicer(size, delay_ms=2.0)], [Piece(1.0, data)])
    assert all(0 < len(piece.data) <= size for piece in came)
    assert [piece.at for piece in came] == pytest.approx([1.0 + 0.002 * n for n in range(len(came))])


class VirtualTime:
    """A clock that only moves when somebody sleeps, and then at once."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def echoing() -> AsyncIterator[int]:
    """A server that sends back what it gets, until the end."""
    echoes = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        echoes.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    listener = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1]
    await asyncio.gather(*filter(None, echoes))


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def echoed(toxics: Toxics, time: VirtualTime) -> bytes:
    async with (
        echoing() as server,
        proxied("127.0.0.1", server, toxics, clock=time.clock, sleep=time.sleep) as port,
        connected(port) as (reader, writer),
    ):

        async def send() -> None:
            for start in range(0, len(TEXT), 5000):
                writer.write(TEXT[start : start + 5000])
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        heard = await reader.read(-1)
        await sending
        return heard


@pytest.mark.parametrize(
    "toxics",
    [
        [],
        [("upstream", Latency(50.0, 30.0)), ("downstream", Latency(50.0, 30.0))],
        [("upstream", Slicer(700, 1.0)), ("downstream", Bandwidth(50.0))],
        [("upstream", Bandwidth(100.0)), ("upstream", Latency(5.0)), ("downstream", Slicer(999))],
    ],
)
async def test_real_bytes_come_back_whole_and_in_order(toxics: Toxics) -> None:
    assert await echoed(toxics, VirtualTime()) == TEXT


async def test_a_link_takes_its_time() -> None:
    time = VirtualTime()
    await echoed([("upstream", Bandwidth(10.0)), ("downstream", Latency(40.0))], time)
    assert time.now >= len(TEXT) / 10e3


@pytest.mark.parametrize("direction", ["upstream", "downstream"])
async def test_reset_peer_resets(direction: str) -> None:
    toxics: Toxics = [("upstream", ResetPeer(20.0))] if direction == "upstream" else [("downstream", ResetPeer())]
    time = VirtualTime()
    async with (
        echoing() as server,
        proxied("127.0.0.1", server, toxics, clock=time.clock, sleep=time.sleep) as port,
        connected(port) as (reader, writer),
    ):
        writer.write(b"hello")
        with pytest.raises(ConnectionResetError):
            await reader.read(-1)


async def test_a_server_that_is_not_there_resets_whoever_connects() -> None:
    async with echoing() as gone:
        pass
    async with proxied("127.0.0.1", gone, []) as port, connected(port) as (reader, _):
        with pytest.raises(ConnectionResetError):
            await reader.read(-1)


async def test_a_connection_that_is_open_ends_with_the_proxy() -> None:
    async with echoing() as server, contextlib.AsyncExitStack() as later:
        async with proxied("127.0.0.1", server, [("upstream", Latency(1e6))]) as port:
            reader, writer = await later.enter_async_context(connected(port))
            writer.write(b"never arrives")
        with pytest.raises(ConnectionResetError):
            await reader.read(-1)
