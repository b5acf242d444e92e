"""The choices of one request, written side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeAlias

from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.report import Completion

__all__ = ["Events", "Written", "write"]

Written: TypeAlias = tuple[int, Piece | Completion]
"""Which choice, and more of its text, or in the end all about it."""

Events: TypeAlias = asyncio.Queue[Written | Exception]


async def write(agent: Agent, choices: Sequence[TextRequest], events: Events) -> AsyncGenerator[Written, None]:
    """Write all choices; leaving early (`aclosing`) closes their streams at the server.

    Args:
        agent: who writes.
        choices: what, validated, their prompts in tokens (`Agent.prompt_tokens`).
        events: empty; an exception that is put into it ends all of them.

    Raises:
        GoodSpeedError: as `Agent.complete`, of whichever choice fails first.
        Exception: what was put into `events`.
    """

    async def one(index: int, request: TextRequest) -> None:
        def more(piece: Piece) -> None:
            if piece.text or piece.logprobs:
                events.put_nowait((index, piece))

        try:
            events.put_nowait((index, await agent.complete(request, more, checked=True)))
        except Exception as error:
            events.put_nowait(error)

    tasks = [asyncio.create_task(one(index, request)) for index, request in enumerate(choices)]
    try:
        left = len(tasks)
        while left:
            event = await events.get()
            if isinstance(event, Exception):
                raise event
            left -= isinstance(event[1], Completion)
            yield event
    finally:
        for task in tasks:
            task.cancel()
        # Not `gather`: who is cancelled while waiting here would cancel them once more, in the middle of their ends.
        await asyncio.wait(tasks)
