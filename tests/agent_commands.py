"""The agent's commands, run in this process before a fake server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from typer.testing import CliRunner, Result

from goodspeed_agent.__main__ import app
from tests.fake_server import FakeServer

__all__ = ["aside", "invoke"]


def invoke(*args: str, stdin: str | bytes | None = None) -> Result:
    """Run `goodspeed-agent` with these arguments."""
    return CliRunner().invoke(app, args, input=stdin)


@contextlib.contextmanager
def aside(fake: FakeServer) -> Iterator[FakeServer]:
    """The server in a thread of its own, since the command brings its own event loop."""
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with fake.listening():
            ready.set()
            await stop.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
