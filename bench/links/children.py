"""Processes that are asked questions, a line of JSON each, and answer with another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from bench.processes import ENVIRONMENT
from goodspeed.errors import GoodSpeedError

__all__ = ["Answer", "Child", "child", "obey"]

Answer = Mapping[str, Any]


class Child:
    """A process that obeys."""

    def __init__(self, module: str, process: asyncio.subprocess.Process) -> None:
        self._module = module
        self._process = process

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    async def ask(self, what: str, **details: Any) -> Any:
        """Ask, and wait for the answer.

        Raises:
            GoodSpeedError: it has ended instead.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"what": what, **details}).encode() + b"\n")
        await stdin.drain()
        line = await stdout.readline()
        if not line:
            raise GoodSpeedError(f"{self._module} has ended; its message is above")
        return json.loads(line)


@contextlib.asynccontextmanager
async def child(module: str, *arguments: str) -> AsyncIterator[Child]:
    """Start a module as `python -m` does; it is let go at the end, and ends by that."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    try:
        yield Child(module, process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def obey(answers: Mapping[str, Callable[..., Awaitable[Answer]]]) -> None:
    """Answer what is asked on standard input, by name, until nobody can ask any more."""
    questions = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    while line := await questions.readline():
        details = json.loads(line)
        print(json.dumps(await answers[details.pop("what")](**details)), flush=True)
