"""The choices of one request, written side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeAlias

from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.report import Completion

__all__ = ["Written", "write"]

Written: TypeAlias = tuple[int, Piece | Completion]
"""Which choice, and more of its text, or in the end all about it."""


async def write(agent: Agent, choices: Sequence[TextRequest]) -> AsyncGenerator[Written, None]:
    """Write all choices; leaving early (`aclosing`) closes their streams at the server.

    Raises:
        GoodSpeedError: as `Agent.complete`, of whichever choice fails first.
    """
    events: asyncio.Queue[Written | Exception] = asyncio.Queue()

    async def one(index: int, request: TextRequest) -> None:
        def more(piece: Piece) -> None:
            if piece.text or piece.logprobs:
                events.put_nowait((index, piece))

        try:
            events.put_nowait((index, await agent.complete(request, more)))
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
        await asyncio.gather(*tasks, return_exceptions=True)
