"""`make demo`: one server, six agents as processes of their own, real prompts, one summary.

Every agent also gets one prompt in common with all the others. Whatever drafts, the target's text comes out: the
summary says whether it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tempfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bench.processes import Start, serving, start
from goodspeed.errors import GoodSpeedError
from goodspeed.scenarios.prompts import Prompt, bundled_prompts
from goodspeed.snapshot import ServerSnapshot
from goodspeed_agent.report import Speculation
from goodspeed_bench.proxy import proxied
from goodspeed_bench.toxics import Latency
from goodspeed_server.monitor import fetch_snapshot, snapshots, top

__all__ = ["main", "show"]

DRAFTERS = ("pico-draft-l-tuned", "pico-draft-l", "pico-draft-m", "pico-draft-s", "suffix", "none")
SLOW = "pico-draft-s"
"""Which of them `--slow-link-ms` is for."""
FIRST_LIGHT = "suffix"
"""From here on drafters have nothing to load; they start when the others have, so that all are at work together."""
STREAMS_PER_AGENT = 2
PROMPTS_PER_AGENT = 3
TEMPERATURE = 0.7
POLICY = ("--scheduler", "goodspeed")
"""The default schedule would let few of them draft: agents that share two cores with the server are no help to it.
The paper's spends the capacity it has, so that there is something to see."""


class Result(msgspec.Struct, frozen=True):
    """What the demo reads of a line of an agent's results."""

    text: str
    tokens: tuple[int, ...]
    speculative: Speculation


@dataclass(frozen=True, slots=True)
class AgentRun:
    """What one agent brought home."""

    drafter: str
    prompts: Sequence[Prompt]
    results: Sequence[Result]
    tokens_per_s: float
    """As the agent says itself: from when it was linked up, so that loading a draft model does not count."""


def main(
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of each text.")] = 120,
    timeout_s: Annotated[float, typer.Option(help="Give up after this long.")] = 110.0,
    slow_link_ms: Annotated[float, typer.Option(help=f"Delay what {SLOW} says and hears by so much.", min=0)] = 0.0,
    record: Annotated[Path | None, typer.Option(help="Write what the monitor saw here, for bench.picture.")] = None,
) -> None:
    """Show the whole system at work."""
    console = Console()
    failed = False
    try:
        uvloop.run(show(console, max_new_tokens, timeout_s, slow_link_ms, record))
    except* TimeoutError:
        console.print(f"the demo failed: it took longer than {timeout_s:g} s", style="bold")
        failed = True
    except* GoodSpeedError as errors:
        console.print(f"the demo failed: {errors.exceptions[0]}", style="bold")
        failed = True
    if failed:
        raise typer.Exit(1)


async def show(
    console: Console,
    max_new_tokens: int,
    timeout_s: float,
    slow_link_ms: float = 0.0,
    record: Path | None = None,
    start: Start = start,
) -> None:
    """Run it, as `main` is told to, with processes that are started in this way.

    Raises:
        GoodSpeedError: something did not start, failed, or wrote another text.
        TimeoutError: it took longer than that.
    """
    async with (
        asyncio.timeout(timeout_s),
        serving(*POLICY, start=start) as address,
        _slowed(address, slow_link_ms) as slow_address,
    ):
        console.print(f"the server is {address}; {len(DRAFTERS)} agents link up: {', '.join(DRAFTERS)}")
        watching = top(address, once=False, as_json=False, console=console)
        async with _beside(watching), _beside(_recording(address, record)):
            runs = await _run_agents(address, slow_address, max_new_tokens, start)
            snapshot = await fetch_snapshot(address)
    if snapshot.drafted == 0:
        raise GoodSpeedError("nobody has drafted anything")
    _show_texts(console, runs)
    _show_summary(console, runs, snapshot)
    texts = {run.results[0].tokens for run in runs}
    if len(texts) != 1:
        raise GoodSpeedError(f"the prompt all agents share gave {len(texts)} different texts")
    console.print(f"lossless: {len(runs)} drafters, one prompt in common, T = {TEMPERATURE}: token for token one text")


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Let something run that ends with the block, however that ends."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # a block that has failed says so itself


@contextlib.asynccontextmanager
async def _slowed(address: str, delay_ms: float) -> AsyncIterator[str]:
    """The same server, behind a link that delays whatever is said by so much, each way."""
    if not delay_ms:
        yield address
        return
    server = urlsplit(address)
    delay = Latency(delay_ms)
    async with proxied(server.hostname or "", server.port or 0, [("upstream", delay), ("downstream", delay)]) as port:
        yield f"ws://127.0.0.1:{port}"


