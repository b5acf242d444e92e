"""Many prompts through one link, several at once; results come out in the order of the prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from goodspeed.errors import GoodSpeedError, ModelError
from goodspeed_agent.agent import Agent, Piece
from goodspeed_agent.prompts import PromptLine
from goodspeed_agent.report import Completion

__all__ = ["Watcher", "work_through"]


class Watcher(Protocol):
    """Is told how it goes."""

    def tokens(self, count: int) -> None:
        """Tokens were committed."""

    def queued(self, index: int, place: int | None) -> None:
        """A prompt waits for a row of the server, in this place of its queue; None if it does not or no longer."""

    def finished(self, completion: Completion | None) -> None:
        """A prompt is done; None if it failed."""


async def work_through(
    agent: Agent,
    prompts: Sequence[PromptLine],
    concurrency: int,
    write: Callable[[dict[str, Any]], None],
    watcher: Watcher,
) -> int:
    """Complete all prompts.

    A prompt that comes to nothing gets an `error` in its result and the others go on; what ends the link, or a draft
    that cannot go on, ends it all, after the results that are complete so far were written.

    Args:
        agent: connected.
        prompts: what to complete.
        concurrency: how many streams at once.
        write: takes the results, in order.
        watcher: is told how it goes.

    Returns:
        How many prompts failed.

    Raises:
        LinkLost: the link could not be made again.
        Refused: the server does not want this agent any more.
        ModelError: the draft that was to answer alone cannot go on, or the target is another now.
        ProtocolError: the server does not keep to the protocol.
    """
    results = _InOrder(write)
    waiting = iter(enumerate(prompts))
    failed = 0

    async def worker() -> None:
        nonlocal failed
        for index, prompt in waiting:
            about: dict[str, Any] = {"line": prompt.number} | ({} if prompt.id is None else {"id": prompt.id})
            on_queued = partial(watcher.queued, index)

            def on_text(piece: Piece, on_queued: Callable[[int | None], None] = on_queued) -> None:
                on_queued(None)
                watcher.tokens(len(piece.tokens))

            try:
                completion = await agent.complete(prompt.request, on_text, on_queued)
            except GoodSpeedError as error:
                if agent.link.ended or isinstance(error, ModelError):
                    raise  # Every other prompt would be told the same.
                failed += 1
                results.put(index, about | {"error": {"code": error.code, "message": str(error)}})
                on_queued(None)
                watcher.finished(None)
            else:
                results.put(index, about | completion.to_json())
                watcher.finished(completion)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(prompts))):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        # The workers share one link, so that they all fail for the same reason.
        raise errors.exceptions[0] from None
    finally:
        results.flush()
    return failed


class _InOrder:
    """Writes results in the order of their index, each as soon as all before it are written."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self._write = write
        self._next = 0
        self._early: dict[int, dict[str, Any]] = {}

    def put(self, index: int, result: dict[str, Any]) -> None:
        self._early[index] = result
        while self._next in self._early:
            self._write(self._early.pop(self._next))
            self._next += 1

    def flush(self) -> None:
        """Write what is complete although something before it never will be."""
        for index in sorted(self._early):
            self._write(self._early.pop(index))
