"""One thread for all drafting: what is urgent goes first, streams go on side by side, and nothing is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import pytest

from goodspeed_agent.desk import Desk
from goodspeed_agent.drafters import DraftSession, Guess
from goodspeed_agent.steps import Steps

T = TypeVar("T")


class Silent:
    """A session that is told apart from others."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        return iter(())

    def __repr__(self) -> str:
        return self.name


def a_guess(act: Callable[[], T], session: DraftSession | None = None) -> Steps[T]:
    yield session or Silent()
    return act()


def several(session: DraftSession, count: int, on_step: Callable[[], None] = lambda: None) -> Steps[int]:
    for _ in range(count):
        yield session
        on_step()
    return count


class Recorder:
    """Batches of a few, and who was in each."""

    def __init__(self, together: int, slow: Sequence[tuple[str, int]] = ()) -> None:
        self.together = together
        self.batches: list[list[str]] = []
        self.lacks = dict(slow)

    def prepare(self, sessions: Sequence[DraftSession]) -> list[bool]:
        names = [str(session) for session in sessions]
        self.batches.append(names)
        ready = [self.lacks.get(name, 0) == 0 for name in names]
        for name in names:
            self.lacks[name] = max(0, self.lacks.get(name, 0) - 1)
        return ready


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

    first = asyncio.create_task(desk.at_once(lambda: a_guess(lambda: urgent("first"))))
    await asyncio.sleep(0)
    between = [
        asyncio.create_task(desk.in_between(lambda: lambda: a_guess(lambda: order.append("between")))) for _ in range(3)
    ]
    await asyncio.sleep(0)
    second = asyncio.create_task(desk.at_once(lambda: a_guess(lambda: urgent("second"))))
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

    between = [asyncio.create_task(desk.in_between(lambda: lambda: a_guess(piece))) for _ in range(4)]
    await begun.wait()
    urgent = asyncio.create_task(desk.at_once(lambda: a_guess(lambda: order.append("urgent"))))
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

    task = asyncio.create_task(desk.in_between(lambda: lambda: a_guess(fail)))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done(), "it cannot be stopped once it has begun"
    gate.set()
    with pytest.raises(RuntimeError, match="broke"):
        await task


async def test_results_and_failures_come_back(desk: Desk) -> None:
    assert await desk.at_once(lambda: a_guess(lambda: 3)) == 3
    assert await desk.in_between(lambda: lambda: a_guess(lambda: 4)) == 4
    assert await desk.alone(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await desk.at_once(lambda: a_guess(lambda: 1 // 0))
    with pytest.raises(ZeroDivisionError):
        await desk.at_once(lambda: a_guess(lambda: 1) if 1 // 0 else a_guess(lambda: 2))
    assert await desk.in_between(lambda: lambda: a_guess(lambda: 6)) == 6, "a failure blocks nobody"


async def test_streams_that_are_waited_for_at_once_compute_together() -> None:
    recorder = Recorder(together=3)
    desk = Desk(recorder)
    works = [(Silent("a"), 3), (Silent("b"), 1), (Silent("c"), 2), (Silent("d"), 2)]
    done = await asyncio.gather(*(desk.at_once(partial(several, *work)) for work in works))
    assert done == [3, 1, 2, 2]
    assert recorder.batches == [["a", "b", "c"], ["a", "c", "d"], ["a", "d"]]
    desk.close()


async def test_a_newcomer_joins_with_the_next_step() -> None:
    recorder = Recorder(together=3)
    desk, loop = Desk(recorder), asyncio.get_running_loop()
    begun, gate = asyncio.Event(), threading.Event()

    def on_step() -> None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait(30)

    first = asyncio.create_task(desk.at_once(lambda: several(Silent("a"), 3, on_step)))
    await begun.wait()
    second = asyncio.create_task(desk.at_once(lambda: several(Silent("b"), 2)))
    await asyncio.sleep(0)
    gate.set()
    assert (await first, await second) == (3, 2)
    assert recorder.batches == [["a"], ["a", "b"], ["a", "b"]]
    desk.close()


async def test_who_is_not_ready_holds_up_nobody() -> None:
    recorder = Recorder(together=2, slow=[("prompt", 2)])
    desk = Desk(recorder)
    order: list[str] = []
    works = [partial(several, Silent(name), 2, partial(order.append, name)) for name in ("prompt", "short")]
    await asyncio.gather(*(desk.at_once(work) for work in works))
    assert order == ["short", "short", "prompt", "prompt"]
    desk.close()


async def test_pieces_that_are_put_again_stay_together() -> None:
    """Each comes back by way of the event loop, after other things that its stream has to do there."""
    recorder = Recorder(together=4)
    desk = Desk(recorder)

    async def stream(name: str) -> None:
        session = Silent(name)
        for _ in range(5):
            await desk.in_between(lambda: lambda: several(session, 1))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    await asyncio.gather(*(stream(name) for name in "abc"))
    assert recorder.batches == [["a", "b", "c"]] * 5
    desk.close()


async def test_what_nobody_waits_for_any_more_ends_with_its_step() -> None:
    recorder = Recorder(together=1)
    desk, loop = Desk(recorder), asyncio.get_running_loop()
    begun, gate = asyncio.Event(), threading.Event()

    def on_step() -> None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait(30)

    task = asyncio.create_task(desk.at_once(lambda: several(Silent("long"), 1000, on_step)))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await desk.at_once(lambda: several(Silent("next"), 1)) == 1
    assert recorder.batches == [["long"], ["next"]]
    desk.close()


async def test_a_desk_that_is_closed_takes_on_nothing() -> None:
    desk = Desk()
    begun, gate, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()

    def on_step() -> None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait(30)

    running = asyncio.create_task(desk.at_once(lambda: several(Silent(), 9, on_step)))
    waiting = asyncio.create_task(desk.in_between(lambda: lambda: several(Silent(), 1)))
    await begun.wait()
    desk.close()
    gate.set()
    for task in (running, waiting):
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(RuntimeError, match="nothing is drafted here any more"):
        await desk.at_once(lambda: several(Silent(), 1))


class Faulty(Recorder):
    """Somebody's own, whose property fails when it is read for the so many-th time."""

    def __init__(self, good_reads: int) -> None:
        super().__init__(4)
        self.good_reads = good_reads

    @property
    def together(self) -> int:
        self.good_reads -= 1
        if self.good_reads == -1:
            raise RuntimeError("together is broken")
        return 4

    @together.setter
    def together(self, value: int) -> None:
        pass


@pytest.mark.parametrize("good_reads", [0, 1, 2, 3])
async def test_whoever_is_at_work_hears_of_a_drafter_that_cannot_say_how_many_it_takes(good_reads: int) -> None:
    desk = Desk(Faulty(good_reads))
    try:
        async with asyncio.timeout(30):
            jobs = [desk.at_once(partial(several, Silent(), 9)), desk.in_between(lambda: partial(several, Silent(), 9))]
            results = await asyncio.gather(*jobs, return_exceptions=True)
            assert "together is broken" in map(str, results)
            assert await desk.at_once(partial(several, Silent(), 3)) == 3
    finally:
        desk.close()
