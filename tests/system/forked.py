"""Commands of ours as processes forked from one that has imported everything: torch and transformers take seconds.

Such a process has its own memory, descriptors, signals and exit status. What it would have imported is there already,
and what the interpreter reads of its environment at its own start is the first one's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from typing import Any, Self
from unittest import mock

__all__ = ["Forked", "start_with"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "goodspeed_agent.cli",
        "goodspeed_agent.drafters.model",
        "goodspeed_server.cli",
        "goodspeed_server.server",
        "pytest",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
    ]
)


class Forked:
    """A process, as far as the tests need `asyncio.subprocess.Process`."""

    def __init__(self, process: Any, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self._process = process
        self.stdout = stdout
        self.stderr = stderr
        self._transports: list[asyncio.ReadTransport] = []

    @classmethod
    async def start(cls, module: str, *arguments: str, environment: Mapping[str, str]) -> Self:
        """Run a module as `python -m` does; its output is ours to read."""
        pipes = [os.pipe(), os.pipe()]
        process = start_with({1: pipes[0][1], 2: pipes[1][1]}, module, *arguments, environment=environment)
        for _, write in pipes:
            os.close(write)
        readers = [asyncio.StreamReader(), asyncio.StreamReader()]
        forked = cls(process, *readers)
        loop = asyncio.get_running_loop()
        for reader, (read, _) in zip(readers, pipes, strict=True):
            protocol = functools.partial(asyncio.StreamReaderProtocol, reader)
            transport, _ = await loop.connect_read_pipe(protocol, os.fdopen(read, "rb", 0))
            forked._transports.append(transport)
        return forked

    @property
    def pid(self) -> int:
        """Its number."""
        number: int = self._process.pid
        return number

    @property
    def returncode(self) -> int | None:
        """The exit status, below 0 for a signal's; None while it runs."""
        code: int | None = self._process.exitcode
        return code

    def send_signal(self, number: int) -> None:
        """Send it; who has just ended is sent nothing."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait until it has ended."""
        if self.returncode is None:
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(self._process.sentinel, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(self._process.sentinel)
        code = self.returncode
        assert code is not None
        return code

    async def communicate(self) -> tuple[bytes, bytes]:
        """Read both outputs to their ends, and wait."""
        output, complaints = await asyncio.gather(self.stdout.read(), self.stderr.read())
        await self.wait()
        return output, complaints

    def close(self) -> None:
        """Let go of the pipes."""
        for transport in self._transports:
            transport.close()


def start_with(
    descriptors: Mapping[int, int], module: str, *arguments: str, environment: Mapping[str, str]
) -> ForkServerProcess:
    """Run a module as `python -m` does.

    Args:
        descriptors: of ours, by what the process is to have them as: 0 for its standard input, and so on.
        module: what to run.
        arguments: of its command line.
        environment: all of it.
    """
    # What the first one finds in its environment when it imports torch holds for all.
    with mock.patch.dict(os.environ, environment, clear=True):
        multiprocessing.forkserver.ensure_running()
    sent = {number: _Sent(descriptor) for number, descriptor in descriptors.items()}
    process = _CONTEXT.Process(target=_run, args=(module, arguments, dict(environment), sent), daemon=True)
    process.start()
    return process


class _Sent:
    """A descriptor on its way to another process."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self._number),)


def _received(descriptor: Any) -> int:
    number: int = descriptor.detach()
    return number


def _run(module: str, arguments: Sequence[str], environment: Mapping[str, str], given: Mapping[int, int]) -> None:
    for number, received in given.items():
        os.dup2(received, number)
        os.close(received)
    if 0 in given:
        sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Who ignores it, as beneath nohup, has children that do.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
