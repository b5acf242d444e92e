"""The boxes that are emulated, their links, and what their users ask for."""

from __future__ import annotations

from msgspec import Struct

from goodspeed.sampling import SamplingParams
from goodspeed.scenarios.people import people
from goodspeed.scenarios.scenario import Scenario
from goodspeed_agent.agent import TextRequest
from goodspeed_bench.toxics import Bandwidth, Latency, Toxics

__all__ = ["Edge", "Errand", "co_located", "edges_of"]


class Errand(Struct, frozen=True):
    """A text that an edge's user asks for."""

    prompt: str
    seed: int
    temperature: float
    new_tokens: int | None
    max_draft: int
    chat: bool = False
    at_s: float | None = None
    """When, behind the edge's start, whatever has become of the texts before; None: when the last is there."""
    pause_s: float = 0.0
    """Before it, where it waits for the last."""

    @property
    def request(self) -> TextRequest:
        """What the agent is asked for."""
        return TextRequest(
            [{"role": "user", "content": self.prompt}] if self.chat else self.prompt,
            SamplingParams(self.temperature, seed=self.seed),
            max_new_tokens=self.new_tokens,
            ignore_eos=not self.chat,
            max_draft=self.max_draft,
        )


class Edge(Struct, frozen=True):
    """One box and its link."""

    name: str
    draft: str
    """What it drafts with, as `drafters.load_drafter` knows it."""
    draft_ms: float
    """Time for one drafted token; a draft of k tokens takes k times this, and nothing else."""
    round_trip_ms: float
    """On average."""
    jitter_ms: float = 0.0
    """Of each way, give or take."""
    kbytes_per_s: float | None = 1250.0
    """10 Mbit/s both ways: what a draft or a verdict weighs hardly matters, and that it does not is part of the design;
    None for no limit."""
    place: int | None = None
    """Where it stands among the others, from 1; None: the number in its name."""
    secret: str | None = None
    """The token it shows the server."""
    errands: tuple[Errand, ...] = ()
    """In the order in which they are run; none for whatever the workload says."""

    @property
    def number(self) -> int:
        """Its own among the others."""
        return int(self.name.rpartition("-")[2]) if self.place is None else self.place

    @property
    def toxics(self) -> Toxics:
        """Of its link; none for a box without distance."""
        if not self.round_trip_ms:
            return ()
        latency = Latency(self.round_trip_ms / 2, self.jitter_ms)
        if self.kbytes_per_s is None:
            return (("upstream", latency), ("downstream", latency))
        bandwidth = Bandwidth(self.kbytes_per_s)
        return (
            ("upstream", bandwidth), ("upstream", latency), ("downstream", bandwidth), ("downstream", latency),
        )  # fmt: skip


def co_located(edge: Edge, draft: str) -> Edge:
    """The same user, whose drafts are made on the server's machine: no way to go, and no box of its own to wait for."""
    return Edge(edge.name, draft, 0.0, 0.0, place=edge.place)


def edges_of(scenario: Scenario, seed: int) -> list[Edge]:
    """The boxes and links of a scenario's agents, without what their users ask for."""
    return [
        Edge(
            name=person.name,
            draft=person.group.draft,
            draft_ms=person.draft_ms,
            # A scenario's jitter is added, never taken away.
            round_trip_ms=person.round_trip_ms + 2 * person.group.jitter_ms,
            jitter_ms=person.group.jitter_ms,
            kbytes_per_s=person.group.kbytes_per_s,
            place=person.number + 1,
        )
        for person in people(scenario, seed)
    ]
