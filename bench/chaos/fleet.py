"""The processes of a storm, and who starts them again: one server, and agents with a proxy each in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.chaos.faults import Fault, Kind
from bench.chaos.recovery import Cause, Recovery
from bench.chaos.texts import Ledger, Written, assignments, read_results, written_of
from bench.chaos.weather import Weather
from bench.processes import Process, Start
from goodspeed.errors import GoodSpeedError
from goodspeed_bench.proxy import proxied

__all__ = ["Chaos", "Storm"]

_TAIL = 2000
"""Bytes of what a process said last."""
_GO_ON = (4, 6)
"""Exit codes of an agent after which another gets what it has left: it found no server, or was refused some texts."""


@dataclass(frozen=True, slots=True)
class Storm:
    """What to put up with."""

    faults: Sequence[Fault]
    seconds: float
    agents: int
    streams: int
    """Of each agent, at once."""
    texts_per_run: int
    """So many texts an agent process is asked for before it ends by itself, and another begins."""
    orders: Sequence[dict[str, Any]]
    """The texts that there are; see `texts.orders`."""
    drafts: Sequence[str]
    """What the agents draft with, one after the other, and from the first again."""
    server_options: Sequence[str]
    seed: int
    patience_s: float = 300.0
    """How long an agent looks for its server, and how long the last texts may take when the storm is over."""


@dataclass
class _Agent:
    number: int
    weather: Weather
    address: str = ""
    process: Process | None = None
    killed: bool = False
    """Whether that process was, by us."""
    recovery: Recovery = field(default_factory=Recovery)
    told: int = 0
    """Verdicts, at least one in a piece."""


@dataclass
class Chaos:
    """Runs a storm.

    Args:
        storm: what to put up with.
        folder: for prompts, results and the agents' cache.
        start: starts processes.
        watch: is told what goes on.
    """

    storm: Storm
    folder: Path
    start: Start
    watch: Callable[[str], None] = lambda what: None
    ledger: Ledger = field(default_factory=lambda: Ledger({}))
    injected: defaultdict[Kind, int] = field(default_factory=lambda: defaultdict(int))
    recovered_s: defaultdict[Cause, list[float]] = field(default_factory=lambda: defaultdict(list))
    """From when a fault struck an agent to its first verdict over a connection that was made after it."""
    complaints: list[str] = field(default_factory=list)
    """Of processes that ended by themselves, and not as they should."""
    _over: bool = False
    _server: Process | None = None
    _server_said: asyncio.Task[str] | None = None
    _server_killed: bool = False
    _port: int = 0

    async def run(self) -> None:
        """Write every text undisturbed; then the storm, and after it all that is still asked for.

        Raises:
            GoodSpeedError: the undisturbed run failed, or a process could not be started.
            TimeoutError: texts do not end after the storm.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._end_server)
            await self._start_server()
            self.watch("writing every text undisturbed")
            self.ledger = Ledger(await self._undisturbed())
            agents = [await self._linked(number, stack) for number in range(self.storm.agents)]
            try:
                async with asyncio.TaskGroup() as group:
                    keeping = group.create_task(self._keep_server())
                    at_work = [group.create_task(self._keep(agent)) for agent in agents]
                    await self._weather(agents, at_work)
                    keeping.cancel()
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def _weather(self, agents: Sequence[_Agent], at_work: Sequence[asyncio.Task[None]]) -> None:
        """Wait until everybody is at work, break things, and wait for the last texts."""
        self.watch("waiting until every agent is at work")
        async with asyncio.timeout(self.storm.patience_s):
            while not all(agent.told for agent in agents):
                await asyncio.sleep(0.05)
        await self._break_things(agents)
        self._over = True
        self.watch("the storm is over; waiting for the last texts")
        async with asyncio.timeout(self.storm.patience_s):
            await asyncio.wait(at_work)

    async def _break_things(self, agents: Sequence[_Agent]) -> None:
        began_s = time.monotonic()
        for fault in self.storm.faults:
            await asyncio.sleep(max(0.0, began_s + fault.at_s - time.monotonic()))
            if self._strike(fault, agents):
                self.injected[fault.kind] += 1
                self.watch(f"{fault.at_s:6.1f} s: {fault.kind}, {self.ledger.compared} texts compared")
        await asyncio.sleep(max(0.0, began_s + self.storm.seconds - time.monotonic()))

    def _strike(self, fault: Fault, agents: Sequence[_Agent]) -> bool:
        """Whether there was anything to strike."""
        agent = agents[fault.agent]
        match fault.kind:
            case "kill server":
                if self._server is None or self._server.returncode is not None:
                    return False
                self._server_killed = True
                self._server.kill()
                for one in agents:
                    one.recovery.struck(fault.kind, time.monotonic())
            case "kill agent":
                if agent.process is None or agent.process.returncode is not None:
                    return False
                agent.killed = True
                agent.process.kill()
                agent.recovery.struck(fault.kind, time.monotonic())
            case "reset":
                # It counts when it happens.
                agent.weather.cut("upstream" if fault.upstream else "downstream", fault.after_bytes)
                return False
            case "stall":
                agent.weather.stall(fault.lasts_s)
            case "delay":
                agent.weather.delay(fault.lasts_s, fault.delay_ms)
            case "slice":
                agent.weather.slice(fault.lasts_s, fault.slice_bytes)
        return True

    async def _linked(self, number: int, stack: contextlib.AsyncExitStack) -> _Agent:
        """An agent to be, and the proxy that it will go through."""

        def cut() -> None:
            self.injected["reset"] += 1
            agent.recovery.struck("reset", time.monotonic())

        def told(opened_at: float) -> None:
            agent.told += 1
            over = agent.recovery.told(time.monotonic(), opened_at)
            if over is not None:
                cause, seconds = over
                self.recovered_s[cause].append(seconds)

        agent = _Agent(number, Weather(time.monotonic, cut, told))
        port = await stack.enter_async_context(
            proxied("127.0.0.1", self._port, agent.weather.toxics, seed=self.storm.seed + number)
        )
        agent.address = f"ws://127.0.0.1:{port}"
        return agent

    async def _keep(self, agent: _Agent) -> None:
        """Have an agent write, file after file, and start it again where it is killed, for what it has not written."""
        noise = random.Random(f"{self.storm.seed}/{agent.number}")
        for run, wanted in enumerate(assignments(len(self.storm.orders), self.storm.texts_per_run, noise)):
            left = wanted
            self.ledger.asked += len(wanted)
            attempt = 0
            while left:
                name = f"agent-{agent.number}-{run}-{attempt}"
                results = await self._write(agent, left, name)
                self.ledger.note([results[number] for number in left if number in results])
                left = [number for number in left if number not in results]
                attempt += 1
            if self._over:
                return

    async def _write(self, agent: _Agent, wanted: Sequence[int], name: str) -> dict[int, dict[str, Any]]:
        """One life of an agent process: the results that it has left behind."""
        agent.killed = False
        draft = self.storm.drafts[agent.number % len(self.storm.drafts)]
        agent.process = await self._start_agent(agent.address, wanted, name, self.storm.streams, draft)
        code, said = await _ended(agent.process)
        if code != 0 and not agent.killed:
            self.complaints.append(f"{name} ended with {code}: {said}")
            if code not in _GO_ON:
                raise GoodSpeedError(self.complaints[-1])
        return read_results(self.folder / f"{name}.results")

    async def _start_agent(self, address: str, wanted: Sequence[int], name: str, streams: int, draft: str) -> Process:
        prompts, results = self.folder / f"{name}.prompts", self.folder / f"{name}.results"
        prompts.write_text("".join(json.dumps(self.storm.orders[one]) + "\n" for one in wanted), encoding="utf-8")
        return await self.start(
            "goodspeed_agent", "run", "--server", address, "--prompts", str(prompts), "--output", str(results),
            "--concurrency", str(streams), "--draft", draft, "--name", name,
            "--connect-timeout", str(self.storm.patience_s),
        )  # fmt: skip

    async def _undisturbed(self) -> dict[int, Written]:
        everything = range(len(self.storm.orders))
        process = await self._start_agent(f"ws://127.0.0.1:{self._port}", everything, "undisturbed", 8, "none")
        code, said = await _ended(process)
        results = read_results(self.folder / "undisturbed.results")
        if code != 0 or len(results) != len(everything):
            raise GoodSpeedError(f"the undisturbed run ended with {code}: {said}")
        return {number: written_of(result) for number, result in results.items()}

    async def _start_server(self) -> None:
        self._server = await self.start(
            "goodspeed_server", "run", "--port", str(self._port), "--threads", "1", "--dtype", "float32",
            "--max-streams", str(self.storm.agents * self.storm.streams), *self.storm.server_options,
        )  # fmt: skip
        self._server_killed = False
        self._server_said = asyncio.create_task(_tail(self._server.stderr))
        assert self._server.stdout is not None
        line = (await self._server.stdout.readline()).decode()
        if line.startswith("listening on "):
            self._port = int(line.rpartition(":")[2])
        elif not self._server_killed:
            raise GoodSpeedError(f"the server did not start: {await self._server_said}")

    async def _keep_server(self) -> None:
        while True:
            assert self._server is not None
            assert self._server_said is not None
            code, said = await asyncio.gather(self._server.wait(), self._server_said)
            if not self._server_killed:
                self.complaints.append(f"the server ended with {code}: {said}")
            await self._start_server()

    async def _end_server(self) -> None:
        if self._server is None or self._server.returncode is not None:
            return
        self._server.terminate()
        assert self._server_said is not None
        code = await self._server.wait()
        if code != 0:
            self.complaints.append(f"the server, told to end, ended with {code}: {await self._server_said}")


async def _ended(process: Process) -> tuple[int, str]:
    """Wait for a process that does not outlive this: how it ended, and what it said last."""
    try:
        code, said = await asyncio.gather(process.wait(), _tail(process.stderr))
        return code, said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _tail(stream: asyncio.StreamReader | None) -> str:
    """Read to the end, so that nobody blocks for a full pipe, and keep the last of it."""
    kept = b""
    while stream is not None and (piece := await stream.read(2**16)):
        kept = (kept + piece)[-_TAIL:]
    return kept.decode(errors="replace").strip()
