"""SIGHUP loads the draft anew, and the agent's streams go on with it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

from goodspeed.errors import GoodSpeedError
from goodspeed_agent.agent import Agent
from goodspeed_agent.drafters import Drafter

__all__ = ["reloading"]


@contextlib.contextmanager
def reloading(agent: Agent, load: Callable[[], Drafter], say: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, SIGHUP exchanges the agent's drafter; elsewhere than on Unix nothing does.

    A draft that cannot be used is told about, and the agent keeps the one it has.

    Args:
        agent: at work.
        load: makes the drafter; blocks, on a thread of its own.
        say: is told what came of it.
    """
    number = getattr(signal, "SIGHUP", None)
    if number is None:
        yield
        return
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        try:
            drafter = await asyncio.to_thread(load)
            await agent.swap(drafter)
        except GoodSpeedError as error:
            say(f"the draft stays as it is: {error}")
        else:
            say(f"drafting with {drafter.name} as it is now")

    def begin() -> None:
        task = asyncio.create_task(reload(), name="reload")
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(number, begin)
    try:
        yield
    finally:
        loop.remove_signal_handler(number)
        for task in tasks:
            task.cancel()
