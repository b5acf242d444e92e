"""Files of traces: what is said of those that are none, that break off, and of what an operator changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.errors import GoodSpeedError, InvalidRequest
from goodspeed.scenarios.cli import chosen
from goodspeed.traces import (
    Closed,
    Ended,
    Event,
    Planned,
    Served,
    Verdict,
    Weighed,
    read_trace,
    to_line,
)
from goodspeed.traces.replaying import replay, scenario_of
from tests.trace_examples import SHORT, written


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda whole: b"", "is empty: a server writes a trace from its start on"),
        (lambda whole: b"name = 'a scenario'\n", "is no trace: its first line is not the header"),
        (lambda whole: b"\xff\xfe\x00", "is no trace: its first line is not the header"),
        (lambda whole: b"{}\n", "is no trace: its first line is not the header"),
        (lambda whole: whole.replace(b'_trace":2', b'_trace":9'), "a trace of version 9 and this goodspeed reads"),
        (lambda whole: whole.splitlines(keepends=True)[0], "nothing was verified while t was written"),
        (lambda whole: whole + b'["dance",1.0]\n', "line 6 of t is no event of a trace: Invalid value 'dance'"),
        (lambda whole: whole + b'["ended",1.0,7,"stop"]\n', "line 6 of t cannot be: no stream 7 was opened"),
        (lambda whole: whole + b'["verdict",1.0,0,2,2,3,9,0,0,null,0,""]\n', "line 6 of t cannot be: 9 tokens were"),
        (lambda whole: whole + b'["known",1.0,0,-5,2,true]\n', "2 guesses were right from position -5 on"),
        (lambda whole: whole + b'["opened",1,1,0,0,9,0,4,1,0]\n', "a text of 0 tokens was opened for 9 more"),
        (lambda whole: whole + b'["opened",1,1,3,4,9,0,4,1,0]\n', "nobody joined as agent 3"),
        (lambda whole: whole + b'["weighed",1.0,"box",-2.0]\n', "line 6 of t cannot be: an agent weighed -2"),
        (lambda whole: whole + b'["planned",1.0,"fixed",1.0,"barrier",0.5,-1]\n', "rounds were planned by 1, -1, 0.5"),
        (lambda whole: whole + b'["left",-1.0,0]\n', "line 6 of t cannot be: it happened at -1.0 s"),
    ],
)
def test_what_is_no_trace_is_refused_in_a_sentence(
    content: Callable[[bytes], bytes], sentence: str, tmp_path: Path
) -> None:
    file = written(tmp_path / "t", *SHORT)
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(GoodSpeedError) as refused:
        read_trace(file)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="none cannot be read: No such file"):
        read_trace(tmp_path / "none")


@given(st.integers(1, 60))
def test_a_trace_that_is_cut_off_is_used_up_to_there(lost: int) -> None:
    events: tuple[Event, ...] = (*SHORT, Verdict(0.3, 0, 2, 2, 1, 2), Ended(0.4, 0, "length"))
    lines = b"".join(map(to_line, events))
    whole = lines[: len(lines) - lost]
    kept, partial = whole.count(b"\n"), not whole.endswith(b"\n")
    with TemporaryDirectory() as folder:
        file = written(Path(folder) / "t")
        file.write_bytes(file.read_bytes() + whole)
        trace = read_trace(file)
    assert trace.cut_off == partial
    assert len(trace.events) == 1 + kept
    remarks = list(trace.remarks())
    assert len(remarks) == 1
    assert ("is cut off within a line: it is used up to there" if partial else "was never closed") in remarks[0]


def test_how_a_trace_ends_is_told(tmp_path: Path) -> None:
    assert not list(read_trace(written(tmp_path / "t", *SHORT, Closed(1.0, "stopped"))).remarks())
    (full,) = read_trace(written(tmp_path / "t", *SHORT, Closed(1.0, "full"))).remarks()
    assert full == "t was full after 1.0 s: the run went on, the trace did not"


def test_whatever_an_operator_changed_is_told(tmp_path: Path) -> None:
    changes = (
        Planned(0.5, "fixed", 1.0, "barrier", 60.0, None),
        Planned(0.6, "fixed", 1.0, "barrier", 60.0, 24),
        Planned(0.6, "fixed", 1.0, "barrier", 60.0, 24),
        Planned(0.7, "fixed", 2.0, "barrier", 0.25, None),
        Weighed(0.8, "box\x1b", 2.0),
        Weighed(0.8, "box", None),
        Served(0.9, "box", "drained"),
        Served(0.9, "box", "drained undrafted"),
        Served(0.9, "box", "served"),
    )
    trace = read_trace(written(tmp_path / "t", *SHORT, *changes, Closed(1.0, "stopped")))
    assert list(trace.remarks()) == [
        "from 0.5 s on fixed planned, rounds were behind the barrier: replays keep to their own",
        "from 0.6 s on the capacity was 24: replays follow",
        (
            "from 0.7 s on fairness was 2, the capacity was for the server to choose, the barrier waited 250 ms: "
            "replays follow"
        ),
        "from 0.8 s on box? weighed 2: replays follow",
        "from 0.8 s on box weighed as its token says: replays follow",
        "from 0.9 s on box was drained: texts that it was refused are in no replay",
        "from 0.9 s on box was drained, and asked for no drafts: replays follow; texts that it was refused are in none",
        "from 0.9 s on box was served again",
    ]
    assert set(trace.remarks()) <= set(replay(trace, chosen(scenario_of(trace), ["fixed"], None, None)).remarks)
    many = [Weighed(0.5, "box", float(weight)) for weight in range(1, 31)]
    trace = read_trace(written(tmp_path / "t", *SHORT, *many, Closed(1.0, "stopped")))
    assert list(trace.remarks())[20:] == ["and 10 more changes"]
