"""A deployment that tunes itself, from beginning to end, with real processes.

A server that records and three agents, each with texts of one domain, all with the raw bundled draft; then, while they
work on, `goodspeed tune` upon what was recorded; then the agents take the tuned draft by SIGHUP, and after a while the
raw one again. Goodput is counted by the server, and every finished text is compared with the target's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import ENVIRONMENT, serving
from bench.recipe import corpus
from goodspeed.catalog import resolve
from goodspeed.errors import GoodSpeedError
from goodspeed_server.monitor import snapshots

__all__ = ["DOMAINS", "Experiment", "Phase", "Reading", "run"]

DRAFT = "pico-draft-l"
DOMAINS = ("code", "prose", "tests")
STREAMS = 3
DRAFTED_A_STREAM = 4
NEW_TOKENS = 96
TEMPERATURE = 0.7
OPENING_CHARACTERS = 240
PROMPTS = 3000
READING_S = 1.0
POLICY = ("--scheduler", "goodspeed", "--capacity", str(DRAFTED_A_STREAM * STREAMS * len(DOMAINS)))


@dataclass(frozen=True, slots=True)
class Reading:
    """What the server's snapshot said at one time; each by agent."""

    at_s: float
    committed: dict[str, int]
    alpha: dict[str, float]
    budget: dict[str, float]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the experiment."""

    name: str
    begin_s: float
    end_s: float


@dataclass(slots=True)
class Experiment:
    """All that was seen."""

    readings: list[Reading] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)
    texts: int = 0
    """Finished while drafts were recorded, tuned and swapped, and compared with the target alone."""
    different: int = 0

    def goodput(self, agent: str, phase: Phase) -> float:
        """Committed tokens per second of an agent in a phase."""
        inside = [one for one in self.readings if phase.begin_s <= one.at_s <= phase.end_s]
        first, last = inside[0], inside[-1]
        return (last.committed[agent] - first.committed[agent]) / (last.at_s - first.at_s)


async def run(folder: Path, *, seconds: float, steps: int, rows: int) -> Experiment:
    """Run it.

    Args:
        folder: for everything on the way; emptied first.
        seconds: of each phase in which goodput is compared.
        steps: of the tuning.
        rows: of 256 tokens that the target writes from the agents' prompts, beside what was recorded.

    Raises:
        GoodSpeedError: a process failed; its message says why.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_prompts(folder)
    point(folder, Path(resolve(DRAFT)))
    seen = Experiment()
    begun = time.monotonic()

    async def phase(name: str, lasting: float) -> None:
        begin = time.monotonic() - begun
        await asyncio.sleep(lasting)
        seen.phases.append(Phase(name, begin, time.monotonic() - begun))

    async with serving(*POLICY, "--record", str(folder / "shards")) as address, contextlib.AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(_agent(address, folder, domain)) for domain in DOMAINS]
        watching = asyncio.create_task(_watch(address, seen, begun))
        for agent in agents:
            await agent.linked.wait()
        await phase("raw", seconds)
        begin = time.monotonic() - begun
        await _tune(address, folder, steps, rows)
        seen.phases.append(Phase("tuning", begin, time.monotonic() - begun))
        await _swap(folder, folder / "tuned", agents)
        await phase("tuned", seconds)
        await _swap(folder, Path(resolve(DRAFT)), agents)
        await phase("raw again", seconds)
        watching.cancel()
        await asyncio.wait([watching])
    seen.card = json.loads((folder / "tuned" / "card.json").read_bytes())
    for domain in DOMAINS:
        texts, different = await _compare_with_the_target(folder, domain)
        seen.texts += texts
        seen.different += different
    return seen


