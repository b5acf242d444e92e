"""`make bench-links`: what agents' links cost one server process, while they are idle and while they write.

The server is the real one in a process of its own; only its engine is synthetic: a pass waits as long as it is told to,
as for a GPU, and a drafted token is right as often as its agent draws that it is. Agents are bare links in further
processes, one text at a time each, which they draft in as little processor time as can be. A server with `--links`
links is measured at rest and with some of them at work, and another one that has rows for fewer streams than want one.
How late the event loop is, the server asks itself every 5 ms, and a block counts once for each time that falls into it.
`python -m bench.links [--links 2000] [--seconds 20] [--json FILE]`
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.links.children import Child, child
from goodspeed.errors import GoodSpeedError

__all__ = ["main"]

AIM_LAG_MS = 50.0
_WARM_UP_LINKS = 64
"""That come and go before memory is looked at."""
_HELD = ("memory_bytes", "tasks", "descriptors")
_OF_IDLE = ("lag_ms", "process_cores")
_SETTLE_S = 5.0


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    links: int
    seconds: float
    processes: int
    """Of agents."""
    pass_ms: float
    token_us: float
    acceptance: float
    draft_ms: float
    scheduler: str
    profiles: Path | None


class _Agents:
    """All of them, whichever process plays them."""

    def __init__(self, players: Sequence[Child]) -> None:
        self._players = players

    async def link(self, count: int) -> None:
        """Link so many up."""
        await asyncio.gather(
            *(player.ask("link", first=first, count=share) for player, first, share in self._shares(count))
        )

    async def work(self, count: int) -> None:
        """Have so many of them write, and the others rest."""
        await asyncio.gather(*(player.ask("work", count=share) for player, _, share in self._shares(count)))

    async def watch(self, whether: bool) -> None:
        """Have somebody watch the server's monitor, or nobody any more."""
        await self._players[0].ask("watch", whether=whether)

    async def check(self) -> None:
        """See that nothing was refused but what met the end of its text on the way.

        Raises:
            GoodSpeedError: something was.
        """
        for player in self._players:
            refused = await player.ask("refused")
            if refused.keys() - {"unknown_stream"}:
                raise GoodSpeedError(f"the server refused agents something: {refused}")

    def _shares(self, count: int) -> list[tuple[Child, int, int]]:
        bounds = [count * number // len(self._players) for number in range(len(self._players) + 1)]
        shares = zip(self._players, itertools.pairwise(bounds), strict=True)
        return [(player, first, end - first) for player, (first, end) in shares]


@contextlib.asynccontextmanager
async def _played(address: str, plan: Plan) -> AsyncIterator[_Agents]:
    async with contextlib.AsyncExitStack() as stack:
        yield _Agents(
            [
                await stack.enter_async_context(
                    child("bench.links.agents", address, str(plan.acceptance), str(plan.draft_ms))
                )
                for _ in range(plan.processes)
            ]
        )


@contextlib.asynccontextmanager
async def _served(plan: Plan, rows: int) -> AsyncIterator[tuple[Child, str]]:
    """A server with so many rows, and its address."""
    options = {
        "rows": rows, "waiting": plan.links, "pass-ms": plan.pass_ms, "token-us": plan.token_us,
        "scheduler": plan.scheduler,
    }  # fmt: skip
    async with child("bench.links.server", *(f"--{name}={value}" for name, value in options.items())) as server:
        yield server, (await server.ask("where"))["address"]


async def _until(server: Child, reached: Callable[[dict[str, int]], bool]) -> dict[str, int]:
    """Look at what a server holds until that is as it is to be."""
    held: dict[str, int] = await server.ask("held")
    while not reached(held):
        await asyncio.sleep(0.5)
        held = await server.ask("held")
    return held


async def _measured(plan: Plan, rows: int, loads: Sequence[int]) -> dict[str, Any]:
    """One server, from nobody linked up to everybody at work."""
    async with _served(plan, rows) as (server, address):
        async with _played(address, plan) as agents:
            await agents.link(_WARM_UP_LINKS)
        before = await _until(server, lambda held: not held["links"])
        async with _played(address, plan) as agents:
            await agents.link(plan.links)
            idle = await _idle(plan, rows, server, agents, before)
            at_work = [{"at_work": load} | await _at_work(plan, rows, server, agents, load) for load in loads]
            await agents.check()
    return {"rows": rows, "idle": idle, "at_work": at_work}


async def _idle(plan: Plan, rows: int, server: Child, agents: _Agents, before: Mapping[str, int]) -> dict[str, Any]:
    """All links at rest, and then with somebody who watches them."""
    await asyncio.sleep(_SETTLE_S)
    after = await server.ask("held")
    held = {f"{name}_per_link": (after[name] - before[name]) / plan.links for name in _HELD}
    idle = await server.ask("measured", seconds=plan.seconds, profile=_profile(plan, rows, "idle"))
    await agents.watch(True)
    watched = await server.ask("measured", seconds=plan.seconds, profile=_profile(plan, rows, "watched"))
    await agents.watch(False)
    return held | {name: idle[name] for name in _OF_IDLE} | {"watched": {name: watched[name] for name in _OF_IDLE}}


async def _at_work(plan: Plan, rows: int, server: Child, agents: _Agents, load: int) -> dict[str, Any]:
    """Some links at work, from when most of them have their prompts behind them."""
    await agents.work(load)
    most = min(load, rows)
    await _until(server, lambda held: held["streams"] == most and held["prefilling"] <= most // 4)
    await asyncio.sleep(_SETTLE_S)
    measured: dict[str, Any] = await server.ask(
        "measured", seconds=plan.seconds, profile=_profile(plan, rows, f"{load}-at-work")
    )
    await agents.work(0)
    await _until(server, lambda held: not held["streams"])
    return measured


def _profile(plan: Plan, rows: int, what: str) -> str | None:
    return None if plan.profiles is None else str(plan.profiles / f"links-{rows}-rows-{what}.prof")


def main(
    links: Annotated[int, typer.Option(min=1)] = 2000,
    few_rows: Annotated[int, typer.Option(help="Of the second server, where most of them wait.", min=1)] = 256,
    seconds: Annotated[float, typer.Option(help="How long each load is measured.", min=1.0)] = 20.0,
    processes: Annotated[int, typer.Option(help="That play the agents.", min=1)] = 2,
    pass_ms: Annotated[float, typer.Option(help="How long a pass takes,")] = 30.0,
    token_us: Annotated[float, typer.Option(help="and how much longer for each token in it.")] = 10.0,
    acceptance: Annotated[float, typer.Option(help="Of a drafted token, if those before it are right.")] = 0.8,
    draft_ms: Annotated[float, typer.Option(help="How long an agent takes for one.")] = 3.0,
    scheduler: Annotated[str, typer.Option()] = "auto",
    profiles: Annotated[Path | None, typer.Option(help="A folder for what the loop's thread does; slower.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Measure, and print what came of it."""
    plan = Plan(links, seconds, processes, pass_ms, token_us, acceptance, draft_ms, scheduler, profiles)
    loads = [load for load in (64, 256) if load < links]
    typer.echo(
        f"{links} links; passes of {pass_ms:g} ms + {token_us:g} us a token; acceptance {acceptance:g}; "
        f"{os.cpu_count()} cores for the server and {processes} processes of agents"
    )
    servers = []
    for rows, loads_of_it in ((links, [*loads, links]), (few_rows, [links])):
        servers.append(asyncio.run(_measured(plan, rows, loads_of_it)))
        _report(servers[-1])
    if json_file is not None:
        figures = {"links": links, "cores": os.cpu_count()} | {
            name: getattr(plan, name)
            for name in ("processes", "pass_ms", "token_us", "acceptance", "draft_ms", "scheduler", "seconds")
        }
        json_file.write_text(
            json.dumps(figures | {"aim_lag_p99_ms": AIM_LAG_MS, "servers": servers}, indent=1) + "\n", encoding="utf-8"
        )


def _report(server: Mapping[str, Any]) -> None:
    idle = server["idle"]
    typer.echo(
        f"{server['rows']} rows, all links idle: {idle['memory_bytes_per_link'] / 1024:.1f} KiB, "
        f"{idle['tasks_per_link']:.2f} tasks and {idle['descriptors_per_link']:.2f} descriptors a link; "
        f"{idle['process_cores']:.1%} of a core; {_lag(idle)}; watched, {idle['watched']['process_cores']:.1%}; "
        f"{_lag(idle['watched'])}"
    )
    for load in server["at_work"]:
        typer.echo(
            f"{server['rows']} rows, {load['at_work']} at work: {_lag(load)}; {load['rounds_per_s']:.1f} rounds/s, "
            f"{load['tokens_per_s']:.0f} tokens/s, {load['drafted_per_s']:.0f} drafted/s, {load['accepted']:.2f} of "
            f"them accepted; the loop's thread {load['loop_cores']:.0%} of a core, the process "
            f"{load['process_cores']:.0%}; {load['streams']} streams, {load['waiting']} wait"
        )


def _lag(measured: Mapping[str, Any]) -> str:
    lag = measured["lag_ms"]
    return f"lag {lag['p50']:.1f} ms, p99 {lag['p99']:.1f} (aim {AIM_LAG_MS:g}), at most {lag['max']:.1f}"


if __name__ == "__main__":
    typer.run(main)
