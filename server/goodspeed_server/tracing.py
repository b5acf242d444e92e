"""The trace of a run: who came, what was asked for, every verdict and every pass; off unless an operator asks for it.

No text and no token is in it. The event loop makes events and goes on; a thread of its own writes them. A disk that is
full or hangs, or a file as large as it may become, ends the trace and is told once: what stands in the file is a whole
run up to some moment. Tracing never makes a round wait.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from goodspeed.control import Service
from goodspeed.errors import InvalidRequest
from goodspeed.guesses import Overtaken
from goodspeed.messages import Draft, DraftEnd
from goodspeed.scenarios.results import Machine, Versions
from goodspeed.stream import Commit
from goodspeed.timing import PassSample
from goodspeed.traces.events import (
    Closed,
    Ended,
    Event,
    Header,
    Joined,
    Known,
    Left,
    Opened,
    Passed,
    Planned,
    Served,
    Verdict,
    Weighed,
    to_line,
)
from goodspeed_server.live import AgentAccount, DraftWay, LiveStream
from goodspeed_server.observer import RoundRecord
from goodspeed_server.settings import RoundSettings, ServerSettings

__all__ = ["TraceFile", "Tracer", "trace_header"]

logger = logging.getLogger(__name__)

LEAST_BYTES = 2**20
_OURS = b'{"goodspeed_trace":'
"""How a trace begins: nothing else is moved out of the way."""
_WAITING_EVENTS = 2**17
"""So many may wait for the thread; a disk that is so far behind hangs."""
_LAST_BYTES = 2**10
"""Room for the last event."""
_WRITE_S = 1.0
"""What has happened is in the file after so long."""


class TraceFile:
    """A file that grows to a bound; it is its owner's alone, since it names agents.

    Args:
        path: a trace that is there already is kept as `path.1`.
        max_bytes: of the file.

    Raises:
        InvalidRequest: it cannot be written, or is something else.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        if max_bytes < LEAST_BYTES:
            raise InvalidRequest(f"a trace needs room for {LEAST_BYTES >> 20} MB at least: see --trace-max-mb")
        self.path = path
        self.left_bytes = max_bytes - _LAST_BYTES
        """Besides room for the last event."""
        try:
            # Its owner's alone from the start.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            strange = path.is_file() and _beginning(path) not in (b"", _OURS)
        except OSError as error:
            raise InvalidRequest(f"cannot trace to {path}: {error.strerror}; give another --trace") from None
        if strange:
            raise InvalidRequest(f"{path} is there and is no trace: give another --trace")

    def begin(self, header: Header) -> None:
        """Write the first line.

        Raises:
            InvalidRequest: it cannot be written.
        """
        try:
            if self.path.is_file() and self.path.stat().st_size:
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600))
            self.append(to_line(header))
        except OSError as error:
            raise InvalidRequest(f"cannot trace to {self.path}: {error.strerror}; give another --trace") from None

    def append(self, lines: bytes) -> None:
        """Write what there is room for.

        Raises:
            OSError: the disk does not take it.
        """
        with self.path.open("ab", buffering=0) as file:
            while lines:
                written = file.write(lines)
                self.left_bytes -= written
                lines = lines[written:]


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_OURS))


def trace_header(
    settings: ServerSettings,
    scheduler: str,
    rule: str,
    rounds: RoundSettings,
    rows: int,
    measured: Sequence[PassSample],
) -> Header:
    """What a trace begins with.

    Args:
        settings: of the server.
        scheduler: what `auto` stands for.
        rule: likewise.
        rounds: likewise.
        rows: of the slab.
        measured: passes at start-up.
    """
    assert rounds.rounds != "auto"
    return Header(
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=Machine.here(),
        versions=Versions.here(),
        model=settings.model,
        quantize=settings.quantize,
        scheduler=scheduler,
        fairness=settings.fairness,
        rule=rule,
        rounds=rounds.rounds,
        round_timeout_s=rounds.round_timeout_s,
        capacity=rounds.capacity,
        prefill_chunk=rounds.prefill_chunk,
        rows=rows,
        passes=tuple((sample.rows, sample.tokens, sample.seconds) for sample in measured),
    )


