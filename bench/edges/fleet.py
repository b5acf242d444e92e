"""The boxes that are emulated: eight edges as unlike each other as edges are.

Draft times (4 to 30 ms a token) and round trips (5 to 80 ms) are spaced evenly in their logarithms and hardly
correlated, with each other or with how good the drafts are: neither the fastest box nor the nearest has the best draft.
"""

from __future__ import annotations

from msgspec import Struct

from bench.edges.toxics import Bandwidth, Latency, Toxics

__all__ = ["FLEET", "Edge", "co_located"]

_JITTER = 0.1
"""Of the latency, either way."""
_KBYTES_PER_S = 1250.0
"""10 Mbit/s both ways: what a draft or a verdict weighs hardly matters, and that it does not is part of the design."""


class Edge(Struct, frozen=True):
    """One box and its link."""

    name: str
    draft: str
    """What it drafts with, as `drafters.load_drafter` knows it."""
    draft_ms: float
    """Time for one drafted token; a draft of k tokens takes k times this, and nothing else."""
    round_trip_ms: float

    @property
    def number(self) -> int:
        """The number in its name."""
        return int(self.name.rpartition("-")[2])

    @property
    def toxics(self) -> Toxics:
        """Of its link; none for a box without distance."""
        if not self.round_trip_ms:
            return ()
        latency = Latency(self.round_trip_ms / 2, _JITTER * self.round_trip_ms / 2)
        bandwidth = Bandwidth(_KBYTES_PER_S)
        return (
            ("upstream", bandwidth), ("upstream", latency), ("downstream", bandwidth), ("downstream", latency),
        )  # fmt: skip


FLEET = (
    Edge("edge-1", "pico-draft-l-tuned", 7.1, 80.0),
    Edge("edge-2", "suffix", 5.3, 7.4),
    Edge("edge-3", "pico-draft-l-tuned", 16.9, 5.0),
    Edge("edge-4", "pico-draft-l", 12.6, 36.2),
    Edge("edge-5", "pico-draft-s", 4.0, 24.4),
    Edge("edge-6", "pico-draft-l-tuned", 30.0, 53.8),
    Edge("edge-7", "pico-draft-m", 9.5, 11.0),
    Edge("edge-8", "pico-draft-m", 22.5, 16.4),
)
"""Any first few of them are a mixed company too."""


def co_located(edge: Edge, draft: str) -> Edge:
    """The same user, whose drafts are made on the server's machine: no way to go, and no box of its own to wait for."""
    return Edge(edge.name, draft, 0.0, 0.0)
