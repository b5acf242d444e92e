"""What a server holds does not depend on how many have come and gone."""

from __future__ import annotations

import gc
from collections import Counter

import pytest

from goodspeed_server.link import Link
from goodspeed_server.listener import Connection
from goodspeed_server.live import AgentAccount, LiveStream
from goodspeed_server.parking import Parked
from goodspeed_server.server import VerificationServer
from tests.fuzzing.watching import settled
from tests.serving import linked, serving, tiny_settings
from tests.test_server import PROMPT

KINDS = (Connection, Link, AgentAccount, LiveStream, Parked)
A_LAST_ONE = 2
"""The round loop and what is awaited last may each hold what they saw last, of one visitor."""


async def visit(address: str, number: int, manner: str) -> None:
    async with linked(address, greet=False) as peer:
        await peer.greet(name=f"visitor {number}", session=number.to_bytes(16, "big"))
        if manner == "in order":
            await peer.generate(0, PROMPT, max_new_tokens=4)
            return
        await peer.open(0, PROMPT, max_new_tokens=80)
        if manner == "without a word":
            peer.connection.transport.abort()


async def left_behind_by(server: VerificationServer, address: str, manner: str) -> Counter[str]:
    for number in range(12):
        await visit(address, number, manner)

    def nobody_there() -> bool:
        now = server.snapshot()
        return not (now.agents or now.streams or now.parked)

    await settled(nobody_there)
    async with linked(address) as peer:  # so that what was seen last is not a visitor
        await peer.generate(0, PROMPT, max_new_tokens=2)
    await settled(lambda: not server.snapshot().agents)
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects() if issubclass(type(thing), KINDS))


@pytest.mark.parametrize("manner", ["in order", "in the middle", "without a word"])
async def test_who_has_gone_is_held_no_more(manner: str) -> None:
    settings = tiny_settings(rounds={"rounds": "rolling", "park_s": 0.01}, scheduler="seconds")
    async with serving(settings) as (server, address):
        left = await left_behind_by(server, address, manner)
        assert all(count <= A_LAST_ONE for count in left.values()), left
        assert len(server._sessions) == 0
        assert len(server._control._audits) == 0
