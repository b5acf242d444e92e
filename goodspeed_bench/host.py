"""A process in which agents are at work, told by a line of JSON what to do and answering with another.

Agents live apart from the server, so that neither's interpreter waits for the other's. They share a process among
themselves: after the rehearsal they do little but sleep, and each model and each draft is in memory once.
`python -m goodspeed_bench.host` reads commands until its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import msgspec
import uvloop
from msgspec import Struct

from goodspeed.credentials import Credentials
from goodspeed.errors import GoodSpeedError
from goodspeed.sampling import SamplingParams
from goodspeed.scenarios.prompts import bundled_prompts
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.ahead import AheadMode
from goodspeed_agent.drafters import Drafter, DraftSession, NoDrafter, SuffixDrafter, load_drafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_bench.drafting import Pace, Paced, Remembering
from goodspeed_bench.fleet import Edge
from goodspeed_bench.proxy import proxied

__all__ = ["Answer", "Command", "Host", "Load", "Rehearse", "Report", "Start", "Stop", "Swap", "Workload"]


class Workload(Struct, frozen=True):
    """What every edge's user asks for: a few texts, one after the other, round and round."""

    texts: int = 4
    new_tokens: int = 96
    temperature: float = 0.7

    def request(self, edge: Edge, number: int) -> TextRequest:
        """The same for every policy, and another for every edge."""
        prompts = bundled_prompts()
        prompt = prompts[(edge.number * self.texts + number) % len(prompts)]
        params = SamplingParams(self.temperature, seed=1000 * edge.number + number)
        return TextRequest(prompt.text, params, max_new_tokens=self.new_tokens, ignore_eos=True)

    def requests(self, edge: Edge) -> list[TextRequest]:
        """Everything that an edge's user asks for: its errands, where it has any."""
        if edge.errands:
            return [errand.request for errand in edge.errands]
        return [self.request(edge, number) for number in range(self.texts)]


class Start(Struct, frozen=True, tag=True):
    """Put these edges to work against a server; answered when all of them are linked to it."""

    address: str
    edges: tuple[Edge, ...]
    workload: Workload
    draft_ahead: AheadMode = "off"
    streams: int = 1
    """Of each edge, side by side."""
    remember: bool = True
    """Whether a draft model's guesses are functions of what went before, so that each is computed once."""


class Stop(Struct, frozen=True, tag=True):
    """Stop these edges, those of them that are here, or all; answered with their reports."""

    names: tuple[str, ...] | None = None


class Swap(Struct, frozen=True, tag=True):
    """Let an edge, if it is here, draft with something else from now on."""

    name: str
    draft: str


class Load(Struct, frozen=True, tag=True):
    """Have these drafts in memory before anybody counts on them."""

    drafts: tuple[str, ...]


class Rehearse(Struct, frozen=True, tag=True):
    """Learn every text from a server that decodes plainly, and draft so many tokens from each place in it."""

    address: str
    edges: tuple[Edge, ...]
    workload: Workload
    depth: int


Command: TypeAlias = Start | Stop | Swap | Load | Rehearse


class Told(Struct, frozen=True):
    """A text that is complete; when, on this machine's monotonic clock."""

    asked_at: float
    first_at: float
    done_at: float


class Report(Struct, frozen=True):
    """What an edge did from its start to its stop."""

    name: str
    texts: dict[int, list[int]]
    """As far as each was ever written."""
    torn: int
    """How often a text that was written again came out otherwise."""
    pace: Pace
    told: list[Told] = []


class Answer(Struct, frozen=True):
    """What a host says when a command is done."""

    reports: tuple[Report, ...] = ()
    error: str | None = None
    """Why it is not done, where that is the user's to know."""


@dataclass(slots=True)
class _Box:
    """An edge at work."""

    edge: Edge
    drafter: Paced
    linked: asyncio.Event = field(default_factory=asyncio.Event)
    texts: dict[int, list[int]] = field(default_factory=dict)
    torn: int = 0
    told: list[Told] = field(default_factory=list)

    @property
    def report(self) -> Report:
        """What it did."""
        return Report(self.edge.name, self.texts, self.torn, self.drafter.pace, self.told)

    def note(self, number: int, tokens: list[int]) -> None:
        """A text has come so far."""
        before = self.texts.get(number, [])
        longer, shorter = (tokens, before) if len(tokens) > len(before) else (before, tokens)
        self.torn += longer[: len(shorter)] != shorter
        self.texts[number] = longer


