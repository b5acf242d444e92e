"""TLS records that bring nothing are read as slowly as anything that nobody asked for, and all others as they come."""

from __future__ import annotations

import asyncio
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from goodspeed_server.records import Records

UPDATE = 22
"""Bytes of a record with a key update, behind its header."""


class Transport:
    """The raw one, or TLS's own upon it."""

    def __init__(self, version: str = "TLSv1.3") -> None:
        self._reads = self.closing = False
        self.protocol: asyncio.BaseProtocol = asyncio.Protocol()
        self._version = version

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str) -> Transport:
        assert name == "ssl_object"
        return self

    def version(self) -> str:
        return self._version

    def is_closing(self) -> bool:
        return self.closing

    def reads(self) -> bool:
        return self._reads

    def pause_reading(self) -> None:
        self._reads = False

    def resume_reading(self) -> None:
        self._reads = True


class Tls(asyncio.BufferedProtocol):
    """Hands on what records carry; those of a key update carry nothing."""

    def __init__(self) -> None:
        self.records: Records
        self.space = bytearray(2**18)
        self.came = b""
        self.lost: list[Exception | None] = []

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.space

    def buffer_updated(self, nbytes: int) -> None:
        self.came += self.space[:nbytes]
        while len(self.came) >= 5 and len(self.came) >= 5 + (length := int.from_bytes(self.came[3:5], "big")):
            self.came = self.came[5 + length :]
            if length != UPDATE:
                self.records.handed_on(length - 17)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Link:
    """Records of a connection, and how long reading rests behind those that bring nothing."""

    def __init__(self, wait_s: float = 0.0, version: str = "TLSv1.3") -> None:
        self.idle = 0
        self.wait_s = wait_s
        self.tls, self.raw, self.encrypted = Tls(), Transport(), Transport(version)
        self.raw.protocol = self.tls
        self.records = self.tls.records = Records(cast(asyncio.Transport, self.raw), self._idled)
        self.records.interpose()
        self.raw.resume_reading()

    def begin(self) -> None:
        self.records.begin(cast(asyncio.Transport, self.encrypted))

    def _idled(self, records: int) -> float:
        self.idle += records
        return self.wait_s

    def bring(self, data: bytes, most: int = 2**18) -> None:
        while data:
            space = self.records.get_buffer(-1)
            size = min(most, len(space), len(data))
            space[:size], data = data[:size], data[size:]
            self.records.buffer_updated(size)


def record(carried: int) -> bytes:
    return b"\x17\x03\x03" + (carried + 17).to_bytes(2, "big") + bytes(carried + 17)


SIZES = st.lists(st.one_of(st.just(5), st.sampled_from([1, 4, 6, 30, 2000, 16384])), max_size=30)


@given(SIZES, st.integers(1, 9000))
def test_what_brings_nothing_is_counted_however_it_is_cut(sizes: list[int], most: int) -> None:
    async def run() -> None:
        link = Link()
        link.bring(record(200) + record(5))
        link.begin()
        assert link.idle == 0, "a handshake brings nothing, and is not counted"
        link.bring(b"".join(map(record, sizes)), most)
        assert link.idle == sizes.count(5)

    asyncio.run(run())


async def test_before_tls_1_3_there_are_no_updates() -> None:
    link = Link(version="TLSv1.2")
    link.begin()
    link.bring(100 * record(5))
    assert link.idle == 0


async def test_little_is_read_at_once() -> None:
    link = Link()
    assert len(link.records.get_buffer(-1)) == 2**13


async def test_who_sends_what_brings_nothing_is_not_read() -> None:
    link = Link(wait_s=3600.0)
    link.begin()
    link.bring(record(20))
    assert link.raw.reads()
    link.bring(record(5))
    assert not link.raw.reads()
    link.records.pause_reading()
    link.records.resume_reading()
    assert not link.raw.reads()
    link.records.connection_lost(None)
    assert link.tls.lost == [None]


async def test_it_is_read_on_when_the_wait_is_over_unless_somebody_else_waits() -> None:
    link = Link(wait_s=1e-6)
    link.begin()
    link.bring(record(5))
    while not link.raw.reads():
        await asyncio.sleep(0)
    link.bring(record(5))
    link.records.pause_reading()
    while link.records._alarm is not None:
        await asyncio.sleep(0)
    assert not link.raw.reads()
    assert not link.encrypted.reads()
    link.records.resume_reading()
    assert link.raw.reads()
    assert link.encrypted.reads()


async def test_a_connection_that_ends_is_read_to_the_end_of_its_tls() -> None:
    link = Link()
    link.begin()
    link.records.pause_reading()
    link.encrypted.closing = True
    link.records.resume_reading()
    assert link.raw.reads()
    assert not link.encrypted.reads()