def write_prompts(folder: Path) -> None:
    """A file of prompts for each agent, and one of all of them for the tuning; the bundled models never saw it."""
    documents = corpus.split(corpus.read_standard_library())["held_out"]
    rng = random.Random(0)
    everything = []
    for domain in DOMAINS:
        texts = [one.text for one in documents if one.domain == domain and len(one.text) > 2 * OPENING_CHARACTERS]
        lines = []
        for number in range(PROMPTS):
            text = rng.choice(texts)
            begin = text.rfind("\n", 0, rng.randrange(len(text) - OPENING_CHARACTERS)) + 1
            lines.append({"id": number, "prompt": text[begin : begin + OPENING_CHARACTERS], "seed": number})
        (folder / f"{domain}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        everything += [{"prompt": line["prompt"], "client": f"edge-{domain}"} for line in lines[-PROMPTS // 2 :]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in everything))


def point(folder: Path, draft: Path) -> None:
    """Let `folder/current`, which the agents draft with, be another model: in one step, as an operator would."""
    link = folder / "next"
    link.symlink_to(draft.resolve(), target_is_directory=True)
    link.replace(folder / "current")


@dataclass(slots=True)
class _Agent:
    process: Process
    linked: asyncio.Event = field(default_factory=asyncio.Event)
    swapped: asyncio.Event = field(default_factory=asyncio.Event)
    said: list[str] = field(default_factory=list)

    async def listen(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            text = line.decode()
            self.said.append(text)
            self.linked.set()
            if "drafting with" in text:
                self.swapped.set()


@contextlib.asynccontextmanager
async def _agent(address: str, folder: Path, domain: str) -> AsyncIterator[_Agent]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "goodspeed_agent", "run", "--verbose",
        "--server", address, "--name", f"edge-{domain}", "--draft", str(folder / "current"),
        "--prompts", str(folder / f"{domain}.jsonl"), "--output", str(folder / f"{domain}.out.jsonl"),
        "--concurrency", str(STREAMS), "--max-new-tokens", str(NEW_TOKENS),
        "--temperature", str(TEMPERATURE), "--domain", domain,
        stdout=asyncio.subprocess.DEVNULL, stderr=PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    agent = _Agent(process)
    listening = asyncio.create_task(agent.listen())
    try:
        yield agent
        if process.returncode is not None:
            raise GoodSpeedError(f"the agent for {domain} ended too soon: {''.join(agent.said[-3:])}")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await listening


async def _watch(address: str, seen: Experiment, begun: float) -> None:
    async with contextlib.aclosing(snapshots(address)) as arriving:
        async for snapshot in arriving:
            rows = {row.name: row for row in snapshot.agents}
            now = time.monotonic() - begun
            if len(rows) == len(DOMAINS) and (not seen.readings or now >= seen.readings[-1].at_s + READING_S):
                seen.readings.append(
                    Reading(
                        now,
                        {name: row.committed for name, row in rows.items()},
                        {name: row.alpha for name, row in rows.items()},
                        {name: row.budget for name, row in rows.items()},
                    )
                )


async def _tune(address: str, folder: Path, steps: int, rows: int) -> None:
    """By the commands that an operator would type."""
    state = await _output("-m", "goodspeed_server", "top", address, "--once", "--json")
    (folder / "state.json").write_text(state)
    while not any((folder / "shards").glob("*.safetensors")):
        await asyncio.sleep(1.0)
    said = await _output(
        "-m", "goodspeed", "tune", "--draft", DRAFT, "--out", str(folder / "tuned"),
        "--data", str(folder / "shards"), "--prompts", str(folder / "prompts.jsonl"), "--rows", str(rows),
        "--state", str(folder / "state.json"), "--loss", "utility", "--steps", str(steps),
        "--evaluate-every", str(max(1, steps // 4)), "--batch-rows", "8", "--threads", "1",
    )  # fmt: skip
    (folder / "tune.txt").write_text(said)


async def _swap(folder: Path, draft: Path, agents: Sequence[_Agent]) -> None:
    point(folder, draft)
    for agent in agents:
        agent.swapped.clear()
        agent.process.send_signal(signal.SIGHUP)
    for agent in agents:
        async with asyncio.timeout(60.0):
            await agent.swapped.wait()


async def _compare_with_the_target(folder: Path, domain: str) -> tuple[int, int]:
    """Let the target alone write every text that was finished: how many there are, and how many differ."""
    finished = [json.loads(line) for line in (folder / f"{domain}.out.jsonl").read_bytes().splitlines()]
    prompts = (folder / f"{domain}.jsonl").read_text().split("\n")[: len(finished)]
    (folder / f"{domain}.again.jsonl").write_text("".join(line + "\n" for line in prompts))
    async with serving(*POLICY) as address:
        await _output(
            "-m", "goodspeed_agent", "run", "--server", address, "--draft", "none", "--concurrency", "16",
            "--prompts", str(folder / f"{domain}.again.jsonl"), "--output", str(folder / f"{domain}.target.jsonl"),
            "--max-new-tokens", str(NEW_TOKENS), "--temperature", str(TEMPERATURE),
        )  # fmt: skip
    expected = [json.loads(line) for line in (folder / f"{domain}.target.jsonl").read_bytes().splitlines()]
    pairs = zip(finished, expected, strict=True)
    return len(finished), sum(ours["tokens"] != theirs["tokens"] for ours, theirs in pairs)


async def _output(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT
    )
    try:
        out, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if process.returncode != 0:
        raise GoodSpeedError(f"{' '.join(arguments[:3])} failed: {said.decode().strip()[-500:]}")
    return out.decode()