class Host:
    """Edges at work on this process's event loop.

    Args:
        folder: for the agents' tokenizers.
    """

    def __init__(self, folder: Path) -> None:
        self._cache = TokenizerCache(folder)
        self._drafters: dict[str, Drafter] = {}
        self._remembering: dict[str, Drafter] = {}
        self._at_work: dict[str, tuple[_Box, asyncio.Task[None]]] = {}

    async def obey(self, command: Command) -> Answer:
        """Carry a command out.

        Raises:
            GoodSpeedError: an agent could not do its work.
        """
        match command:
            case Start():
                await self._start(command)
            case Stop(names=names):
                return await self._stop([name for name in self._at_work if names is None or name in names])
            case Swap(name=name, draft=draft):
                if name in self._at_work:
                    box, _ = self._at_work[name]
                    box.drafter.swap(self._drafter(draft))
            case Load(drafts=drafts):
                for draft in drafts:
                    await asyncio.to_thread(self._drafter, draft)
            case Rehearse():
                for edge in command.edges:
                    await self._rehearse(command, edge)
        return Answer()

    def _drafter(self, name: str, *, remember: bool = True) -> Drafter:
        """The same for all who draft with it, but for one that keeps something of its own of every text."""
        if name not in self._drafters:
            self._drafters[name] = load_drafter(name)
        drafter = self._drafters[name]
        # A model's guess is worth remembering; how far a match is trusted depends on where a draft begins.
        if not remember or isinstance(drafter, SuffixDrafter | NoDrafter):
            return drafter
        return self._remembering.setdefault(name, Remembering(drafter))

    async def _start(self, command: Start) -> None:
        for edge in command.edges:
            box = _Box(edge, Paced(self._drafter(edge.draft, remember=command.remember), edge.draft_ms))
            self._at_work[edge.name] = box, asyncio.create_task(self._work(box, command))
        for box, task in (self._at_work[edge.name] for edge in command.edges):
            linking = asyncio.create_task(box.linked.wait())
            await asyncio.wait([linking, task], return_when=asyncio.FIRST_COMPLETED)
            linking.cancel()
            if task.done():
                task.result()

    async def _stop(self, names: Sequence[str]) -> Answer:
        stopped = [self._at_work.pop(name) for name in names]
        for _, task in stopped:
            task.cancel()
        for _, task in stopped:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        return Answer(tuple(box.report for box, _ in stopped))

    async def _work(self, box: _Box, command: Start) -> None:
        """One edge's users at their work, until cancelled."""
        url = urllib.parse.urlsplit(command.address)
        assert url.hostname is not None
        assert url.port is not None
        edge = box.edge
        async with (
            proxied(url.hostname, url.port, edge.toxics, seed=edge.number) as port,
            Agent(
                f"ws://127.0.0.1:{port}",
                box.drafter,
                name=edge.name,
                cache=self._cache,
                draft_ahead=command.draft_ahead,
                credentials=Credentials(edge.secret),
            ) as agent,
        ):
            box.linked.set()
            async with asyncio.TaskGroup() as users:
                if edge.errands:
                    users.create_task(_run_errands(agent, box))
                    return
                for first in range(command.streams):
                    users.create_task(_write(agent, box, command.workload, first))

    async def _rehearse(self, command: Rehearse, edge: Edge) -> None:
        drafter = self._drafter(edge.draft)
        async with Agent(command.address, drafter, name=edge.name, cache=self._cache) as agent:
            welcome = agent.link.welcome
            for request in command.workload.requests(edge):
                completion = await agent.complete(request)
                prompt = agent.encode(request.prompt)
                session = drafter.open(
                    request.params, rule=welcome.rule, vocab_size=welcome.vocab_size, prompt_tokens=len(prompt)
                )
                tokens = [*prompt, *completion.tokens]
                for end in range(len(prompt), len(tokens)):
                    await asyncio.to_thread(_guess, session, tokens[:end], command.depth)


def _guess(session: DraftSession, tokens: Sequence[int], depth: int) -> None:
    for _ in itertools.islice(session.guesses(tokens), depth):
        pass


async def _write(agent: Agent, box: _Box, workload: Workload, first: int) -> None:
    """One user's texts, one after the other, from the first on and round again."""
    for count in itertools.count(first):
        number = count % workload.texts
        text: list[int] = []

        def take(piece: Piece, text: list[int] = text) -> None:
            text += piece.tokens

        try:
            await agent.complete(workload.request(box.edge, number), take)
        finally:
            box.note(number, text)


async def _run_errands(agent: Agent, box: _Box) -> None:
    """One user's texts: each when its time has come, or when the last is there, and then round and round."""
    began_at = time.monotonic()
    errands = box.edge.errands
    timed = errands[0].at_s is not None
    for number, errand in enumerate(errands) if timed else itertools.cycle(enumerate(errands)):
        now = time.monotonic()
        asked_at = now + errand.pause_s if errand.at_s is None else began_at + errand.at_s
        await asyncio.sleep(max(0.0, asked_at - now))
        text: list[int] = []
        first_at: list[float] = []

        def take(piece: Piece, text: list[int] = text, first_at: list[float] = first_at) -> None:
            if piece.tokens and not first_at:
                first_at.append(time.monotonic())
            text += piece.tokens

        try:
            await agent.complete(errand.request, take)
            done_at = time.monotonic()
            box.told.append(Told(asked_at, first_at[0] if first_at else done_at, done_at))
        finally:
            box.note(number, text)


async def _serve() -> None:
    decoder = msgspec.json.Decoder(Command)
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder))
        while line := await asyncio.to_thread(sys.stdin.buffer.readline):
            try:
                answer = await host.obey(decoder.decode(line))
            except GoodSpeedError as error:
                answer = Answer(error=str(error))
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()
        await host.obey(Stop())


if __name__ == "__main__":
    uvloop.run(_serve())
