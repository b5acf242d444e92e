"""The outermost frame of every command: what GoodSpeed can name becomes one sentence and an exit code."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import typer

from goodspeed.errors import GoodSpeedError, InvalidRequest
from goodspeed.logs import say

__all__ = ["errors_named"]

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
