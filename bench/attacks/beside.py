"""What honest agents have beside an attacker who floods the server, and by what the server met it.

The server is a process of its own, as an operator starts it, with tokens, and with the limits that it sets others than
its own machine. Honest agents, and newcomers that link up, come from one address, and each attacker from one that
nobody came from before, so that no limit that an earlier one met holds it back. A case ends when nothing of its
attacker is left at the server; which cases are compared, `pairing.py` says. In the control of an attacker that has no
twin it attacks another server of the same machine, at which nobody works: else what attackers themselves compute on a
machine of two cores, and its kernel with them, would count as what they do to the server.

All cases are about the same texts, from the first one on. Whatever is counted is the server's own: committed tokens of
the honest agents for every second of the engine's *busy* time, and for every second of *processor* time of the whole
process, which also has the event loop's work for the attacker. A machine that is shared is one second faster than the
next, by more than is looked for here, as the attacker shows that does nothing. Whatever its speed, an attacker can take
from others two things: processor time that passes would have had, and tokens that a pass would have brought. What is
left of both, multiplied, is what honest agents have *kept*, and is held against the aim. Tokens per second of the clock
are given too; there the attacker has a core of the same machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.attacks.attacker import attacking
from bench.attacks.cases import Case
from bench.attacks.floods import RoundsName
from bench.attacks.newcomers import newcomers
from bench.attacks.pairing import Compared, between_controls
from bench.attacks.readings import Present, Reading, read
from bench.attacks.sockets import Target
from bench.processes import serving
from goodspeed.credentials import Credentials
from goodspeed.errors import GoodSpeedError
from goodspeed.sampling import SamplingParams
from goodspeed.scenarios.prompts import bundled_prompts
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.settings import FAILED_TOKENS_PER_MINUTE, HANDSHAKES_PER_MINUTE, LINKS_PER_ADDRESS
from goodspeed_server.tokens import TokenStore

__all__ = ["beside"]

HONEST = 3
_ALONE = Present(links=HONEST, agents=HONEST, pending=1)
"""The honest agents, and whoever reads this."""
_ROWS = 8
_NEW_TOKENS = 96
_SETTLE_S = 3.0
"""For an attacker to get going, and to use up what it has at once; it does not count."""
_GONE_WITHIN_S = 30.0
"""The server gives up within 10 s on whoever does not shake hands, or does not part."""
_LOOK_EVERY_S = 0.25
_OPTIONS = (
    "--max-streams", str(_ROWS), "--dtype", "float32",
    "--max-links-per-address", str(LINKS_PER_ADDRESS),
    "--handshakes-per-minute", str(HANDSHAKES_PER_MINUTE),
    "--failed-tokens-per-minute", str(FAILED_TOKENS_PER_MINUTE),
)  # fmt: skip
_ROUNDS: dict[RoundsName, tuple[str, ...]] = {"rolling": (), "barrier": ("--scheduler", "goodspeed")}


class _Honest:
    """Agents that write one text after another, and how many tokens were committed to them.

    Args:
        agents: those.
    """

    def __init__(self, agents: Sequence[Agent] = ()) -> None:
        self.tokens = 0
        self._agents = agents
        self._working: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Write from the first text on, whatever was written before: some texts are drafted with less work than others.

        Raises:
            Exception: whatever ended one of them before.
        """
        await self.end()
        self._working = [
            asyncio.create_task(self._write_on(agent, number)) for number, agent in enumerate(self._agents)
        ]

    async def end(self) -> None:
        """Write no more; raises as `check`."""
        self.check()
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        self._working = []

    def check(self) -> None:
        """See that all of them write.

        Raises:
            Exception: whatever ended one.
        """
        for task in self._working:
            if task.done():
                task.result()

    def _came(self, piece: Piece) -> None:
        self.tokens += len(piece.tokens)

    async def _write_on(self, agent: Agent, number: int) -> None:
        """For ever."""
        prompts = bundled_prompts()
        for seed in range(number, 2**31, HONEST):
            prompt = prompts[seed % len(prompts)].text
            params = SamplingParams(0.8, seed=seed)
            request = TextRequest(prompt, params, max_new_tokens=_NEW_TOKENS, ignore_eos=True)
            await agent.complete(request, on_text=self._came)


