"""A server as a process of its own, as an operator starts it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator

from goodspeed.errors import GoodSpeedError

__all__ = ["ENVIRONMENT", "serving"]

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
"""For processes that share two cores."""


@contextlib.asynccontextmanager
async def serving(*options: str) -> AsyncIterator[str]:
    """Start `goodspeed-server run` on a free port and yield its address; it ends in order with the context.

    Raises:
        GoodSpeedError: it did not start.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "goodspeed_server", "run", "--port", "0", "--threads", "1", *options,
        stdout=asyncio.subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        if not line.startswith("listening on "):
            raise GoodSpeedError("the server did not start; its message is above")
        yield line.removeprefix("listening on ").strip()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
