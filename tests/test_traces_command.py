"""`goodspeed simulate --trace`, and what it never runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from goodspeed.scenarios import Results
from goodspeed.traces import (
    Closed,
    Event,
    Header,
    Joined,
    to_line,
)
from goodspeed.traces.replaying import RECORDED
from tests.simulated_traces import header
from tests.trace_examples import ENGINE, SHORT, command, written


def test_the_command_replays(tmp_path: Path) -> None:
    file = written(tmp_path / "t", *SHORT, Closed(1.0, "stopped"), scheduler="goodspeed", rounds="barrier")
    code, output, _ = command("--trace", file, "--scheduler", "goodspeed", "--scheduler", "plain", "--json")
    results = Results.from_json(output.encode())
    assert (code, results.labels) == (0, [RECORDED, "goodspeed", "plain"])
    assert results.scenario.schedulers[1] != "goodspeed"  # as it was run
    code, output, _ = command("--trace", file, "--scheduler", "plain")
    assert code == 0
    assert "box" in output


OWN = """
from pathlib import Path
from goodspeed.rules import Coupled
from goodspeed.scheduling import PlainDecoding

Path("imported").touch()


class Mine(PlainDecoding):
    def __init__(self, **options):
        Path("made").touch()


class Rule(Coupled):
    name = "theirs"

    def __init__(self):
        Path("made").touch()
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a module that leaves a file behind if anything in it is made."""
    (tmp_path / "strangers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    sys.modules.pop("strangers", None)


@pytest.mark.parametrize("name", ["strangers:Mine", "strangers:Mine(x=1)", "strangers.py:Mine", "./strangers.py:Mine"])
def test_a_class_that_a_trace_names_is_not_run(name: str, stranger: Path) -> None:
    file = written(stranger / "t", *SHORT, Closed(1.0, "stopped"), scheduler=name, rounds="barrier")
    code, output, _ = command("--trace", file, "--json")
    results = Results.from_json(output.encode())
    assert (code, results.labels) == (0, [RECORDED, "seconds", "goodspeed", "fixed", "plain"])
    assert any(f"recorded under {name}, a class of somebody's own" in remark for remark in results.remarks)
    assert sorted(path.name for path in stranger.iterdir()) == ["strangers.py", "t"]


def test_a_class_that_a_trace_names_is_replayed_as_it_was_run_where_its_user_names_it_too(stranger: Path) -> None:
    name = "strangers:Mine"
    file = written(stranger / "t", *SHORT, Closed(1.0, "stopped"), scheduler=name, rounds="barrier", capacity=7)
    code, output, _ = command("--trace", file, "--scheduler", name, "--json")
    results = Results.from_json(output.encode())
    assert (code, results.labels) == (0, [RECORDED, name])
    (again,) = results.scenario.contenders[1:]
    assert (again.rounds, again.capacity) == ("barrier", 7)
    assert not any("somebody's own" in remark for remark in results.remarks)


@pytest.mark.parametrize("rule", ["strangers:Rule", "theirs"])
def test_a_rule_that_a_trace_names_is_not_run(rule: str, stranger: Path) -> None:
    file = written(stranger / "t", *SHORT, Closed(1.0, "stopped"), rule=rule)
    code, output, trouble = command("--trace", file, "--scheduler", "seconds")
    assert (code, output) == (2, "")
    assert f"seconds: the trace was recorded under the rule {rule}, which is not here" in trouble
    code, output, _ = command("--trace", file, "--scheduler", "fixed", "--json")
    assert (code, Results.from_json(output.encode()).labels) == (0, [RECORDED, "fixed"])
    assert sorted(path.name for path in stranger.iterdir()) == ["strangers.py", "t"]


def test_an_agent_may_be_called_anything(tmp_path: Path) -> None:
    file = tmp_path / "[bold]t"
    odd = "[/b]\x1b[2J$"
    lines: tuple[Header | Event, ...] = (
        header(ENGINE, scheduler="plain", rounds="barrier"), Joined(0.0, 0, odd, odd), *SHORT,
    )  # fmt: skip
    file.write_bytes(b"".join(map(to_line, lines)))
    code, output, _ = command("--trace", file, "--scheduler", "plain")
    assert code == 0
    assert "[/b]?[2J$" in output
    assert "[bold]t, recorded" in output
    assert "\x1b" not in output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "give one thing to simulate"),
        (("a.toml", "--trace", "t"), "give one thing to simulate"),
        (("a.toml", "--closed-loop"), "--closed-loop says how a --trace is replayed"),
        (("--trace", "no-such-file"), "the trace no-such-file cannot be read"),
    ],
)
def test_the_command_refuses_in_a_sentence(words: Sequence[str], sentence: str) -> None:
    code, output, trouble = command(*words)
    assert (code, output) == (2, "")
    assert sentence in trouble