async def beside(
    rounds: RoundsName, control: str | None, attackers: Sequence[str], turns: int, seconds: float
) -> dict[str, list[Compared[Case]]]:
    """Run all cases on one server.

    Args:
        rounds: of the server.
        control: the twin that sits in an attacker's place in a control; None for the attacker itself, elsewhere.
        attackers: their names.
        turns: how often each runs.
        seconds: how long a case counts.

    Returns:
        By the name of each attacker, one comparison for each turn.

    Raises:
        GoodSpeedError: an attacker failed, or something of it stays at the server.
    """
    async with _world(rounds) as world:
        numbers = itertools.count()
        found: dict[str, list[Compared[Case]]] = {}
        for attacker in attackers:

            async def run(name: str | None, _: int, attacker: str = attacker) -> Case:
                elsewhere = name is None and control is None
                who = name or control or attacker
                return await _case(world, who, _source(next(numbers)), seconds, elsewhere=elsewhere)

            found |= await between_controls([attacker], turns, run)
        return found


def _source(number: int) -> str:
    """An address of loopback: as much a stranger's as any, where limits are set for loopback."""
    network, host = divmod(number, 254)
    return f"127.0.{1 + network}.{1 + host}"


@dataclass(frozen=True, slots=True)
class _World:
    """A server, and honest agents at work."""

    address: str
    elsewhere: str
    """The address of a server like it, at which nobody works."""
    shown: Credentials
    """By who is honest."""
    token: str
    """An agent's, that attackers were handed."""
    watching: str
    """The token of a monitor."""
    honest: _Honest

    def target(self, source: str, *, elsewhere: bool) -> Target:
        """It, or the other server, for an attacker who comes from this address."""
        url = urlsplit(self.elsewhere if elsewhere else self.address)
        assert url.hostname is not None
        assert url.port is not None
        return Target(url.hostname, url.port, self.token, source)

    async def read(self) -> tuple[Reading, int]:
        """What the server has counted until now, and how many tokens were committed to honest agents.

        Raises:
            Exception: whatever ended an honest agent.
        """
        self.honest.check()
        reading = await asyncio.to_thread(read, self.address, self.watching)
        return reading, self.honest.tokens

    async def rest(self, behind: str) -> None:
        """Wait until honest agents are alone.

        Args:
            behind: who was there, and is being waited for to go.

        Raises:
            GoodSpeedError: something of it stays.
        """
        deadline_s = time.monotonic() + _GONE_WITHIN_S
        while (reading := (await self.read())[0]).present != _ALONE:
            if time.monotonic() > deadline_s:
                raise GoodSpeedError(
                    f"{_GONE_WITHIN_S:g} s after {behind!r} had gone the server still has "
                    f"{reading.present}, where honest agents alone are {_ALONE}: see what its links wait for"
                )
            await asyncio.sleep(_LOOK_EVERY_S)


@contextlib.asynccontextmanager
async def _world(rounds: RoundsName) -> AsyncIterator[_World]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = TokenStore(folder / "tokens.json")
        edge, attacker = (store.create(name, "agent") for name in ("edge", "attacker"))
        watching = store.create("eye", "monitor")
        options = (*_OPTIONS, *_ROUNDS[rounds], "--tokens", str(folder / "tokens.json"), "--log-file")
        async with contextlib.AsyncExitStack() as stack:
            address, elsewhere = [
                await stack.enter_async_context(serving(*options, str(folder / log))) for log in ("log", "elsewhere")
            ]
            cache, shown = TokenizerCache(folder), Credentials(token=edge)
            agents = [
                await stack.enter_async_context(Agent(address, SuffixDrafter(), cache=cache, credentials=shown))
                for _ in range(HONEST)
            ]
            honest = _Honest(agents)
            stack.push_async_callback(honest.end)
            await honest.begin()
            yield _World(address, elsewhere, shown, attacker, watching, honest)


async def _case(world: _World, name: str, source: str, seconds: float, *, elsewhere: bool) -> Case:
    first, _ = await world.read()
    async with attacking(name, world.target(source, elsewhere=elsewhere)) as got:
        await asyncio.sleep(_SETTLE_S)
        await world.honest.begin()
        before, tokens_before = await world.read()
        async with newcomers(world.address, world.shown) as came:
            await asyncio.sleep(seconds)
        after, tokens = await world.read()
    await world.rest(name)
    return Case(
        seconds=after.at_s - before.at_s,
        tokens=tokens - tokens_before,
        cpu_s=after.cpu_s - before.cpu_s,
        busy_s=after.busy_s - before.busy_s,
        passes=after.passes - before.passes,
        rss_grown_bytes=after.rss_bytes - first.rss_bytes,
        throttled_s=after.throttled_s - first.throttled_s,
        refusals=after.refusals - first.refusals,
        newcomers=came,
        got=got,
    )
