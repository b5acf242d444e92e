"""What honest agents have beside an attacker who floods the server, and by what the server met it.

The server is a process of its own, as an operator starts it, with tokens, and with the limits that it sets others than
its own machine; honest agents, and newcomers that link up now and then, come from one address, the attacker from
another. Whatever is counted is the server's own: committed tokens of the honest agents for every second of the engine's
*busy* time, and for every second of *processor* time of the whole process, which also has the event loop's work for
the attacker. Tokens per second of the clock are given too; there the attacker has a core of the same machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidHandshake

from bench.attacks.attacker import attacking
from bench.attacks.floods import THROTTLED, Flood, RoundsName
from bench.attacks.sockets import Target
from bench.bare import linked
from bench.processes import serving
from goodspeed.credentials import Credentials
from goodspeed.sampling import SamplingParams
from goodspeed.scenarios.prompts import bundled_prompts
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.settings import FAILED_TOKENS_PER_MINUTE, HANDSHAKES_PER_MINUTE, LINKS_PER_ADDRESS
from goodspeed_server.tokens import TokenStore

__all__ = ["NOBODY", "Case", "beside"]

NOBODY = "nobody"
HONEST = 3
_ROWS = 8
_NEW_TOKENS = 96
_SOURCE = "127.0.0.2"
"""The attacker's address: as much a stranger's as any, where limits are set for loopback."""
_NEWCOMER_EVERY_S = 1.0
_SETTLE_S = 3.0
_OPTIONS = (
    "--max-streams", str(_ROWS), "--dtype", "float32",
    "--max-links-per-address", str(LINKS_PER_ADDRESS),
    "--handshakes-per-minute", str(HANDSHAKES_PER_MINUTE),
    "--failed-tokens-per-minute", str(FAILED_TOKENS_PER_MINUTE),
)  # fmt: skip
_ROUNDS: dict[RoundsName, tuple[str, ...]] = {"rolling": (), "barrier": ("--scheduler", "goodspeed")}


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the server has counted until now."""

    at_s: float
    tokens: int
    cpu_s: float
    busy_s: float
    rss_bytes: float
    throttled_s: float
    refusals: Counter[str]


@dataclass(frozen=True, slots=True)
class Case:
    """One run beside somebody."""

    seconds: float
    tokens: int
    """Committed to the honest agents."""
    cpu_s: float
    """Processor time of the server's process."""
    busy_s: float
    """Of the engine alone."""
    rss_grown_bytes: float
    """From before the attacker came to when it is still there."""
    throttled_s: float
    refusals: Counter[str]
    """By code, since before the attacker came."""
    linked_up_s: Sequence[float]
    """How long each newcomer took."""
    kept_out: int
    """Newcomers that were not let in."""
    got: dict[str, Any] = field(default_factory=dict)
    """What the attacker says it got."""

    def met(self, flood: Flood) -> list[str]:
        """By which of its defences an attacker was met."""
        return [code for code in flood.met_by if self.refusals[code] or (code == THROTTLED and self.throttled_s)]


class _Honest:
    """Agents that write one text after another, and how many tokens were committed to them."""

    def __init__(self) -> None:
        self.tokens = 0
        self.linked_up_s: list[float] = []
        """How long it took newcomers to be welcomed."""
        self.kept_out = 0
        """How many were not."""

    def _came(self, piece: Piece) -> None:
        self.tokens += len(piece.tokens)

    async def write_on(self, agent: Agent, number: int) -> None:
        """For ever."""
        prompts = bundled_prompts()
        for seed in range(number, 2**31, HONEST):
            prompt = prompts[seed % len(prompts)].text
            params = SamplingParams(0.8, seed=seed)
            request = TextRequest(prompt, params, max_new_tokens=_NEW_TOKENS, ignore_eos=True)
            await agent.complete(request, on_text=self._came)

    async def keep_linking_up(self, address: str, shown: Credentials) -> None:
        """As somebody who is new, for ever."""
        while True:
            began_s = time.monotonic()
            try:
                async with linked(address, "newcomer", shown):
                    self.linked_up_s.append(time.monotonic() - began_s)
            except (OSError, InvalidHandshake):  # of which a handshake that takes too long is one
                self.kept_out += 1
            await asyncio.sleep(_NEWCOMER_EVERY_S)


