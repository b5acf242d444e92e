"""Lines of a log: for people and for programs, about what they are about, and never two where one was logged."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.logs import JsonLines, Readable, about, announce, log_to, say

log = logging.getLogger("goodspeed_server.test")


def written(formatter: JsonLines | Readable, *, verbose: bool = True) -> io.StringIO:
    stream = io.StringIO()
    log_to(logging.StreamHandler(stream), formatter, ours=("goodspeed_server",), verbose=verbose)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_says_when_who_and_about_what() -> None:
    stream = written(JsonLines())
    with about(agent="edge-7", stream=3), about(round=9):
        log.info("%d tokens", 5)
    log.warning("nothing in particular")
    first, second = lines(stream)
    when = datetime.fromisoformat(first.pop("ts"))
    assert when.utcoffset() == timedelta(0)
    assert first == {
        "level": "INFO", "logger": "goodspeed_server.test", "message": "5 tokens",
        "agent": "edge-7", "stream": 3, "round": 9,
    }  # fmt: skip
    assert set(second) == {"ts", "level", "logger", "message"}


def test_a_traceback_is_a_field() -> None:
    stream = written(JsonLines())
    try:
        raise ValueError("odd\nindeed")  # noqa: TRY301 - a traceback has to come from somewhere
    except ValueError:
        log.exception("it failed")
    (line,) = lines(stream)
    assert (line["level"], line["message"]) == ("ERROR", "it failed")
    assert line["exc"].startswith("Traceback (most recent call last):\n")
    assert line["exc"].endswith("ValueError: odd\nindeed")


def test_what_the_process_is_stands_in_every_line_and_a_line_may_know_better() -> None:
    stream = written(JsonLines({"agent": "this"}))
    log.info("one")
    with about(agent="that"):
        log.info("two")
    assert [line["agent"] for line in lines(stream)] == ["this", "that"]


def test_people_read_ids_at_the_end() -> None:
    stream = written(Readable("%(levelname)s %(message)s"))
    log.info("nothing in particular")
    with about(agent="edge-7", stream=3):
        log.info("a text ends")
    with about(agent="my box"):
        log.info("linked")
    assert stream.getvalue() == (
        'INFO nothing in particular\nINFO a text ends [agent=edge-7 stream=3]\nINFO linked [agent="my box"]\n'
    )


ANYTHING = st.text(st.characters(exclude_categories=()))


@given(name=ANYTHING, message=ANYTHING)
def test_one_line_for_each_whatever_a_peer_calls_itself(name: str, message: str) -> None:
    for formatter in (JsonLines(), Readable("%(levelname)s %(message)s")):
        record = log.makeRecord(log.name, logging.INFO, "", 0, "agent %s: %s", (name, message), None)
        with about(agent=name):
            line = formatter.format(record)
        assert len(line.splitlines()) == 1
        if isinstance(formatter, JsonLines):
            assert json.loads(line)["agent"] == name[:100]
        else:
            assert line.isprintable()


async def test_tasks_know_what_they_are_about_and_not_what_others_are() -> None:
    stream = written(JsonLines())
    begun = asyncio.Event()

    async def one(number: int) -> None:
        with about(stream=number):
            begun.set()
            await asyncio.sleep(0)
            await asyncio.create_task(asyncio.to_thread(log.info, "%d", number))

    await asyncio.gather(one(1), one(2))
    assert sorted((line["message"], line["stream"]) for line in lines(stream)) == [("1", 1), ("2", 2)]


def test_a_thread_is_told_by_handing_the_context_over() -> None:
    stream = written(JsonLines())
    with ThreadPoolExecutor(1) as thread, about(round=4):
        thread.submit(copy_context().run, log.info, "in it").result()
        thread.submit(log.info, "outside").result()
    assert [line.get("round") for line in lines(stream)] == [4, None]


def test_only_ours_say_who_comes_and_goes_and_everybody_may_warn() -> None:
    stream = written(JsonLines())
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("trouble")
    log.info("hello")
    assert [line["message"] for line in lines(stream)] == ["trouble", "hello"]
    stream = written(JsonLines(), verbose=False)
    log.info("hello")
    assert lines(stream) == []


def test_where_logs_are_json_warnings_and_defects_are() -> None:
    stream = written(JsonLines())
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("soon gone", stacklevel=1)
    try:
        raise ZeroDivisionError("by nought")  # noqa: TRY301 - likewise
    except ZeroDivisionError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    warned, ended = lines(stream)
    assert "soon gone" in warned["message"]
    assert (ended["level"], ended["message"]) == ("CRITICAL", "ended by a defect: by nought")
    assert "ZeroDivisionError" in ended["exc"]


def test_what_a_program_answers_is_one_of_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    stream = written(Readable("%(message)s"), verbose=False)
    say("goodspeed-agent", "goodbye")
    assert (stream.getvalue(), capsys.readouterr().err) == ("", "goodspeed-agent: goodbye\n")
    stream = written(JsonLines(), verbose=False)
    say("goodspeed-agent", "goodbye")
    (line,) = lines(stream)
    assert (line["logger"], line["level"], line["message"]) == ("goodspeed_agent", "INFO", "goodbye")
    assert capsys.readouterr().err == ""


@pytest.fixture(autouse=True)
def _defects_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    logging.captureWarnings(False)


def test_what_is_waited_for_is_a_line_of_the_log_where_that_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    written(Readable("%(message)s"))
    announce("goodspeed-server", "listening on ws://127.0.0.1:1")
    assert capsys.readouterr().out == "listening on ws://127.0.0.1:1\n"
    stream = written(JsonLines(), verbose=False)
    announce("goodspeed-server", "listening on ws://127.0.0.1:1")
    (line,) = lines(stream)
    assert (line["level"], line["message"]) == ("INFO", "listening on ws://127.0.0.1:1")
    assert capsys.readouterr() == ("", "")
