"""A server and a link that controls it, for the tests of live control."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from goodspeed.control import (
    ControlState,
)
from goodspeed.messages import Draft
from goodspeed.sampling import SamplingParams
from goodspeed_agent.backoff import Backoff
from goodspeed_server.controlling import Controls, controlling
from goodspeed_server.server import VerificationServer
from tests.serving import Peer, serving, tiny_settings
from tests.test_server import PROMPT, target_text
from tests.tiny_models import VOCAB

__all__ = ["PROMPTS", "QUICK", "START", "TEXT", "WARM", "WRONG", "controlled", "heard", "said", "until_prefilled"]


START = len(PROMPT)
TEXT = target_text(PROMPT, 40)
WRONG = [(token + 1) % VOCAB for token in TEXT]
WARM = SamplingParams(temperature=0.8, top_p=0.95, seed=11)
PROMPTS = ["w5 w17 w3", "w8", "w1 w2 w3 w4 w5 w6 w7"]
QUICK = Backoff(first_s=0.01, longest_s=0.01, give_up_after_s=60.0)


@contextlib.asynccontextmanager
async def controlled(
    rounds: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[VerificationServer, str, Controls]]:
    """A server behind the paper's barrier, and a link that controls it."""
    how = {"rounds": "auto"} | dict(rounds or {})
    async with (
        asyncio.timeout(180),
        serving(tiny_settings(rounds=how, **settings)) as (server, address),
        controlling(address) as controls,
    ):
        yield server, address, controls


async def until_prefilled(server: VerificationServer) -> None:
    while any(map(server._rounds.is_prefilling, server._rounds.live)):
        await asyncio.sleep(0)


async def heard(peer: Peer) -> None:
    """All that was sent has been dealt with: messages are taken in the order they come."""
    await peer.send(Draft(999, 0, []))
    assert (await peer.failure()).code == "unknown_stream"


def said(state: ControlState) -> list[str]:
    return [str(changed) for changed in state.changed]
