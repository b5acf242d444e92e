"""Which event loop every command runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["loop_factory"]


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop of uvloop, or None, asyncio's own, on platforms that uvloop does not run on."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