@dataclass(slots=True)
class _Draft:
    """What has come of one stream since its last verdict."""

    number: int
    opened_length: int
    sent: int = 0
    draft_s: float = 0.0
    network_s: float | None = None
    here_at: float | None = None
    end: Literal["", "priced out", "nothing to say"] = ""

    def forget(self) -> None:
        """A verdict was reached."""
        self.sent, self.draft_s, self.network_s, self.here_at, self.end = 0, 0.0, None, None, ""


_ENDS: dict[DraftEnd, Literal["", "priced out", "nothing to say"]] = {
    DraftEnd.FAR_ENOUGH: "",
    DraftEnd.PRICED_OUT: "priced out",
    DraftEnd.NOTHING_TO_SAY: "nothing to say",
}


class Tracer:
    """Makes events of what a server does, and lines of events.

    Args:
        file: where they go.
        header: what they begin with.
        clock: seconds, the one of all that it is told.

    Raises:
        InvalidRequest: the file cannot be made.
    """

    def __init__(self, file: TraceFile, header: Header, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._began = clock()
        self._agents: dict[AgentAccount, int] = {}
        self._drafts: dict[LiveStream, _Draft] = {}
        self._next_agent = self._next_stream = 0
        self._committing: list[tuple[Event, float | None]] = []
        """From a pass's first verdict to its end; with a verdict, when what was verified had come."""
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._over = False
        """Nothing more is taken."""
        file.begin(header)
        self._thread = threading.Thread(target=self._work, name="tracer", daemon=True)
        self._thread.start()
        logger.info("this run is traced to %s: who asks for how much and when, and no texts", file.path)

    def joined(self, account: AgentAccount, now: float) -> None:
        """An agent has linked up."""
        self._agents[account] = self._next_agent
        self._next_agent += 1
        self._put(Joined(self._since(now), self._agents[account], account.name, account.drafter))

    def left(self, account: AgentAccount) -> None:
        """Its link has gone."""
        self._put(Left(self._since(self._clock()), self._agents.pop(account)))

    def opened(self, live: LiveStream, now: float) -> None:
        """A stream has a row."""
        stream, account = live.stream, live.account
        draft = self._drafts[live] = _Draft(self._next_stream, stream.length)
        self._next_stream += 1
        self._put(
            Opened(
                self._since(now),
                draft.number,
                self._agents[account],
                stream.length,
                stream.room,
                stream.params.temperature,
                stream.max_draft,
                account.weight,
                round(now - stream.opened_at, 5),
            )
        )

    def came(self, live: LiveStream, draft: Draft, way: DraftWay | None) -> None:
        """A draft, or a piece of one, has come.

        Args:
            live: whose.
            draft: of as many tokens as can be used.
            way: how it came; None if that is not known.
        """
        seen = self._drafts[live]
        seen.end = _ENDS[draft.end]
        if way is None:
            return
        seen.here_at = way.arrived_at
        if draft.tokens:
            seen.sent += len(draft.tokens)
            seen.draft_s += way.draft_s
        if draft.offset == 0:
            seen.network_s = way.network_s

    def overtaken(self, live: LiveStream, first: int, what: Overtaken) -> None:
        """Guesses from the position `first` of a transcript on were held against it."""
        seen, at = self._drafts[live], self._since(self._clock())
        # Who resumes a text may guess upon less of it than it came with, and that is no part of what is written here.
        if (what.right or what.missed) and first >= seen.opened_length:
            self._put(Known(at, seen.number, first - seen.opened_length, what.right, what.missed))

    def committed(self, live: LiveStream, drafted: int, commit: Commit, now: float) -> None:
        """A verdict was reached for one stream."""
        seen = self._drafts[live]
        verdict = Verdict(
            self._since(now),
            seen.number,
            live.budget,
            drafted,
            commit.accepted,
            commit.size,
            seen.sent,
            round(1e3 * seen.draft_s, 3),
            None if seen.network_s is None else round(1e3 * seen.network_s, 3),
            end=seen.end,
        )
        # What nobody owed it has waited for since its stream was free to be in a pass.
        here_at = None if seen.here_at is None else max(seen.here_at, live.asked_at)
        self._committing.append((verdict, here_at))
        seen.forget()

    def round_over(self, record: RoundRecord) -> None:
        """A pass has been committed."""
        self._put_committed(record.at - record.verify_s - record.plan_s)
        self._put(
            Passed(
                self._since(record.at),
                record.streams + record.prompts,
                record.streams + record.drafted + record.prefilled,
                round(record.verify_s, 6),
                round(record.plan_s + record.commit_s, 6),
            )
        )

    def ended(self, live: LiveStream, now: float) -> None:
        """A stream is over, or was closed."""
        self._put(Ended(self._since(now), self._drafts.pop(live).number, live.stream.finish or "given up"))

    def planned_by(self, scheduler: str, fairness: float, settings: RoundSettings) -> None:
        """Rounds are planned by these from now on."""
        assert settings.rounds != "auto"
        self._put(
            Planned(
                self._since(self._clock()),
                scheduler,
                fairness,
                settings.rounds,
                settings.round_timeout_s,
                settings.capacity,
            )
        )

    def weighed(self, agent: str, weight: float | None) -> None:
        """An operator gave an agent another weight, or its token's own, None."""
        self._put(Weighed(self._since(self._clock()), agent, weight))

    def served(self, agent: str, service: Service) -> None:
        """An operator drained an agent, or serves it again."""
        self._put(Served(self._since(self._clock()), agent, service))

    def close(self, within_s: float) -> None:
        """Write what is there, and end the thread; blocks meanwhile, but no longer than that."""
        self._put_committed(self._clock())
        self._put(Closed(self._since(self._clock()), "stopped"))
        self._events.put(None)
        self._thread.join(within_s)
        if self._thread.is_alive():
            logger.error("%s does not answer: the end of the trace is lost", self._file.path)

    def _since(self, now: float) -> float:
        return round(now - self._began, 5)

    def _put(self, event: Event) -> None:
        if self._committing:
            self._committing.append((event, None))
        elif not self._over:
            if self._events.qsize() >= _WAITING_EVENTS:
                self._break_off("the disk does not keep up")
                self._events.put(None)
            else:
                self._events.put(event)

    def _put_committed(self, closed_at: float) -> None:
        """Hand over what a pass has brought, in the order in which it did."""
        committed, self._committing = self._committing, []
        for event, here_at in committed:
            if isinstance(event, Verdict) and here_at is not None:
                event = replace(event, wait_ms=round(1e3 * max(0.0, closed_at - here_at), 3))
            self._put(event)

    def _break_off(self, why: str) -> None:
        self._over = True
        logger.error("the trace %s ends here, since %s; the server serves on", self._file.path, why)

    def _work(self) -> None:
        going_on = True
        while going_on:
            # A write for every event would be many.
            events, until = [self._events.get()], time.monotonic() + _WRITE_S
            while events[-1] is not None and (left_s := until - time.monotonic()) > 0:
                try:
                    events.append(self._events.get(timeout=left_s))
                except queue.Empty:
                    break
            try:
                going_on = self._write([event for event in events if event is not None]) and events[-1] is not None
            except Exception:
                # A defect of ours; the server serves on.
                logger.exception("events could not be written")
                self._break_off("there is a defect in the server")
                going_on = False

    def _write(self, events: Sequence[Event]) -> bool:
        """Write some events; False if there will be no others."""
        lines = [to_line(event) for event in events]
        ends = list(itertools.accumulate(map(len, lines)))
        fitting = bisect.bisect_right(ends, self._file.left_bytes)
        full = fitting < len(lines)
        if full:
            lines[fitting:] = [to_line(Closed(events[fitting].at, "full"))]
        try:
            self._file.append(b"".join(lines))
        except OSError as error:
            self._break_off(f"it cannot be written ({error.strerror})")
            return False
        if full:
            self._break_off("it is as large as --trace-max-mb lets it be")
        return not full
