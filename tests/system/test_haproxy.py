"""Three servers behind the HAProxy that we ship a configuration for, one of which dies in the middle of texts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.drafters import load_drafter
from goodspeed_agent.report import Completion
from goodspeed_agent.tokenizer import TokenizerCache
from tests.system.processes import REPOSITORY, address_of, get, reaped, start_server

# Debian puts it where only root looks.
HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(
    HAPROXY is None,
    reason="HAProxy is not installed, so that no server was killed behind it: apt-get install haproxy",
)

SHIPPED = REPOSITORY / "server" / "balancing" / "haproxy.cfg"
SERVER = ("--dtype", "float32", "--scheduler", "goodspeed", "--max-streams", "4")
PROMPTS = ("def quicksort(items):\n",)
PARAMS = (SamplingParams(), SamplingParams(temperature=0.8, seed=11))
PATIENCE_S = 120.0
"""Of the agents: a second is usual."""


async def test_a_server_that_is_killed_behind_haproxy_changes_no_text(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as running:
        servers = [await running.enter_async_context(reaped(await start_server(*SERVER))) for _ in range(3)]
        addresses = [await address_of(server) for server in servers]
        async with haproxy(tmp_path, addresses) as front, three_agents(front, tmp_path) as agents:
            undisturbed = await write(agents)
            # Each has a server of its own.
            assert await links(addresses) == [1, 1, 1]
            begun = [asyncio.Event() for _ in agents]
            writing = asyncio.create_task(write(agents, begun))
            await asyncio.gather(*(event.wait() for event in begun))
            servers[0].kill()
            await servers[0].wait()
            assert await writing == undisturbed
            assert sorted(agent.link.reconnections for agent in agents) == [0, 0, 1]
            assert sorted(await links(addresses[1:])) == [1, 2]


async def test_the_shipped_configuration_is_one(tmp_path: Path) -> None:
    assert await checked(as_here(tmp_path, [f"ws://127.0.0.1:{port}" for port in (1, 2, 3)], "127.0.0.1:4")) == (0, "")


async def write(agents: list[Agent], begun: list[asyncio.Event] | None = None) -> list[list[list[int]]]:
    """The texts of each agent, as tokens, all written side by side; says where all of an agent's have begun."""

    async def one(agent: Agent, event: asyncio.Event | None) -> list[list[int]]:
        left = len(PROMPTS) * len(PARAMS)

        async def text(prompt: str, params: SamplingParams) -> Completion:
            heard = False

            def hear(piece: Piece) -> None:
                nonlocal heard, left
                if piece.tokens and not heard:
                    heard, left = True, left - 1
                    if event is not None and left == 0:
                        event.set()

            return await agent.complete(TextRequest(prompt, params, max_new_tokens=80, ignore_eos=True), hear)

        texts = [text(prompt, params) for prompt in PROMPTS for params in PARAMS]
        return [completion.tokens for completion in await asyncio.gather(*texts)]

    events: list[asyncio.Event | None] = [*begun] if begun else [None] * len(agents)
    return list(await asyncio.gather(*map(one, agents, events)))


@contextlib.asynccontextmanager
async def three_agents(front: str, folder: Path) -> AsyncIterator[list[Agent]]:
    backoff = Backoff(first_s=0.05, longest_s=0.2, give_up_after_s=PATIENCE_S, rng=random.Random(1))
    cache = TokenizerCache(folder)
    async with contextlib.AsyncExitStack() as linked:
        agents = [
            Agent(front, load_drafter("suffix"), name=name, cache=cache, backoff=backoff)
            for name in ("left", "middle", "right")
        ]
        yield [await linked.enter_async_context(agent) for agent in agents]


@contextlib.asynccontextmanager
async def haproxy(folder: Path, servers: list[str]) -> AsyncIterator[str]:
    """One with the shipped configuration in front of these servers; yields its address, where it will be soon."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"127.0.0.1:{free.getsockname()[1]}"
    configuration = as_here(folder, servers, place)
    assert await checked(configuration) == (0, "")
    assert HAPROXY is not None
    process = await asyncio.create_subprocess_exec(
        HAPROXY, "-db", "-f", str(configuration), stdout=DEVNULL, stderr=PIPE
    )
    async with reaped(process):
        assert process.stderr is not None
        reading = asyncio.create_task(process.stderr.read())
        yield f"ws://{place}"
        assert process.returncode is None, await reading
        process.terminate()
        await process.wait()
        await reading


def as_here(folder: Path, servers: list[str], place: str) -> Path:
    """The shipped configuration, with this test's addresses and pace, and a server more."""
    text = SHIPPED.read_text(encoding="utf-8")
    changes = {
        "bind :8765": f"bind {place}",
        "gpu-1.example:8765": urlsplit(servers[0]).netloc,
        "gpu-2.example:8765": urlsplit(servers[1]).netloc,
        "inter 2s": "inter 100ms",
    }
    for shipped, here in changes.items():
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, here)
    text += f"    server three {urlsplit(servers[2]).netloc}\n"
    configuration = folder / "haproxy.cfg"
    configuration.write_text(text)
    return configuration


async def checked(configuration: Path) -> tuple[int | None, str]:
    """The exit status of HAProxy's own check, and what it complains of."""
    assert HAPROXY is not None
    process = await asyncio.create_subprocess_exec(
        HAPROXY, "-c", "-q", "-f", str(configuration), stdout=DEVNULL, stderr=PIPE
    )
    _, complaints = await process.communicate()
    return process.returncode, complaints.decode()


async def links(addresses: list[str]) -> list[float]:
    """How many agents each server has, by its own account."""
    found = []
    for address in addresses:
        status, text = await asyncio.to_thread(get, f"http://{urlsplit(address).netloc}/metrics")
        assert status == 200
        (line,) = (line for line in text.splitlines() if line.startswith("goodspeed_agents "))
        found.append(float(line.split()[1]))
    return found
