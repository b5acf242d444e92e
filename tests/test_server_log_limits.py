"""Lines that strangers cause: some at once, a few a minute, and none is lost without a number."""

from __future__ import annotations

import logging

import pytest

from goodspeed_server.log_limits import FloodLimit


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def line(name: str, text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "", 0, text, arguments, None)


def limited(now: list[float]) -> Lines:
    lines = Lines()
    lines.addFilter(FloodLimit(lambda: now[0]))
    return lines


def test_a_flood_leaves_a_few_lines_and_says_how_many_it_had() -> None:
    now = [0.0]
    lines = limited(now)
    for n in range(1000):
        lines.handle(line("goodspeed_server.link", "link %s is closed", n))
    assert lines.said == [f"link {n} is closed" for n in range(50)]
    now[0] = 3.1
    lines.handle(line("goodspeed_server.link", "link %s is closed", "last"))
    assert lines.said[50:] == ["link last is closed (and 950 more like it)"]
    now[0] = 86_400.0
    for n in range(1000):
        lines.handle(line("goodspeed_server.link", "link %s is closed", n))
    assert len(lines.said) == 101


def test_what_nobody_else_causes_is_always_said() -> None:
    lines = limited([0.0])
    for _ in range(200):
        lines.handle(line("goodspeed_server.control", "changed"))
    for _ in range(200):
        lines.handle(line("goodspeed_server.link", "one kind"))
    lines.handle(line("goodspeed_server.link", "another kind"))
    lines.handle(line("websockets.server", "one kind"))
    assert (lines.said.count("changed"), lines.said.count("one kind")) == (200, 51)
    assert "another kind" in lines.said


@pytest.mark.parametrize("name", ["live", "auditing", "fitting", "settling"])
def test_what_a_draft_may_cause_is_limited(name: str) -> None:
    lines = limited([0.0])
    for n in range(200):
        lines.handle(line(f"goodspeed_server.{name}", "a draft cannot be used: %s", n))
    assert len(lines.said) == 50


def test_of_texts_more_is_said_and_not_all() -> None:
    now = [0.0]
    lines = limited(now)
    for n in range(100_000):
        now[0] += 0.001
        lines.handle(line("goodspeed_server.streams", "a text begins: prompt %d tokens", n))
    assert 1900 <= len(lines.said) <= 2001


def test_a_line_is_as_long_as_a_line() -> None:
    lines = limited([0.0])
    for _ in range(51):
        lines.handle(line("goodspeed_server.link", "the tokenizer of draft %r differs", "x" * 4096))
    assert {len(said) for said in lines.said} == {1003}
    lines.handle(line("goodspeed_server.control", "%s", "x" * 4096))
    assert len(lines.said[-1]) == 4096


def test_kinds_that_are_made_up_are_one() -> None:
    lines = limited([0.0])
    for n in range(10_000):
        lines.handle(line("websockets.server", f"made up {n}"))
    assert len(lines.said) == 256 + 50


def test_what_strangers_can_have_the_event_loop_say_is_limited() -> None:
    """It complains of every answer to who has gone."""
    lines = limited([0.0])
    for _ in range(1000):
        lines.handle(line("asyncio", "socket.send() raised exception."))
    assert len(lines.said) == 50
