"""What a server keeps of its work, and how long its end waits for the disk."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from goodspeed_server import keeping
from goodspeed_server.keeping import end_keepers
from goodspeed_server.recording import Recorder
from goodspeed_server.shards import ShardFolder
from goodspeed_server.tracing import TraceFile, Tracer
from tests.serving import linked, serving, tiny_settings
from tests.test_server import PROMPT


class Slow:
    """Is through when another is as well."""

    def __init__(self, both: threading.Barrier) -> None:
        self._both = both
        self.within_s = -1.0

    def close(self, within_s: float) -> None:
        self.within_s = within_s
        self._both.wait(timeout=60)


@pytest.mark.parametrize(("until_s", "within_s"), [(107.0, 7.0), (101.0, 4.0), (90.0, 4.0)])
async def test_all_have_what_is_left_and_a_little_time_in_any_case(
    until_s: float, within_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "time", SimpleNamespace(monotonic=lambda: 100.0))
    both = threading.Barrier(2)
    slow = [Slow(both), Slow(both)]
    await end_keepers(slow, until_s)
    assert [one.within_s for one in slow] == [within_s] * 2


async def test_one_that_breaks_is_told_of_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def close(self, within_s: float) -> None:
            raise OSError("no disk")

    await end_keepers([Broken()], 0.0)
    (record,) = caplog.records
    assert record.getMessage() == "what the server keeps could not be written to its end"
    assert record.exc_info is not None


async def test_a_disk_that_hangs_does_not_hold_up_the_end_of_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    begin = TraceFile.append

    def hang(*_: object) -> bool:
        return released.wait(60)

    def append(self: TraceFile, lines: bytes) -> None:
        if lines.startswith(b'{"goodspeed_trace"'):
            begin(self, lines)
        else:
            hang()

    monkeypatch.setattr(ShardFolder, "write", hang)
    monkeypatch.setattr(TraceFile, "append", append)
    monkeypatch.setattr(keeping, "_LEAST_S", 0.05)
    settings = tiny_settings(record=tmp_path / "shards", trace=tmp_path / "run.jsonl", drain_s=0.0)
    try:
        with caplog.at_level(logging.ERROR, "goodspeed_server"):
            async with asyncio.timeout(60), serving(settings) as (server, address):
                async with linked(address) as peer:
                    await peer.generate(1, PROMPT)
                await server.drain()
        assert not released.is_set()
    finally:
        released.set()
    lost = [message.partition(": ")[2] for message in caplog.messages if "does not answer" in message]
    assert sorted(lost) == ["the end of the trace is lost", "what was not written there yet is lost"]


@pytest.mark.parametrize("drains", [False, True])
async def test_what_a_drain_does_not_need_is_the_disks(
    drains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within_s: list[float] = []

    def closing(close: Callable[[Any, float], None]) -> Callable[[Any, float], None]:
        def noted(self: Any, given_s: float) -> None:
            within_s.append(given_s)
            close(self, 60.0)

        return noted

    monkeypatch.setattr(Recorder, "close", closing(Recorder.close))
    monkeypatch.setattr(Tracer, "close", closing(Tracer.close))
    settings = tiny_settings(record=tmp_path / "shards", trace=tmp_path / "run.jsonl", drain_s=3600.0)
    async with serving(settings) as (server, _):
        if drains:
            await server.drain()
    assert len(within_s) == 2
    assert all(3000.0 < given_s <= 3600.0 for given_s in within_s)
