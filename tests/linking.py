"""A link to a `FakeServer`, made and mended without waiting."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from goodspeed.messages import Hello, Open
from goodspeed.sampling import SamplingParams
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.channel import Channel
from goodspeed_agent.link import Link
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer

__all__ = ["HELLO", "NEVER_AGAIN", "QUICK", "linked", "opening"]

HELLO = Hello(1, "agent", "test")
QUICK = Backoff(first_s=0.001, longest_s=0.001, give_up_after_s=60.0, rng=random.Random(1))
NEVER_AGAIN = Backoff(first_s=0.001, longest_s=0.001, give_up_after_s=0.0, rng=random.Random(1))


def opening(channel: Channel, tokens: tuple[int, ...] = (1, 2, 3)) -> Open:
    """What opens a stream on the channel."""
    return Open(channel.stream, list(tokens), len(tokens), SamplingParams(), 8, 4)


@contextlib.asynccontextmanager
async def linked(server: FakeServer, cache: TokenizerCache, backoff: Backoff = QUICK) -> AsyncIterator[Link]:
    """Serve, and hold a link to the server."""
    async with asyncio.timeout(60), server.listening(), Link(server.url, HELLO, cache, backoff) as link:
        yield link
