"""Real processes: a server, and agents as a user starts them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bench.processes import Start
from tests.system.forked import Forked, start_with
from tests.system.one_target import Policy

__all__ = [
    "ENVIRONMENT",
    "REPOSITORY",
    "address_of",
    "agent",
    "complete",
    "ctl",
    "forking",
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
    """Start `goodspeed-server run`; its output is ours to read.

    With few rows, unless told otherwise: it measures passes of so many streams before it listens.
    """
    arguments = ("run", "--port", str(port), "--threads", "1", "--max-streams", "4", *options)
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


@contextlib.asynccontextmanager
async def forking(**environment: str) -> AsyncIterator[tuple[Start, list[Forked]]]:
    """What starts processes that do not outlive the block, and those it has started."""
    started: list[Forked] = []
    async with contextlib.AsyncExitStack() as stack:

        async def start(module: str, *arguments: str, **_: object) -> Forked:
            process = await Forked.start(module, *arguments, environment=ENVIRONMENT | environment)
            started.append(await stack.enter_async_context(reaped(process)))
            return process

        yield start, started


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
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    process = start_with({0: theirs_in, 1: theirs_out}, "tests.system.one_target", environment=ENVIRONMENT)
    os.close(theirs_in)
    os.close(theirs_out)
    with os.fdopen(ours_in, "rb") as addresses, os.fdopen(ours_out, "wb") as policies:

        def serve(policy: Policy) -> str:
            policies.write(msgspec.json.encode(policy) + b"\n")
            policies.flush()
            address = addresses.readline().decode().strip()
            assert address, "the process ended; what it said is on standard error"
            return address

        yield serve
    process.join()
    assert process.exitcode == 0
