"""The outermost frame of every command: what GoodSpeed can name becomes one sentence and an exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import typer

from goodspeed.errors import GoodSpeedError, InvalidRequest, RankLost
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
    except RankLost as error:
        say("goodspeed-server", str(error), logging.ERROR)
        end_at_once(_FAILED)  # a thread may wait for that rank
    except GoodSpeedError as error:
        say("goodspeed-server", str(error), logging.ERROR)
        raise typer.Exit(_USAGE if isinstance(error, InvalidRequest) else _FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


def end_at_once(status: int = 0) -> NoReturn:
    """End this process in order, although one of its threads is stuck.

    Everything of ours is closed by now, and what is logged and printed is written here. The interpreter would wait for
    the thread. Were it a daemon, it would be torn down within a library that is at work, which may crash, and the
    device's own code waits at exit for what still runs there.
    """
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