async def _run_agents(address: str, slow_address: str, max_new_tokens: int, start: Start) -> list[AgentRun]:
    """Start the agents, the light ones first, and wait for all their texts."""
    common, *others = bundled_prompts()
    own = PROMPTS_PER_AGENT - 1
    agents: list[asyncio.Task[AgentRun]] = []
    with tempfile.TemporaryDirectory() as folder:
        async with asyncio.TaskGroup() as tasks:
            for i, drafter in enumerate(DRAFTERS):
                if drafter == FIRST_LIGHT:
                    # Agents that have written all they were asked for are gone, and nobody needs to wait for them.
                    linked = tasks.create_task(_linked(address, i))
                    await asyncio.wait([linked, *agents], return_when=asyncio.FIRST_COMPLETED)
                    linked.cancel()
                prompts = [common, *others[own * i : own * (i + 1)]]
                where = slow_address if drafter == SLOW else address
                one = _agent(where, drafter, prompts, Path(folder), max_new_tokens, start)
                agents.append(tasks.create_task(one))
    return [agent.result() for agent in agents]


async def _linked(address: str, agents: int) -> None:
    """Wait until so many agents have linked up."""
    async with contextlib.aclosing(snapshots(address)) as arriving:
        async for snapshot in arriving:
            if len(snapshot.agents) >= agents:
                return


async def _recording(address: str, file: Path | None) -> None:
    """Write down snapshots, up to the last one with most agents at work."""
    if file is None:
        return
    most, unwritten = 0, b""
    file.write_bytes(b"")
    async with contextlib.aclosing(snapshots(address)) as arriving:
        async for snapshot in arriving:
            unwritten += snapshot.to_json() + b"\n"
            working = sum(agent.streams > 0 for agent in snapshot.agents)
            if working >= most:
                with file.open("ab") as recorded:
                    recorded.write(unwritten)
                most, unwritten = working, b""


async def _agent(
    address: str, drafter: str, prompts: Sequence[Prompt], folder: Path, max_new_tokens: int, start: Start
) -> AgentRun:
    """Run `goodspeed-agent` over a file of prompts."""
    todo, done = folder / f"{drafter}.jsonl", folder / f"{drafter}.out.jsonl"
    todo.write_text("".join(json.dumps({"id": p.id, "prompt": p.text}) + "\n" for p in prompts))
    process = await start(
        "goodspeed_agent", "run",
        "--server", address, "--name", f"edge-{drafter.removeprefix('pico-draft-')}", "--draft", drafter,
        "--prompts", str(todo), "--output", str(done), "--concurrency", str(STREAMS_PER_AGENT),
        "--max-new-tokens", str(max_new_tokens), "--temperature", str(TEMPERATURE), "--seed", "1",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if process.returncode != 0:
        raise GoodSpeedError(f"the agent with draft {drafter} failed: {said.decode().strip()[-500:]}")
    results = msgspec.json.Decoder(Result).decode_lines(done.read_bytes())
    return AgentRun(drafter, prompts, results, _last_rate(drafter, said.decode()))


def _last_rate(drafter: str, said: str) -> float:
    """The rate in the agent's last line of progress."""
    rates = re.findall(r"([\d.]+) tokens/s", said)
    if not rates:
        raise GoodSpeedError(
            f"the agent with draft {drafter} names no rate; it said: {said.strip()[-500:] or 'nothing'}"
        )
    return float(rates[-1])


def _show_texts(console: Console, runs: Sequence[AgentRun]) -> None:
    for run in runs:
        prompt, result = run.prompts[1], run.results[1]
        text = Text(prompt.text, style="dim")
        text.append(result.text, style="not dim")
        console.print(Panel(text, title=f"{prompt.id}, drafted by {run.drafter}", title_align="left"))


def _show_summary(console: Console, runs: Sequence[AgentRun], snapshot: ServerSnapshot) -> None:
    table = Table(
        title=f"{len(runs)} agents, {STREAMS_PER_AGENT} streams each, T = {TEMPERATURE}, target {snapshot.model}"
    )
    for heading in ("agent's draft", "texts", "tokens", "tokens/s once linked", "accepted", "tokens a verdict"):
        first = heading == "agent's draft"
        table.add_column(heading, justify="left" if first else "right", no_wrap=first)
    for run in runs:
        tokens = sum(len(result.tokens) for result in run.results)
        total = Speculation()
        for result in run.results:
            total.add(result.speculative)
        rate, length = total.draft_acceptance_rate, total.mean_acceptance_length
        table.add_row(
            run.drafter, str(len(run.results)), str(tokens), f"{run.tokens_per_s:.1f}",
            "-" if rate is None else f"{rate:.0%}", "1.00" if length is None else f"{length:.2f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"server: {snapshot.committed} tokens in {snapshot.rounds} rounds, {snapshot.mean_acceptance_length:.2f} "
        f"tokens a stream and round; engine busy for {snapshot.busy_s:.1f} s, {snapshot.speedup:.2f} times "
        "plain decoding's goodput per second of it"
    )


if __name__ == "__main__":
    typer.run(main)
