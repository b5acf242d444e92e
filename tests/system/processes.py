"""Real processes: a server, and agents as a user starts them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tests.system.forked import Forked
from tests.system.one_target import Policy

__all__ = [
    "ENVIRONMENT",
    "REPOSITORY",
    "address_of",
    "agent",
    "complete",
    "ctl",
    "get",
    "one_target",
    "reaped",
    "server",
    "start_agent",
    "start_server",
]

REPOSITORY = Path(__file__).parents[2]
"""What is no part of an install, such as the demo, is run from here."""

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
P = TypeVar("P", asyncio.subprocess.Process, Forked)


async def start_server(*options: str, port: int = 0) -> Forked:
    """Start `goodspeed-server run`; its output is ours to read."""
    arguments = ("run", "--port", str(port), "--threads", "1", *options)
    return await Forked.start("goodspeed_server", *arguments, environment=ENVIRONMENT)


async def address_of(process: Forked) -> str:
    """Wait until a server is ready."""
    line = (await process.stdout.readline()).decode()
    if not line:
        raise AssertionError((await process.stderr.read()).decode())
    assert line.startswith(("listening on ws://", "listening on wss://")), line
    return line.removeprefix("listening on ").strip()


@contextlib.asynccontextmanager
async def reaped(process: P) -> AsyncIterator[P]:
    """A process that does not outlive the block, however that ends."""
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(process, Forked):
            process.close()


@contextlib.asynccontextmanager
async def server(*options: str, port: int = 0) -> AsyncIterator[str]:
    """A server process; yields its address, and sees that it ends in order."""
    async with reaped(await start_server(*options, port=port)) as process:
        yield await address_of(process)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def start_agent(*options: str) -> Forked:
    """Start `goodspeed-agent`; its output is ours to read."""
    return await Forked.start("goodspeed_agent", *options, environment=ENVIRONMENT)


async def agent(*options: str) -> tuple[int, str, str]:
    """Run `goodspeed-agent` to its end: exit code, standard output, standard error."""
    async with reaped(await start_agent(*options)) as process:
        output, complaints = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), complaints.decode()


async def ctl(address: str, *arguments: str) -> tuple[int, str, str]:
    """Run `goodspeed-server ctl` to its end: exit code, standard output, standard error."""
    start = Forked.start("goodspeed_server", "ctl", "--url", address, *arguments, environment=ENVIRONMENT)
    async with reaped(await start) as process:
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


def get(url: str) -> tuple[int, str]:
    """A plain GET: status and body, whatever the status is."""
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextlib.contextmanager
def one_target() -> Iterator[Callable[[Policy], str]]:
    """A process that serves the bundled target; what is yielded has it serve under a policy, and gives the address."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.system.one_target"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=REPOSITORY,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        policies, addresses = process.stdin, process.stdout

        def serve(policy: Policy) -> str:
            policies.write(msgspec.json.encode(policy) + b"\n")
            policies.flush()
            address = addresses.readline().decode().strip()
            assert address, "the process ended; what it said is on standard error"
            return address

        yield serve
    assert process.returncode == 0
