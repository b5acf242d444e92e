"""The lines of a trace: a header, then an event each, a JSON array that begins with its kind.

Seconds count from the trace's beginning, on the server's clock. Streams and agents have numbers of the trace's own.
No event holds a text, a token, or what tokens could be told from.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

from goodspeed.control import Service
from goodspeed.scenarios.results import Machine, Versions

__all__ = [
    "VERSION",
    "Closed",
    "Ended",
    "Event",
    "Header",
    "Joined",
    "Known",
    "Left",
    "Opened",
    "Passed",
    "Planned",
    "Served",
    "Verdict",
    "Weighed",
    "to_line",
]

VERSION = 2
"""Of the format."""


class _Event(Struct, frozen=True, array_like=True, tag=lambda name: name.lower()):
    at: float
    """Seconds."""


class Joined(_Event, frozen=True, array_like=True):
    """An agent has linked up."""

    agent: int
    """A number for the link: who comes back has another."""
    name: str
    drafter: str


class Left(_Event, frozen=True, array_like=True):
    """Its link has gone."""

    agent: int


class Opened(_Event, frozen=True, array_like=True):
    """A stream has a row."""

    stream: int
    agent: int
    prompt: int
    """Tokens there are of it already: the prompt, and what was written before it came here."""
    wanted: int
    """Tokens it may still grow by."""
    temperature: float
    max_draft: int
    weight: float
    waited_s: float
    """For a row."""


class Verdict(_Event, frozen=True, array_like=True):
    """What became of one stream's draft in a pass."""

    stream: int
    budget: int
    """Granted."""
    drafted: int
    """Verified in the pass."""
    accepted: int
    committed: int
    """The recovered or bonus token included."""
    sent: int = 0
    """Drafted tokens that were seen to come since the last verdict; where nobody waits, not all are verified."""
    draft_ms: float = 0.0
    """How long those were computed, as far as the server believes it."""
    network_ms: float | None = None
    """For how long else a draft was on its way that began anew; None if none did."""
    wait_ms: float = 0.0
    """For how long the last of them waited for the pass."""
    end: Literal["", "priced out", "nothing to say"] = ""
    """Why the draft ended short of what was asked for."""


class Known(_Event, frozen=True, array_like=True):
    """Guesses were held against what was committed over them, without having been verified."""

    stream: int
    position: int
    """Of the first, among the tokens written since the stream was opened."""
    right: int
    missed: bool
    """Whether the one behind those was wrong."""


class Passed(_Event, frozen=True, array_like=True, tag="pass"):
    """A pass of the target is over; it stands behind its verdicts."""

    rows: int
    tokens: int
    seconds: float
    other_s: float
    """For planning it and committing what came of it."""


class Ended(_Event, frozen=True, array_like=True):
    """A stream is over."""

    stream: int
    why: Literal["stop", "length", "given up"]


class Planned(_Event, frozen=True, array_like=True):
    """Rounds are planned by something else from here on: an operator changed it, or the scheduler failed."""

    scheduler: str
    fairness: float
    rounds: Literal["barrier", "rolling"]
    round_timeout_s: float
    capacity: int | None


class Weighed(_Event, frozen=True, array_like=True):
    """An operator gave an agent another weight."""

    agent: str
    """By name, all its links; it may be away."""
    weight: float | None
    """None for its token's own."""


class Served(_Event, frozen=True, array_like=True):
    """An operator drained an agent, or serves it again."""

    agent: str
    """By name, likewise."""
    service: Service


class Closed(_Event, frozen=True, array_like=True):
    """The last event."""

    why: Literal["stopped", "full"]


Event: TypeAlias = Joined | Left | Opened | Verdict | Known | Passed | Ended | Planned | Weighed | Served | Closed


class Header(Struct, frozen=True, kw_only=True):
    """The first line."""

    goodspeed_trace: int = VERSION
    began: str
    """ISO 8601, UTC."""
    machine: Machine
    versions: Versions
    model: str
    quantize: str | None = None
    """How the target's weights were quantised while it was loaded."""
    scheduler: str
    fairness: float
    rule: str
    rounds: Literal["barrier", "rolling"]
    round_timeout_s: float
    capacity: int | None
    prefill_chunk: int
    rows: int
    """Streams that there is room for."""
    passes: tuple[tuple[int, int, float], ...]
    """Rows, tokens and seconds of passes that were measured at start-up."""
    events: dict[str, tuple[str, ...]] = msgspec.field(
        default_factory=lambda: {str(kind.__struct_config__.tag): kind.__struct_fields__ for kind in get_args(Event)}
    )
    """What stands where in each kind of event, behind the kind: for who reads a trace with tools of their own."""


def to_line(line: Header | Event) -> bytes:
    """As it stands in the file."""
    return msgspec.json.encode(line) + b"\n"
