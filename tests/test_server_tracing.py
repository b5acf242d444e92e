"""What a server's trace holds: what really happened, no text, and never at anybody's expense."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from pathlib import Path

import msgspec
import pytest

from goodspeed.control import Change, SetCapacity, SetRoundTimeout, SetScheduler, SetService, SetWeight
from goodspeed.errors import InvalidRequest
from goodspeed.estimation import Goodput, HitOrMiss
from goodspeed.guesses import Overtaken
from goodspeed.messages import DraftEnd, ServerMessage
from goodspeed.simulation import Engine
from goodspeed.stream import ServedStream
from goodspeed.timing import Pace
from goodspeed.traces import (
    Closed,
    Ended,
    Event,
    Known,
    Left,
    Opened,
    Passed,
    Planned,
    Served,
    Trace,
    Verdict,
    Weighed,
    read_trace,
)
from goodspeed.traces.learning import learn
from goodspeed_server import tracing
from goodspeed_server.controlling import controlling
from goodspeed_server.live import AgentAccount, LiveStream
from goodspeed_server.settings import RoundSettings
from goodspeed_server.tracing import TraceFile, Tracer
from tests.serving import GREEDY, linked, serving, tiny_settings
from tests.simulated_traces import header
from tests.stepping import TEXT, WRONG, Grants, stepped
from tests.test_server import PROMPT, target_text
from tests.tiny_models import VOCAB

LENGTH = 24
LEAST = 2**20
ROUNDS = RoundSettings(rounds="barrier")
HEADER = header(Engine(0.01, 0.0, 0.0))


class Silent:
    """Hears nothing."""

    def post(self, message: ServerMessage) -> None:
        pass


def kinds(trace: Trace) -> list[str]:
    return [type(event).__name__ for event in trace.events]


async def traced(file: Path, right: str) -> tuple[Trace, list[int]]:
    """Serve one text behind the barrier, to an agent that guesses as `right` says: + right, - wrong."""
    text = target_text(PROMPT, LENGTH)
    guess = [token if good == "+" else (token + 1) % VOCAB for token, good in zip(text, right, strict=True)]
    async with serving(tiny_settings(trace=file)) as (_, address), linked(address) as peer:
        got = await peer.generate(1, PROMPT, guess, max_new_tokens=LENGTH)
    assert got == text
    return read_trace(file), text


@pytest.mark.parametrize("right", ["+" * LENGTH, "-" * LENGTH, "++-+++-++++-" * 2])
async def test_a_trace_tells_which_guesses_were_right_and_of_no_others(right: str, tmp_path: Path) -> None:
    trace, _ = await traced(tmp_path / "run.jsonl", right)
    (agent,) = learn(trace).agents
    (text,) = agent.texts
    seen = ["?" if known < 0 else "-+"[known] for known in text.known()]
    assert all(known in ("?", truth) for known, truth in zip(seen, right, strict=True))
    # The last token is never drafted, and nor is the one behind a draft that stood whole.
    assert seen.count("?") <= 1 + LENGTH // 3
    assert agent.known_share == pytest.approx(1 - seen.count("?") / LENGTH)
    verdicts = [event for event in trace.events if isinstance(event, Verdict)]
    assert sum(verdict.committed for verdict in verdicts) == text.written == LENGTH
    # How the first draft came is not known: its prompt was on the way.
    assert all(verdict.sent == verdict.drafted <= verdict.budget for verdict in verdicts[1:])
    assert all((verdict.network_ms is not None) == (verdict.drafted > 0) for verdict in verdicts[1:])


async def test_a_trace_tells_the_run_in_order(tmp_path: Path) -> None:
    trace, _ = await traced(tmp_path / "run.jsonl", "+" * LENGTH)
    told = kinds(trace)
    # A pass over the prompt, then a verdict and a pass each; the text ends within its last pass.
    assert told[:3] == ["Joined", "Opened", "Passed"]
    assert told[-5:] == ["Verdict", "Ended", "Passed", "Left", "Closed"]
    assert set(told[3:-5]) == {"Verdict", "Passed"}
    times = [event.at for event in trace.events if not isinstance(event, Passed)]
    assert times == sorted(times)
    opened = next(event for event in trace.events if isinstance(event, Opened))
    assert (opened.prompt, opened.wanted, opened.max_draft, opened.weight) == (len(PROMPT), LENGTH, 4, 1.0)
    passes = [event for event in trace.events if isinstance(event, Passed)]
    verdicts = [event for event in trace.events if isinstance(event, Verdict)]
    assert passes[0].tokens == len(PROMPT) - 1
    assert [each.tokens for each in passes[1:]] == [verdict.drafted + 1 for verdict in verdicts]
    assert all(each.seconds > 0 and each.rows == 1 for each in passes)
    assert next(event for event in trace.events if isinstance(event, Ended)).why == "length"
    about = trace.header
    assert (about.scheduler, about.rounds, about.rule, about.rows) == ("goodspeed", "barrier", "coupled", 4)


async def test_no_text_and_no_token_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    trace, _ = await traced(file, "+" * LENGTH)
    words: set[str] = set()
    for line in file.read_bytes().splitlines()[1:]:
        kind, *values = msgspec.json.decode(line)
        assert len(values) == len(trace.header.events[kind])
        assert all(value is None or isinstance(value, str | int | float) for value in values)
        words |= {value for value in values if isinstance(value, str)}
    assert words <= {"test", "none", "", "length", "stopped", "nothing to say"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_guesses_that_are_overtaken_are_told_where_nobody_waits(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    async with stepped(Grants(3, needs_no_capacity=True), trace=file) as stream:
        await stream.steps(2)
        # Upon the prompt: the first two are overtaken, the third is to be verified, and right, as is the fourth.
        await stream.guess(TEXT[:4], base=len(PROMPT))
        await stream.step()
        await stream.guess([*TEXT[len(stream.text) :][:1], *WRONG[len(stream.text) + 1 :][:2]])
        await stream.step_to_the_end()
    trace = read_trace(file)
    (agent,) = learn(trace).agents
    (text,) = agent.texts
    known = "".join("?" if one < 0 else "-+"[one] for one in text.known())
    assert known[:4] == "++++"
    assert known.count("-") == 1
    assert {event.position for event in trace.events if isinstance(event, Known)} >= {0, 2}
    assert any(verdict.network_ms is not None for verdict in trace.events if isinstance(verdict, Verdict))


def test_guesses_upon_what_a_text_came_with_are_no_part_of_it(tmp_path: Path) -> None:
    tracer = Tracer(TraceFile(tmp_path / "run.jsonl", LEAST), HEADER)
    account = AgentAccount("box", "none", 0.5)
    resumed = ServedStream([1, 2, 3, 4], 2, GREEDY, 10, 4, 100, eos_tokens=())
    live = LiveStream(0, Silent(), account, resumed, 0, HitOrMiss(), Goodput(0.0, 1.0), Pace())
    now = time.monotonic()
    tracer.joined(account, now)
    tracer.opened(live, now)
    tracer.overtaken(live, 2, Overtaken(1, missed=True))
    tracer.overtaken(live, 5, Overtaken(1, missed=True))
    tracer.close(60.0)
    lines = (tmp_path / "run.jsonl").read_bytes().splitlines()[1:]
    known = [event for event in map(msgspec.json.Decoder(Event).decode, lines) if isinstance(event, Known)]
    assert [(event.position, event.right, event.missed) for event in known] == [(1, 1, True)]


async def test_why_a_draft_fell_short_is_told(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    async with stepped(Grants(3, needs_no_capacity=True), trace=file) as stream:
        await stream.guess(TEXT[:1], end=DraftEnd.NOTHING_TO_SAY)
        await stream.step_to_the_end()
    first = next(event for event in read_trace(file).events if isinstance(event, Verdict))
    assert (first.drafted, first.accepted, first.end) == (1, 1, "nothing to say")


async def test_a_text_that_is_given_up_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    async with serving(tiny_settings(trace=file)) as (_, address), linked(address) as peer:
        await peer.open(1, PROMPT)
    told = [msgspec.json.decode(line, type=Event) for line in file.read_bytes().splitlines()[1:]]
    assert next(event for event in told if isinstance(event, Ended)).why == "given up"
    assert any(isinstance(event, Left) for event in told)


async def test_a_trace_tells_whatever_an_operator_changes(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    changes: list[Change] = [
        SetCapacity(3),
        SetCapacity(3),
        SetRoundTimeout(250.0),
        SetScheduler("seconds", fairness=2.0),
        SetWeight("test", 4.0),
        SetWeight("test", 4.0),
        SetWeight("test", None),
        SetService("test", "drained"),
        SetService("test", "served"),
    ]
    settings = tiny_settings(trace=file, rounds={"rounds": "auto"})
    async with serving(settings) as (_, address), linked(address) as peer:
        await peer.generate(1, PROMPT)
        async with controlling(address) as controls:
            for change in changes:
                await controls.ask(change)
    told = [event for event in read_trace(file).events if isinstance(event, Planned | Weighed | Served)]
    assert [msgspec.structs.astuple(event)[1:] for event in told] == [
        ("goodspeed", 1.0, "barrier", 30.0, 3),
        ("goodspeed", 1.0, "barrier", 0.25, 3),
        ("seconds", 2.0, "rolling", 0.25, 3),
        ("test", 4.0),
        ("test", None),
        ("test", "drained"),
        ("test", "served"),
    ]


async def test_a_full_disk_costs_a_line_in_the_log_and_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append, tried = TraceFile.append, threading.Event()

    def full(self: TraceFile, lines: bytes) -> None:
        if lines.startswith(b'{"goodspeed_trace"'):
            return append(self, lines)
        append(self, lines[:10])
        tried.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TraceFile, "append", full)
    monkeypatch.setattr(tracing, "_WRITE_S", 0.0)
    file = tmp_path / "run.jsonl"
    with caplog.at_level(logging.ERROR, "goodspeed_server"):
        async with serving(tiny_settings(trace=file)) as (_, address), linked(address) as peer:
            assert tried.wait(10.0)
            assert await peer.generate(1, PROMPT, max_new_tokens=LENGTH) == target_text(PROMPT, LENGTH)
    assert caplog.messages == [
        f"the trace {file} ends here, since it cannot be written (No space left on device); the server serves on"
    ]


def told(tracer: Tracer, count: int) -> None:
    for _ in range(count):
        tracer.planned_by("plain", 1.0, ROUNDS)


def test_a_trace_ends_at_its_bound_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = TraceFile(tmp_path / "run.jsonl", LEAST)
    room = file.left_bytes
    tracer = Tracer(file, HEADER)
    with caplog.at_level(logging.ERROR, "goodspeed_server"):
        told(tracer, room // 20)
        tracer.close(60.0)
    assert 0.99 * LEAST < file.path.stat().st_size <= LEAST
    *_, last = file.path.read_bytes().splitlines()
    assert msgspec.json.decode(last, type=Closed).why == "full"
    assert caplog.messages == [
        f"the trace {file.path} ends here, since it is as large as --trace-max-mb lets it be; the server serves on"
    ]


def test_nobody_waits_for_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hangs, released = threading.Event(), threading.Event()
    append = TraceFile.append

    def hang(self: TraceFile, lines: bytes) -> None:
        if not lines.startswith(b'{"goodspeed_trace"'):
            hangs.set()
            assert released.wait(10.0)
        append(self, lines)

    monkeypatch.setattr(TraceFile, "append", hang)
    monkeypatch.setattr(tracing, "_WRITE_S", 0.0)
    monkeypatch.setattr(tracing, "_WAITING_EVENTS", 3)
    file = TraceFile(tmp_path / "run.jsonl", LEAST)
    tracer = Tracer(file, HEADER)
    with caplog.at_level(logging.ERROR, "goodspeed_server"):
        told(tracer, 1)
        assert hangs.wait(10.0)
        told(tracer, 10)
        released.set()
        tracer.close(60.0)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [sentence.partition("since ")[2] for sentence in said] == ["the disk does not keep up; the server serves on"]
    # What waited is a whole run up to then.
    assert len(file.path.read_bytes().splitlines()) == 1 + 1 + 3


def test_a_trace_that_is_there_is_kept_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    file, notes = tmp_path / "run.jsonl", tmp_path / "notes.txt"
    Tracer(TraceFile(file, LEAST), HEADER).close(60.0)
    before = file.read_bytes()
    Tracer(TraceFile(file, LEAST), HEADER).close(60.0)
    assert (tmp_path / "run.jsonl.1").read_bytes() == before
    notes.write_text("mine")
    with pytest.raises(InvalidRequest, match=r"notes\.txt is there and is no trace: give another --trace"):
        TraceFile(notes, LEAST)
    assert notes.read_text() == "mine"
    with pytest.raises(InvalidRequest, match="room for 1 MB at least"):
        TraceFile(file, LEAST - 1)


async def test_nothing_is_written_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with serving() as (_, address), linked(address) as peer:
        await peer.generate(1, PROMPT)
    assert not os.listdir(tmp_path)
