"""The outermost frame: the event loop, signals, exit codes, and exceptions turned into a sentence on standard error."""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import typer

from goodspeed.errors import GoodSpeedError, InvalidRequest, LinkLost, ModelError, ProtocolError, Refused
from goodspeed.event_loop import loop_factory
from goodspeed.logs import say

__all__ = ["Exit", "exit_codes", "run"]

T = TypeVar("T")


class Exit(enum.IntEnum):
    """What the shell sees."""

    USAGE = 2
    """A value given here is wrong; the message says which."""
    REFUSED = 3
    """The server refused, or does not speak this protocol."""
    LINK_LOST = 4
    """The server could not be reached, or not any more."""
    MODEL = 5
    """The draft model cannot be used, here or with this target."""
    SOME_FAILED = 6
    """Some prompts of a file failed; their results say why."""
    INTERRUPTED = 130
    """Ctrl-C."""
    BROKEN_PIPE = 141
    """Whoever read the output has stopped reading."""
    TERMINATED = 143
    """SIGTERM."""


def _code(error: GoodSpeedError) -> Exit:
    match error:
        case InvalidRequest():
            return Exit.USAGE
        case ModelError():
            return Exit.MODEL
        case LinkLost():
            return Exit.LINK_LOST
        case Refused() | ProtocolError():
            return Exit.REFUSED
        case _:
            raise AssertionError(f"no exit code for {type(error).__name__}") from error


def run(main: Coroutine[None, None, T]) -> T:
    """Run to the end, on uvloop where there is one; Ctrl-C and SIGTERM cancel it: streams and link close in order.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        asyncio.CancelledError: after SIGTERM.
    """

    async def cancellable() -> T:
        task = asyncio.current_task()
        assert task is not None
        with suppress(NotImplementedError):  # where signals do not exist
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(cancellable())


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what is raised on purpose into a sentence and an exit code. A traceback always means a defect."""
    try:
        yield
    except GoodSpeedError as error:
        say("goodspeed-agent", str(error), logging.ERROR)
        raise typer.Exit(_code(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    except asyncio.CancelledError:
        raise typer.Exit(Exit.TERMINATED) from None
    except BrokenPipeError:
        # Python flushes standard output once more at the end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.BROKEN_PIPE) from None
