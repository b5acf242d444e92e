"""Servers and agents as processes of their own, as people start them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from goodspeed.errors import GoodSpeedError

__all__ = ["ENVIRONMENT", "Process", "Start", "serving", "start"]

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
"""For processes that share two cores."""


class Process(Protocol):
    """As much as a supervisor needs of one."""

    @property
    def returncode(self) -> int | None: ...

    @property
    def stdout(self) -> asyncio.StreamReader | None: ...

    @property
    def stderr(self) -> asyncio.StreamReader | None: ...

    def kill(self) -> None: ...

    def terminate(self) -> None: ...

    async def wait(self) -> int: ...

    async def communicate(self) -> tuple[bytes, bytes]: ...


Start = Callable[..., Awaitable[Process]]
"""Starts a module as `python -m` does, with these arguments; its output is piped."""


async def start(module: str, *arguments: str, stderr: int | None = None) -> Process:
    """Start a module as `python -m` does; its output is ours to read, its complaints go where ours do if not told."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE, stderr=stderr, env=ENVIRONMENT
    )


@contextlib.asynccontextmanager
async def serving(*options: str, start: Start = start) -> AsyncIterator[str]:
    """Start `goodspeed-server run` on a free port and yield its address; it ends in order with the context.

    Raises:
        GoodSpeedError: it did not start.
    """
    process = await start("goodspeed_server", "run", "--port", "0", "--threads", "1", *options)
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        if not line.startswith("listening on "):
            raise GoodSpeedError("the server did not start; its message is above")
        yield line.removeprefix("listening on ").strip()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
