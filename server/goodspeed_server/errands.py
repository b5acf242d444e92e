"""The outermost frame of every command: what GoodSpeed can name becomes one sentence and an exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import typer

from goodspeed.errors import GoodSpeedError, InvalidRequest
from goodspeed.logs import say

__all__ = ["end_at_once", "errors_named"]

_FAILED = 1
"""Something GoodSpeed knows how to name went wrong; the sentence is on stderr."""
_USAGE = 2
"""A value given here is wrong, likewise."""
_INTERRUPTED = 130


@contextlib.contextmanager
def errors_named() -> Iterator[None]:
    """Exit with a sentence; a traceback always means a defect."""
    try:
        yield
    except GoodSpeedError as error:
        say("goodspeed-server", str(error), logging.ERROR)
        raise typer.Exit(_USAGE if isinstance(error, InvalidRequest) else _FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


def end_at_once() -> NoReturn:
    """End this process in order, with status 0, although one of its threads is stuck.

    Everything of ours is closed by now, and what is logged and printed is written here. The interpreter would wait for
    the thread. Were it a daemon, it would be torn down within a library that is at work, which may crash, and the
    device's own code waits at exit for what still runs there.
    """
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)
