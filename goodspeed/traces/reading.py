"""Trace files: read as far as they go, and refused in a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from goodspeed.control import MAX_WEIGHT, Service
from goodspeed.errors import CorruptData, InvalidRequest
from goodspeed.traces.events import (
    VERSION,
    Closed,
    Event,
    Header,
    Joined,
    Known,
    Opened,
    Planned,
    Served,
    Verdict,
    Weighed,
)

__all__ = ["Trace", "printable", "read_trace"]

_LONGEST_LINE = 2**20
_LONGEST_TEXT = 2**24
"""Tokens; what is longer is no text of ours."""
_LONGEST_NAME = 60
_MOST_CHANGES = 20
_SERVICES: dict[Service, str] = {
    "served": "served again",
    "drained": "drained: texts that it was refused are in no replay",
    "drained undrafted": "drained, and asked for no drafts: replays follow; texts that it was refused are in none",
}


class _Version(Struct):
    goodspeed_trace: int


@dataclass(frozen=True, slots=True)
class Trace:
    """What is in a file."""

    name: str
    header: Header
    events: tuple[Event, ...]
    cut_off: bool = False
    """Whether it breaks off within a line, which was left out."""

    @property
    def duration_s(self) -> float:
        """From its beginning to the last event."""
        return max((event.at for event in self.events), default=0.0)

    def remarks(self) -> Iterator[str]:
        """What has to be known of how it ends, and of what was changed meanwhile."""
        if self.cut_off:
            yield f"{self.name} is cut off within a line: it is used up to there, {self.duration_s:.1f} s"
        elif not any(isinstance(event, Closed) for event in self.events):
            yield f"{self.name} was never closed, so its server was killed or goes on: used are {self.duration_s:.1f} s"
        elif any(isinstance(event, Closed) and event.why == "full" for event in self.events):
            yield f"{self.name} was full after {self.duration_s:.1f} s: the run went on, the trace did not"
        changes = list(self._changes())
        yield from changes[:_MOST_CHANGES]
        if len(changes) > _MOST_CHANGES:
            yield f"and {len(changes) - _MOST_CHANGES} more changes"

    def _changes(self) -> Iterator[str]:
        """What its operator changed while it was written."""
        planned: Header | Planned = self.header
        for event in self.events:
            if isinstance(event, Planned):
                for said, meaning in (
                    (_another_plan(planned, event), "replays keep to their own"),
                    (_other_limits(planned, event), "replays follow"),
                ):
                    if changed := ", ".join(said):
                        yield f"from {event.at:.1f} s on {changed}: {meaning}"
                planned = event
            elif isinstance(event, Weighed):
                weight = "as its token says" if event.weight is None else f"{event.weight:g}"
                yield f"from {event.at:.1f} s on {printable(event.agent)} weighed {weight}: replays follow"
            elif isinstance(event, Served):
                yield f"from {event.at:.1f} s on {printable(event.agent)} was {_SERVICES[event.service]}"


def _another_plan(before: Header | Planned, now: Planned) -> Iterator[str]:
    """What of it is something else, and is what a contender is."""
    if now.scheduler != before.scheduler:
        yield f"{printable(now.scheduler)} planned"
    if now.rounds != before.rounds:
        yield f"rounds were {'rolling' if now.rounds == 'rolling' else 'behind the barrier'}"


def _other_limits(before: Header | Planned, now: Planned) -> Iterator[str]:
    """What else of it is something else."""
    if now.fairness != before.fairness:
        yield f"fairness was {now.fairness:g}"
    if now.capacity != before.capacity:
        yield f"the capacity was {'for the server to choose' if now.capacity is None else now.capacity}"
    if now.round_timeout_s != before.round_timeout_s:
        yield f"the barrier waited {1e3 * now.round_timeout_s:g} ms"


def printable(name: str) -> str:
    """A name that a trace says, fit for a terminal: it may be anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:_LONGEST_NAME]


def read_trace(path: Path) -> Trace:
    """Read a trace.

    Raises:
        InvalidRequest: there is no such file, or nothing was verified while it was written.
        CorruptData: it is no trace, or one of another version.
    """
    try:
        with path.open("rb") as file:
            return _read(path.name, file)
    except OSError as error:
        raise InvalidRequest(f"the trace {path} cannot be read: {error.strerror}") from None


def _read(name: str, file: BinaryIO) -> Trace:
    header = _header(name, file.readline(_LONGEST_LINE))
    decoder = msgspec.json.Decoder(Event)
    events: list[Event] = []
    agents, streams = set[int](), set[int]()
    cut_off = False
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=2):
        if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
            cut_off = True
            break
        try:
            event = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CorruptData(f"line {number} of {name} is no event of a trace: {error}") from None
        if isinstance(event, Joined):
            agents.add(event.agent)
        elif isinstance(event, Opened):
            streams.add(event.stream)
        strange = _strange(event, agents, streams)
        if strange:
            raise CorruptData(f"line {number} of {name} cannot be: {strange}")
        events.append(event)
    if not any(isinstance(event, Verdict) for event in events):
        raise InvalidRequest(f"nothing was verified while {name} was written: there is nothing to replay")
    return Trace(name, header, tuple(events), cut_off)


def _header(name: str, line: bytes) -> Header:
    if not line:
        raise CorruptData(f"{name} is empty: a server writes a trace from its start on, goodspeed-server run --trace")
    try:
        version = msgspec.json.decode(line, type=_Version).goodspeed_trace
        if version != VERSION:
            raise CorruptData(
                f"{name} is a trace of version {version} and this goodspeed reads version {VERSION}: replay it with "
                "the goodspeed that wrote it"
            )
        header = msgspec.json.decode(line, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise CorruptData(
            f"{name} is no trace: its first line is not the header that goodspeed-server run --trace writes"
        ) from None
    if not header.passes or min(min(sample) for sample in header.passes) <= 0:
        raise CorruptData(f"{name} says nothing of how long its server's passes took")
    return header


def _strange(event: Event, agents: set[int], streams: set[int]) -> str:
    """What is impossible about an event; empty if nothing is."""
    if not (math.isfinite(event.at) and event.at >= 0):
        return f"it happened at {event.at} s"
    if isinstance(event, Opened) and event.agent not in agents:
        return f"nobody joined as agent {event.agent}"
    stream = getattr(event, "stream", None)
    if stream is not None and stream not in streams:
        return f"no stream {stream} was opened"
    if isinstance(event, Opened) and not (0 < event.prompt < _LONGEST_TEXT and 0 < event.wanted < _LONGEST_TEXT):
        return f"a text of {event.prompt} tokens was opened for {event.wanted} more"
    if isinstance(event, Weighed) and event.weight is not None and not 0 < event.weight <= MAX_WEIGHT:
        return f"an agent weighed {event.weight:g}"
    if isinstance(event, Planned):
        numbers = (event.fairness, event.capacity or 0, event.round_timeout_s)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            return f"rounds were planned by {', '.join(f'{number:g}' for number in numbers)}"
    if isinstance(event, Known) and min(event.position, event.right) < 0:
        return f"{event.right} guesses were right from position {event.position} on"
    if isinstance(event, Verdict):
        counts = (event.budget, event.drafted - event.accepted, event.accepted, event.sent, event.draft_ms)
        if min(counts) < 0 or not event.accepted <= event.committed <= event.accepted + 1:
            return f"{event.committed} tokens were committed, {event.accepted} of {event.drafted} drafted accepted"
    return ""
