"""One thread for all drafting: what is urgent goes first, and nothing is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from goodspeed_agent.desk import Desk


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


async def test_work_in_between_waits_for_what_is_urgent(desk: Desk) -> None:
    order: list[str] = []
    gate = threading.Event()

    def urgent(name: str) -> None:
        gate.wait(30)
        order.append(name)

    first = asyncio.create_task(desk.at_once(lambda: urgent("first")))
    await asyncio.sleep(0)
    between = [asyncio.create_task(desk.in_between(lambda: lambda: order.append("between"))) for _ in range(3)]
    await asyncio.sleep(0)
    second = asyncio.create_task(desk.at_once(lambda: urgent("second")))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, second, *between)
    assert order == ["first", "second", "between", "between", "between"]


async def test_an_urgent_draft_waits_for_one_piece_in_between_at_most(desk: Desk) -> None:
    order: list[str] = []
    gate, begun = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def piece() -> None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait(30)
        order.append("piece")

    between = [asyncio.create_task(desk.in_between(lambda: piece)) for _ in range(4)]
    await begun.wait()
    urgent = asyncio.create_task(desk.at_once(lambda: order.append("urgent")))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(urgent, *between)
    assert order == ["piece", "urgent", "piece", "piece", "piece"]


async def test_a_cancelled_caller_hears_of_the_failure_of_what_had_begun(desk: Desk) -> None:
    gate, begun = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail() -> None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait(30)
        raise RuntimeError("broke")

    task = asyncio.create_task(desk.in_between(lambda: fail))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done(), "it cannot be stopped once it has begun"
    gate.set()
    with pytest.raises(RuntimeError, match="broke"):
        await task


async def test_results_and_failures_come_back(desk: Desk) -> None:
    assert await desk.at_once(lambda: 3) == 3
    assert await desk.in_between(lambda: lambda: 4) == 4
    with pytest.raises(ZeroDivisionError):
        await desk.at_once(lambda: 1 // 0)
    assert await desk.in_between(lambda: lambda: 5) == 5, "a failure blocks nobody"
