"""The registry of those who attack the server itself, rather than claim something: strangers and holders of a token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.attacks.sockets import Tally, Target
from goodspeed.errors import LinkLost

__all__ = ["FLOODS", "THROTTLED", "TWINS", "Flood", "RoundsName", "again_and_again", "flood", "twin"]

RoundsName = Literal["rolling", "barrier"]
Run = Callable[[Target, Tally], Coroutine[Any, Any, None]]
"""Attacks until it is cancelled."""

THROTTLED = "not read"
"""The defence that refuses nothing: the link is read more slowly than it sends."""


@dataclass(frozen=True, slots=True)
class Flood:
    """One way to take the server's time or memory."""

    name: str
    run: Run
    met_by: Sequence[str]
    """The codes that the server counts refusals by, or `THROTTLED`; one of them at least, or else it was not met; none
    if there is nothing to be met."""
    rounds: RoundsName
    """Of the server that it is most trouble to."""
    beside: str | None
    """Who sits in its place in the run that it is compared with; None for itself, at another server."""


FLOODS: dict[str, Flood] = {}
"""All of them, by name."""
TWINS: dict[str, Run] = {}
"""Those who do as the attackers do, and no harm."""


def flood(name: str, *met_by: str, rounds: RoundsName = "rolling", beside: str | None = None) -> Callable[[Run], Run]:
    """Enter an attacker into the registry."""

    def enter(run: Run) -> Run:
        FLOODS[name] = Flood(name, run, met_by, rounds, beside)
        return run

    return enter


def twin(name: str) -> Callable[[Run], Run]:
    """Enter somebody honest."""

    def enter(run: Run) -> Run:
        TWINS[name] = run
        return run

    return enter


async def again_and_again(
    workers: int, tally: Tally, once: Callable[[int], Awaitable[None]], *, pause_s: float = 0.0
) -> None:
    """Have many do something again and again, however it ends; what it ends with is counted.

    Args:
        workers: how many, side by side.
        tally: where that is counted.
        once: done by a worker of this number.
        pause_s: behind each.
    """

    async def work(number: int) -> None:
        while True:
            tally.counts["tried"] += 1
            try:
                await once(number)
            except EOFError:
                tally.counts["closed"] += 1
            except OSError:
                tally.counts["cut off"] += 1
            except LinkLost as error:
                tally.counts[str(error)] += 1
            await asyncio.sleep(pause_s)

    async with asyncio.TaskGroup() as group:
        for number in range(workers):
            group.create_task(work(number))
