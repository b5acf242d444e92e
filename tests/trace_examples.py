"""Small traces, and the command that replays them, for the tests of traces."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from goodspeed.__main__ import app
from goodspeed.scenarios import Results, Run
from goodspeed.simulation import Engine
from goodspeed.traces import (
    Event,
    Joined,
    Opened,
    Passed,
    Trace,
    Verdict,
    to_line,
)
from tests.simulated_traces import header

__all__ = ["ENGINE", "SHORT", "command", "only", "opened", "trace_of", "written"]


ENGINE = Engine(0.03, 0.001, 0.0006, noise=0.05, between_s=0.002)


def trace_of(*events: Event, **about: object) -> Trace:
    return Trace("t", header(ENGINE, **about), (Joined(0.0, 0, "box", "a draft"), *events))


def opened(at: float, stream: int = 0, wanted: int = 20, **more: float) -> Opened:
    return Opened(at, stream, 0, 5, wanted, 0.0, 8, 1.0, more.get("waited_s", 0.0))


def only(results: Results, label: str) -> Run:
    (run,) = results.of(label)
    return run


def written(file: Path, *events: Event, **about: object) -> Path:
    file.write_bytes(b"".join(map(to_line, (header(ENGINE, **about), Joined(0.0, 0, "box", "a draft"), *events))))
    return file


SHORT = (opened(0.1), Verdict(0.2, 0, 2, 2, 1, 2, 2, 8.0, 20.0), Passed(0.2, 1, 3, 0.04, 0.001))


def command(*words: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["simulate", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr
