"""The garbage collector of a server looks at neither its model nor its links, unless memory grows."""

from __future__ import annotations

import asyncio
import gc
import weakref
from itertools import count

import pytest

from goodspeed_server.collector import sparing_collector


class _Ring:
    """Garbage that goes by no other way."""

    def __init__(self) -> None:
        self.itself = self


async def test_what_is_there_before_a_server_begins_is_not_looked_at() -> None:
    before, thresholds, there = gc.get_freeze_count(), gc.get_threshold(), [[number] for number in range(1000)]
    async with sparing_collector():
        assert gc.get_freeze_count() > before + len(there)
        assert not any(known is there for known in gc.get_objects())
        assert gc.get_threshold()[0] == 50_000, "what a round has under way is no garbage"
        assert gc.get_threshold()[2] > 10**6
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, thresholds)


@pytest.mark.parametrize(("every_s", "grows"), [(0.0, False), (1e9, True)])
async def test_garbage_that_is_old_goes_now_and_then_and_where_memory_grows(every_s: float, grows: bool) -> None:
    gigabyte = (10**9, 10**9)
    sizes = (10**9 * number for number in count()) if grows else iter(lambda: 0, None)
    async with (
        asyncio.timeout(60),
        sparing_collector(every_s=every_s, grown_bytes=gigabyte, look_every_s=0.0, resident_bytes=lambda: next(sizes)),
    ):
        ring = _Ring()
        gone = weakref.ref(ring)
        del ring
        while gone() is not None:
            await asyncio.sleep(0)


@pytest.mark.parametrize(("before", "come", "more"), [(2**36, 0, 2**26), (0, 2**28, 2**27), (0, 2**36, 2**28)])
async def test_who_holds_much_is_not_stopped_for_a_little_more(before: int, come: int, more: int) -> None:
    """A model that was there before counts for nothing, and of garbage there is never very much."""
    resident = before
    looks = 0

    def look() -> int:
        nonlocal looks
        looks += 1
        return resident

    async def looked(times: int) -> None:
        seen = looks
        while looks < seen + times:
            await asyncio.sleep(0)

    async with asyncio.timeout(60), sparing_collector(look_every_s=0.0, resident_bytes=look):
        await looked(3)
        resident = before + come
        await looked(3)
        ring = _Ring()
        gone = weakref.ref(ring)
        del ring
        resident = before + come + more - 1
        await looked(3)
        assert gone() is not None
        resident = before + come + more
        while gone() is not None:
            await asyncio.sleep(0)


class Unreadable:
    """Memory that can be read so often, and then not; another error than the system's cannot be foreseen."""

    def __init__(self, *, after: int = 0, error: Exception | None = None) -> None:
        self.looks = 0
        self._after = after
        self._error = error or OSError(24, "Too many open files")

    def __call__(self) -> int:
        self.looks += 1
        if self.looks > self._after:
            raise self._error
        return 0


async def test_garbage_goes_where_nobody_can_say_how_much_memory_there_is() -> None:
    memory = Unreadable(after=1)
    async with asyncio.timeout(60), sparing_collector(blind_every_s=0.0, look_every_s=0.0, resident_bytes=memory):
        for _ in range(2):  # it goes on after the first
            ring = _Ring()
            gone = weakref.ref(ring)
            del ring
            while gone() is not None:
                await asyncio.sleep(0)


async def test_where_memory_cannot_be_read_nobody_is_stopped_nor_told_at_every_look(
    caplog: pytest.LogCaptureFixture,
) -> None:
    collections: list[int] = []

    def count(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            collections.append(1)

    memory = Unreadable()
    gc.callbacks.append(count)
    try:
        async with asyncio.timeout(60), sparing_collector(look_every_s=0.0, resident_bytes=memory):
            collections.clear()
            while memory.looks < 20:
                await asyncio.sleep(0)
    finally:
        gc.callbacks.remove(count)
    assert len(collections) <= 1
    (warning,) = caplog.messages
    assert (
        "memory cannot be read ([Errno 24] Too many open files): it is looked through for garbage every 60 s" in warning
    )


async def test_that_nothing_is_collected_any_more_is_said_as_it_happens(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        asyncio.timeout(60),
        sparing_collector(look_every_s=0.0, resident_bytes=Unreadable(error=ValueError("no number"))),
    ):
        while not caplog.records:
            await asyncio.sleep(0)
    (record,) = caplog.records
    assert (record.levelname, record.exc_info is not None) == ("ERROR", True)
    assert "old garbage is collected no more" in record.message