async def beside(rounds: RoundsName, cases: Sequence[str], turns: int, seconds: float) -> dict[str, list[Case]]:
    """Run all cases by turns, on one server.

    Args:
        rounds: of the server.
        cases: names of attackers and of their twins, or `NOBODY`.
        turns: how often each runs.
        seconds: how long one counts.

    Returns:
        By the name of each case, one for each turn.
    """
    found: dict[str, list[Case]] = {name: [] for name in cases}
    async with _world(rounds) as world:
        for turn in range(turns):
            for name in cases if turn % 2 == 0 else reversed(cases):
                found[name].append(await _case(world, name, seconds))
    return found


@dataclass(frozen=True, slots=True)
class _World:
    """A server, and honest agents at work."""

    address: str
    target: Target
    watching: str
    """The token of a monitor."""
    honest: _Honest
    working: Sequence[asyncio.Task[None]]

    async def read(self) -> _Reading:
        """What the server has counted until now.

        Raises:
            Exception: whatever ended an honest agent.
        """
        for task in self.working:
            if task.done():
                task.result()
        return await asyncio.to_thread(_read, self.address, self.watching, self.honest.tokens)


@contextlib.asynccontextmanager
async def _world(rounds: RoundsName) -> AsyncIterator[_World]:
    with tempfile.TemporaryDirectory() as scratch:
        folder, honest = Path(scratch), _Honest()
        store = TokenStore(folder / "tokens.json")
        edge, attacker = (store.create(name, "agent") for name in ("edge", "attacker"))
        watching = store.create("eye", "monitor")
        files = ("--tokens", str(folder / "tokens.json"), "--log-file", str(folder / "log"))
        async with contextlib.AsyncExitStack() as stack:
            address = await stack.enter_async_context(serving(*_OPTIONS, *_ROUNDS[rounds], *files))
            cache, shown = TokenizerCache(folder), Credentials(token=edge)
            agents = [
                await stack.enter_async_context(Agent(address, SuffixDrafter(), cache=cache, credentials=shown))
                for _ in range(HONEST)
            ]
            working = [asyncio.create_task(honest.write_on(agent, number)) for number, agent in enumerate(agents)]
            stack.push_async_callback(_end, working)
            working.append(asyncio.create_task(honest.keep_linking_up(address, shown)))
            url = urlsplit(address)
            assert url.hostname is not None
            assert url.port is not None
            yield _World(address, Target(url.hostname, url.port, attacker, _SOURCE), watching, honest, working)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _case(world: _World, name: str, seconds: float) -> Case:
    first = await world.read()
    async with contextlib.AsyncExitStack() as stack:
        got = {} if name == NOBODY else await stack.enter_async_context(attacking(name, world.target))
        await asyncio.sleep(_SETTLE_S)
        world.honest.linked_up_s.clear()
        world.honest.kept_out = 0
        before = await world.read()
        await asyncio.sleep(seconds)
        after = await world.read()
    return Case(
        seconds=after.at_s - before.at_s,
        tokens=after.tokens - before.tokens,
        cpu_s=after.cpu_s - before.cpu_s,
        busy_s=after.busy_s - before.busy_s,
        rss_grown_bytes=after.rss_bytes - first.rss_bytes,
        throttled_s=after.throttled_s - first.throttled_s,
        refusals=after.refusals - first.refusals,
        linked_up_s=tuple(world.honest.linked_up_s),
        kept_out=world.honest.kept_out,
        got=got,
    )


def _read(address: str, token: str, tokens: int) -> _Reading:
    url = address.replace("ws://", "http://") + "/metrics"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    at_s, values, refusals = time.monotonic(), {}, Counter[str]()
    for sample in (sample for family in families for sample in family.samples):
        if sample.name == "goodspeed_refusals_total":
            refusals[sample.labels["code"]] = int(sample.value)
        elif not sample.labels:
            values[sample.name] = sample.value
    return _Reading(
        at_s=at_s,
        tokens=tokens,
        cpu_s=values["process_cpu_seconds_total"],
        busy_s=values["goodspeed_busy_seconds_total"],
        rss_bytes=values["process_resident_memory_bytes"],
        throttled_s=values["goodspeed_throttled_seconds_total"],
        refusals=refusals,
    )
