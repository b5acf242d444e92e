"""Every attacker of `make bench-attacks` that goes for the server itself, in small: it meets its defence."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from bench.attacks import attacker, holders, strangers
from bench.attacks.floods import FLOODS, THROTTLED
from bench.attacks.sockets import Tally, Target
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import DoorSettings
from goodspeed_server.tokens import TokenStore
from tests.serving import Peer, serving, tiny_settings
from tests.test_server import PROMPT, target_text

assert attacker.REGISTERED
DOOR = DoorSettings(max_links_per_address=8, handshakes_per_minute=40, failed_tokens_per_minute=4)


def counted(server: VerificationServer, code: str) -> float:
    registry = server._metrics._registry
    if code == THROTTLED:
        return registry.get_sample_value("goodspeed_throttled_seconds_total") or 0.0
    return registry.get_sample_value("goodspeed_refusals_total", {"code": code}) or 0.0


@pytest.mark.parametrize("name", FLOODS)
async def test_an_attacker_meets_its_defence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "HALF_OPEN", 32)
    monkeypatch.setattr(strangers, "KNOCKING", 4)
    monkeypatch.setattr(holders, "LINKS", 1)
    flood = FLOODS[name]
    store = TokenStore(tmp_path / "tokens.json")
    honest, attacking = (store.create(who, "agent") for who in ("edge", "attacker"))
    rounds = {"rounds": flood.rounds, "round_timeout_s": 0.05}
    settings = tiny_settings(door=DOOR, tokens=tmp_path / "tokens.json", rounds=rounds)
    async with asyncio.timeout(60), serving(settings) as (server, address):
        headers = {"Authorization": f"Bearer {honest}"}
        async with connect(address, compression=None, additional_headers=headers) as connection:
            peer = Peer(connection)
            await peer.greet()
            target = Target("127.0.0.1", int(address.rpartition(":")[2]), attacking, "127.0.0.2")
            at_it = asyncio.create_task(flood.run(target, Tally()))
            while not any(counted(server, code) for code in flood.met_by):
                assert not at_it.done()
                await asyncio.sleep(0.01)
            if flood.rounds == "barrier":
                assert await peer.generate(0, PROMPT) == target_text(PROMPT, 8)
            at_it.cancel()
            await asyncio.wait([at_it])
