"""Real processes: a server, and agents as a user starts them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

__all__ = ["address_of", "agent", "complete", "server", "start_server"]

_ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
Process = asyncio.subprocess.Process


async def start_server(*options: str, port: int = 0) -> Process:
    """Start `goodspeed-server run`; its output is ours to read."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "goodspeed_server", "run", "--port", str(port), "--threads", "1", *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=_ENVIRONMENT,
    )  # fmt: skip


async def address_of(process: Process) -> str:
    """Wait until a server is ready."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = (await process.stdout.readline()).decode()
    if not line:
        raise AssertionError((await process.stderr.read()).decode())
    assert line.startswith("listening on ws://"), line
    return line.removeprefix("listening on ").strip()


@contextlib.asynccontextmanager
async def server(*options: str) -> AsyncIterator[str]:
    """A server process; yields its address, and sees that it ends in order."""
    process = await start_server(*options)
    try:
        yield await address_of(process)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def agent(*options: str) -> tuple[int, str, str]:
    """Run `goodspeed-agent` to its end: exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "goodspeed_agent", *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=_ENVIRONMENT,
    )  # fmt: skip
    output, complaints = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), complaints.decode()


async def complete(address: str, *options: str) -> dict[str, Any]:
    """`goodspeed-agent complete --json`: the object it prints."""
    code, output, complaints = await agent("complete", "--server", address, "--json", *options)
    assert code == 0, complaints
    result = json.loads(output)
    assert isinstance(result, dict)
    return result
