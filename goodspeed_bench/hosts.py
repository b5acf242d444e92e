"""The processes that agents work in, as the benchmark sees them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import msgspec

from goodspeed.errors import GoodSpeedError
from goodspeed_bench.host import Answer, Command, Rehearse, Start

__all__ = ["Ask", "hosts", "part"]

Ask: TypeAlias = Callable[[Command], Awaitable[Answer]]
"""Has a command carried out by whom it concerns."""

HOSTS = 2
"""Enough that one interpreter does not hold up everybody's agents."""
_LINE_BYTES = 2**24


@contextlib.asynccontextmanager
async def hosts(rule: str = "coupled", count: int = HOSTS) -> AsyncIterator[Ask]:
    """Start so many processes; each edge is at home in one of them, always the same.

    Args:
        rule: of verification, as the server is given it.
        count: of processes.

    Raises:
        GoodSpeedError: from `Ask`, when a command cannot be carried out.
        RuntimeError: from `Ask`, when a host has ended; what it said is on standard error.
    """
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "goodspeed_bench.host",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE_BYTES,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GOODSPEED_RULE": rule},
        )
        for _ in range(count)
    ]  # fmt: skip

    async def ask(command: Command) -> Answer:
        parts = [part(command, place, count) for place in range(count)]
        answers = await asyncio.gather(*map(_tell, processes, parts))
        return Answer(tuple(report for answer in answers for report in answer.reports))

    try:
        yield ask
    finally:
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        await asyncio.gather(*(process.wait() for process in processes))


async def _tell(process: asyncio.subprocess.Process, command: Command) -> Answer:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(command) + b"\n")
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError("a process with agents in it has ended")
    answer = msgspec.json.decode(line, type=Answer)
    if answer.error is not None:
        raise GoodSpeedError(answer.error)
    return answer


def part(command: Command, place: int, count: int) -> Command:
    """What one host of so many has to do of a command."""
    if isinstance(command, Start | Rehearse):
        mine = tuple(edge for edge in command.edges if edge.number % count == place)
        return msgspec.structs.replace(command, edges=mine)
    return command
